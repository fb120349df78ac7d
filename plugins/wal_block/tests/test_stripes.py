"""A log that is striped over several files or devices: which they are is checked, and what is written comes back."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock_wal_block import BlockWal, Settings, penstock_register_wal
from penstock_wal_block._format import BLOCK_BYTES, HEADER_AREA_BYTES
from penstock_wal_block._stripe import places
from tests.loop_device import loop_device

from penstock.errors import ConfigError, CorruptError
from penstock.spi import Services

pytestmark = pytest.mark.anyio


@given(st.integers(0, 40), st.integers(1, 40), st.integers(2, 5))
def test_each_block_of_the_log_has_a_place_of_its_own_and_all_devices_the_same_share(
    start: int, blocks: int, count: int
) -> None:
    unit = 3 * BLOCK_BYTES
    found = places(
        HEADER_AREA_BYTES + start * BLOCK_BYTES, blocks * BLOCK_BYTES, count, HEADER_AREA_BYTES, unit
    )
    assert sum(size for _, _, size in found) == blocks * BLOCK_BYTES
    one_by_one = [
        place
        for block in range(start, start + blocks)
        for place in places(
            HEADER_AREA_BYTES + block * BLOCK_BYTES, BLOCK_BYTES, count, HEADER_AREA_BYTES, unit
        )
    ]
    assert len({(number, at) for number, at, _ in one_by_one}) == blocks
    split = [(n, at + k, BLOCK_BYTES) for n, at, size in found for k in range(0, size, BLOCK_BYTES)]
    assert split == one_by_one


def services(data_dir: Path, epoch: int) -> Services:
    return Services(node_id=1, epoch=epoch, cluster_id="c", data_dir=data_dir, clock=lambda: 0.0)


@asynccontextmanager
async def open_wal(data_dir: Path, epoch: int, paths: Sequence[str], **more: Any) -> AsyncIterator[BlockWal]:
    values = {"capacity": "3MiB", "group_bytes_max": "512KiB", "paths": list(paths)} | more
    opened = penstock_register_wal().open(Settings(**values), services(data_dir, epoch))
    async with cast("AbstractAsyncContextManager[BlockWal]", opened) as wal:
        yield wal


async def recovered(wal: BlockWal) -> list[bytes]:
    return [bytes(entry.data) async for entry in wal.recover()]


NAMES = ("a", "b", "c")


async def write(
    data_dir: Path, epoch: int, *bodies: bytes, paths: Sequence[str] = NAMES, **more: Any
) -> None:
    async with open_wal(data_dir, epoch, paths, **more) as wal:
        await recovered(wal)
        for body in bodies:
            await wal.append([body]).wait_durable()


async def test_entries_come_back_over_laps_and_from_outside(tmp_path: Path) -> None:
    """Small ones on one device, large ones on all, and those that go around the end of the ring."""
    rng = random.Random(1)
    expected: list[bytes] = []
    for epoch in range(1, 6):
        async with open_wal(tmp_path, epoch, NAMES) as wal:
            assert (await recovered(wal))[-len(expected) :] == expected
            for number in range(12):
                body = bytes([epoch * 16 + number]) * rng.choice((1, 5000, 60_000, 150_000, 400_000))
                append = wal.append([body])
                await append.wait_durable()
                expected.append(body)
                if number % 4 == 3:
                    await wal.trim(append.position)
                    expected = [body]
    settings_ = Settings(capacity=3 * 2**20, group_bytes_max=2**19, paths=list(NAMES))
    spec = penstock_register_wal()
    assert spec.read is not None
    assert spec.describe is not None
    found = [bytes(entry.data) async for entry in spec.read(settings_, services(tmp_path, 0))]
    assert found[-1:] == expected
    facts = await spec.describe(settings_, services(tmp_path, 0))
    assert (facts["error"], facts["path"]) == (None, ", ".join(str(tmp_path / name) for name in NAMES))


async def test_a_missing_a_foreign_and_a_swapped_device_are_named_and_nothing_is_changed(
    tmp_path: Path,
) -> None:
    await write(tmp_path, 1, b"precious")
    await write(tmp_path / "other", 1, b"other")
    before = {name: (tmp_path / name).read_bytes() for name in NAMES}
    identify = penstock_register_wal().identify
    assert identify is not None

    async def refused(paths: Sequence[str], told: str) -> None:
        with pytest.raises(ConfigError, match=told):
            await identify(Settings(capacity=3 * 2**20, paths=list(paths)), services(tmp_path, 0))
        with pytest.raises(ConfigError, match=told):
            await write(tmp_path, 2, paths=paths)
        assert before == {name: (tmp_path / name).read_bytes() for name in NAMES}

    await refused(("a", "c", "b"), f"another order.*path={tmp_path}/c found=3 expected=2")
    await refused(("a", "b"), f"another number of devices.*first={tmp_path}/a found=3 expected=2")
    await refused(("a", "b", "other/c"), f"another striped wal.*path={tmp_path}/other/c number=3")
    await refused(("b", "a", "c"), f"a later one of a striped wal.*in order: path={tmp_path}/b found=2 of=3")
    with pytest.raises(
        ConfigError, match=f"device of the striped wal is missing.*path={tmp_path}/gone number=3"
    ):
        await identify(Settings(capacity=3 * 2**20, paths=["a", "b", "gone"]), services(tmp_path, 0))
    (tmp_path / "empty").touch()
    await refused(("a", "empty", "c"), f"exchanged or emptied.*path={tmp_path}/empty number=2")
    with pytest.raises(ConfigError, match=f"its first one is empty or another.*first={tmp_path}/empty"):
        await write(tmp_path, 2, paths=("empty", "b", "c"))
    with pytest.raises(ConfigError, match=r"striped over several devices, name them all in wal.paths"):
        await write(tmp_path, 2, paths=(), path="a", capacity=2**20)
    with pytest.raises(CorruptError, match="isn't empty, so nothing was changed"):
        await write(tmp_path, 2, paths=(), path="b", capacity=2**20)
    await write(tmp_path, 2)


async def test_one_place_under_two_names_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "linked").touch()
    os.link(tmp_path / "linked", tmp_path / "same")
    spec = penstock_register_wal()
    assert spec.identify is not None
    assert spec.format is not None
    for paths in (["new", "./new"], ["linked", "same"]):
        settings = Settings(capacity=2**21, paths=paths)
        with pytest.raises(ConfigError, match=r"two of wal\.paths are one place"):
            await write(tmp_path, 1, paths=paths, capacity="2MiB")
        with pytest.raises(ConfigError, match=r"two of wal\.paths are one place"):
            await spec.identify(settings, services(tmp_path, 0))
        with pytest.raises(ConfigError, match=r"two of wal\.paths are one place"):
            await spec.format(settings, services(tmp_path, 0), "")
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "linked").read_bytes() == b""


def test_a_path_beside_paths_is_refused() -> None:
    with pytest.raises(ValueError, match="path is set, too: take one of the two out"):
        Settings(path="a", paths=["b", "c"])


def copied_and_cut(data_dir: Path, name: str, size: int) -> Path:
    copy = data_dir / "copy"
    copy.mkdir()
    for file in filter(Path.is_file, data_dir.iterdir()):
        shutil.copy(file, copy)
    assert (copy / name).stat().st_size > size
    os.truncate(copy / name, size)
    return copy


async def refuse_cut(data_dir: Path, name: str, size: int, paths: Sequence[str], **more: Any) -> None:
    """A copy of a live log, of which the file ``name`` was cut, isn't read to where that ends."""
    copy = copied_and_cut(data_dir, name, size)
    with pytest.raises(CorruptError, match="lost acknowledged entries"):
        await write(copy, 2, paths=paths, **more)
    read = penstock_register_wal().read
    assert read is not None
    values: dict[str, Any] = {"capacity": 3 * 2**20, "paths": list(paths)} | more
    settings = Settings(**values)
    with pytest.raises(CorruptError, match="lost acknowledged entries"):
        _ = [entry async for entry in read(settings, services(copy, 0))]


@pytest.mark.parametrize("largest", [2**19, BLOCK_BYTES], ids=["large groups", "groups below a stripe"])
async def test_a_device_that_lost_its_end_is_told_by_what_others_hold_behind_it(
    tmp_path: Path, largest: int
) -> None:
    """I10: behind the end of one file is nothing; behind that of one of several is what the others hold."""
    more: dict[str, Any] = {"group_bytes_max": largest, "entry_bytes_max": largest}
    async with open_wal(tmp_path, 1, NAMES, **more) as wal:
        await recovered(wal)
        appends = [wal.append([b"x" * min(30_000, largest - 200)]) for _ in range(40)]
        await appends[-1].wait_durable()
        await refuse_cut(tmp_path, "b", HEADER_AREA_BYTES, NAMES, **more)


@pytest.mark.parametrize("lost_bytes", [50_000, 400_000], ids=["a little", "more than is in flight"])
async def test_a_file_that_lost_its_end_is_told_by_what_its_beginning_holds(
    tmp_path: Path, lost_bytes: int
) -> None:
    """I10: the log goes on at the beginning of the ring."""
    more: dict[str, Any] = {
        "path": "a",
        "capacity": 2**20,
        "group_bytes_max": 2**16,
        "entry_bytes_max": 2**16,
    }
    async with open_wal(tmp_path, 1, (), **more) as wal:
        await recovered(wal)
        appends = [wal.append([b"x" * 30_000]) for _ in range(12)]
        await appends[-1].wait_durable()
        await wal.trim(appends[-1].position)
        appends = [wal.append([b"x" * 30_000]) for _ in range(24)]
        await appends[-1].wait_durable()
        await refuse_cut(tmp_path, "a", 2**20 - lost_bytes, (), **more)


async def test_a_striped_log_that_hosts_share(tmp_path: Path) -> None:
    with ExitStack() as stack:
        paths = [str(stack.enter_context(loop_device(tmp_path / name, 8 * 2**20))) for name in ("one", "two")]
        more = {"capacity": 16 * 2**20, "shared": True}
        async with open_wal(tmp_path, 1, paths, **more) as old:
            await recovered(old)
            await old.append([b"x" * 300_000]).wait_durable()
            async with open_wal(tmp_path, 2, paths, **more) as new:
                assert await recovered(new) == [b"x" * 300_000]
                await new.append([b"y" * 300_000]).wait_durable()
                settings = Settings(capacity=16 * 2**20, shared=True, paths=paths)
                spec = penstock_register_wal()
                assert spec.read is not None
                assert spec.describe is not None
                found = [bytes(entry.data) async for entry in spec.read(settings, services(tmp_path, 0))]
                assert found == [b"x" * 300_000, b"y" * 300_000]
                facts = await spec.describe(settings, services(tmp_path, 0))
                assert (facts["epoch"], facts["shared"], facts["error"]) == (2, True, None)
                assert facts["left_alone_bytes"], "the old owner is alive, and may be in the midst of a write"
