"""What fails in the engine leaves no errors, frames and payload that only the garbage collector frees."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from tests.garbage import nothing_to_collect
from tests.patience import HANG_S
from tests.unit.stream.harness import Engine, World

from penstock.errors import FencedError, PenstockError, UnavailableError

pytestmark = pytest.mark.anyio
TIMES = 4
PAYLOAD = b"x" * 10_000


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def cold(e: Engine) -> None:
    for _ in range(3):
        e.append(PAYLOAD)
    await e.engine.flush()
    e.log_cache.evict(2**30)


async def read_fails(e: Engine) -> None:
    try:
        await e.engine.reads.read(e.stream, 0, 10**6)
    except PenstockError:
        return
    raise AssertionError("the read should have failed")


async def test_failed_appends_leave_nothing_to_collect(world: World) -> None:
    async with world.open() as e:
        world.wal.automatic = False

        def once() -> None:
            outcomes = [e.append(PAYLOAD) for _ in range(3)]
            world.wal.fail()
            assert all(isinstance(one[0], UnavailableError) for one in outcomes)

        once()
        with nothing_to_collect():
            for _ in range(TIMES):
                once()


async def test_failed_uploads_leave_nothing_to_collect(world: World) -> None:
    async with world.open() as e:
        await cold(e)
        with nothing_to_collect():
            e.store.fail_puts = True
            e.append(PAYLOAD)
            e.engine._freeze()
            with anyio.fail_after(HANG_S):
                while e.engine.statistics().uploader.failures < 2:  # noqa: ASYNC110
                    await anyio.sleep(0.01)
                e.store.fail_puts = False
                await e.engine.flush()


async def test_failed_cold_reads_leave_nothing_to_collect(world: World) -> None:
    async def fail() -> None:
        raise UnavailableError("the steered store fails")

    async with world.open() as e:
        await cold(e)
        e.store.before_get = fail
        await read_fails(e)
        with nothing_to_collect():
            for _ in range(TIMES):
                await read_fails(e)


async def test_reads_of_damaged_objects_leave_nothing_to_collect(world: World) -> None:
    """The checksum is compared in a thread, which has the whole run of blocks in its hands."""
    async with world.open() as e:
        await cold(e)
        (key,) = await e.store.keys()
        data = bytearray(await e.store.get(key))
        data[5_000] ^= 1
        await e.store.put(key, [data])
        await read_fails(e)
        with nothing_to_collect():
            for _ in range(TIMES):
                await read_fails(e)


async def test_cancelled_cold_reads_leave_nothing_to_collect(world: World) -> None:
    async with world.open() as e:
        await cold(e)

        async def once() -> None:
            held = anyio.Event()
            e.store.before_get = held.wait
            with anyio.move_on_after(0.01):
                await e.engine.reads.read(e.stream, 0, 10**6)
            held.set()
            await anyio.wait_all_tasks_blocked()

        await once()
        with nothing_to_collect():
            for _ in range(TIMES):
                await once()


async def test_who_stops_waiting_for_room_leaves_nothing_to_collect(world: World) -> None:
    async with world.open() as e:
        held = e.allocator.allocate_nowait(world.limit, "append")

        async def once() -> None:
            with anyio.move_on_after(0.001):
                await e.engine.wait_for_room(len(PAYLOAD))
            with anyio.move_on_after(0.001):
                await e.allocator.allocate(len(PAYLOAD), "append")

        await once()
        with nothing_to_collect():
            for _ in range(TIMES):
                await once()
        held.release()


async def test_refused_commands_leave_nothing_to_collect(world: World) -> None:
    async with world.open() as e:

        async def once() -> None:
            e.engine._node_epoch += 1
            with pytest.raises(FencedError):
                await e.engine.trim_streams([(e.stream.stream_id, 0)])
            e.engine._node_epoch -= 1

        await once()
        with nothing_to_collect():
            for _ in range(TIMES):
                await once()
