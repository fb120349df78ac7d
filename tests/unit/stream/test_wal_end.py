"""A WAL that ends takes the engine with it, but not before what was acknowledged is uploaded, in bounded time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from tests.patience import HANG_S
from tests.unit.stream.harness import World

from penstock.errors import ClosedError, FencedError, InvariantError, PenstockError, UnavailableError
from penstock.spi.events import WalDegraded, WalRestored
from penstock.spi.wal import WalEntry
from penstock.stream import engine as engine_module

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def ended(
    world: World, *, appends: bool, state: str = "failed", fail_puts: bool = False
) -> PenstockError:
    """Two records are acknowledged, then the WAL ends, with an append on its way or without; the engine's error."""
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the body is what is ended
        async with world.open() as e:
            e.append(b"one")
            e.append(b"two")
            world.wal.automatic = False
            e.store.fail_puts = fail_puts
            lost = e.append(b"never acknowledged") if appends else []
            world.wal.end(state)
            assert [type(error) for error in lost] == [UnavailableError] * appends
            with pytest.raises(ClosedError):
                e.append(b"too late")
            await anyio.sleep_forever()
    leaves: list[BaseException] = [caught.value]
    while isinstance(leaves[0], BaseExceptionGroup):
        leaves = list(leaves[0].exceptions)
    (error,) = leaves
    assert isinstance(error, PenstockError)
    return error


@pytest.mark.parametrize("appends", [True, False])
async def test_what_was_acknowledged_is_uploaded_before_the_end(world: World, appends: bool) -> None:
    """And the error is one after which a restart helps."""
    error = await ended(world, appends=appends)
    assert isinstance(error, UnavailableError)
    assert "the fake wal failed for a reason" in str(error)
    world.wal.crash()
    world.wal.durable.clear()  # as if the disk gave nothing back
    async with world.open() as e:
        assert await e.read_all() == [(0, b"one"), (1, b"two")]


async def test_what_is_acknowledged_after_the_end_was_noticed_is_uploaded_too(world: World) -> None:
    """Several groups are on their way to the medium: one fails, and those before it still get there."""
    with pytest.raises(ExceptionGroup), anyio.fail_after(HANG_S):  # noqa: PT012 - the body is what is ended
        async with world.open() as e:
            e.append(b"one")
            world.wal.automatic = False
            errors = e.append(b"two")
            world.wal.state = "failed"
            e.store.gate = anyio.Event()
            with pytest.raises(ClosedError):
                e.append(b"too late")
            await anyio.wait_all_tasks_blocked()
            world.wal.complete()
            assert errors == [None]
            e.store.gate.set()
            await anyio.sleep_forever()
    world.wal.crash()
    world.wal.durable.clear()  # as if the disk gave nothing back
    async with world.open() as e:
        assert await e.read_all() == [(0, b"one"), (1, b"two")]


async def test_a_wal_that_never_answers_holds_up_the_end_for_a_bounded_time(world: World) -> None:
    """What was acknowledged before is uploaded in the meantime."""
    world.settings = replace(world.settings, last_upload_ms=2000)
    with pytest.raises(ExceptionGroup), anyio.fail_after(HANG_S):  # noqa: PT012 - the body is what is ended
        async with world.open() as e:
            e.append(b"one")
            world.wal.automatic = False
            e.append(b"two")
            world.wal.state = "failed"
            await anyio.sleep_forever()
    world.wal.crash()
    world.wal.durable.clear()  # as if the disk gave nothing back
    async with world.open() as e:
        assert await e.read_all() == [(0, b"one")]


async def test_a_wal_that_ends_while_nothing_is_appended_is_noticed(world: World) -> None:
    with pytest.raises(ExceptionGroup), anyio.fail_after(HANG_S):  # noqa: PT012 - the body is what is ended
        async with world.open():
            world.wal.state = "failed"
            await anyio.sleep_forever()


async def test_a_store_that_fails_too_holds_up_the_end_for_a_bounded_time(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.settings = replace(world.settings, last_upload_ms=50)
    error = await ended(world, appends=True, fail_puts=True)
    assert "the fake wal failed for a reason" in str(error)
    assert (
        "not all of it could be uploaded, the rest is only in the wal that has ended: bytes=6" in caplog.text
    )
    world.wal.crash()
    async with world.open() as e:
        assert await e.read_all() == [(0, b"one"), (1, b"two")]


async def test_a_fenced_owner_uploads_nothing_more(world: World) -> None:
    """I3: whoever has the WAL now recovers from it."""
    error = await ended(world, appends=True, state="fenced")
    assert isinstance(error, FencedError)
    assert world.uploads == []


async def test_a_wal_that_acknowledges_past_an_untold_error_ends_the_broker_and_all_are_answered(
    world: World,
) -> None:
    """Once an append fails, every append made after it, until the error was told, fails too."""
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - the body is what is ended
        async with world.open() as e:
            e.append(b"one")
            world.wal.automatic = False
            failed, later = e.append(b"two"), e.append(b"three")
            (first, _), (second, data) = world.wal.pending
            world.wal.pending, world.wal.automatic = [], True
            first.complete(UnavailableError("the fake wal lost it"))
            world.wal.durable.append(WalEntry(second.position, second.next_position, memoryview(data)))
            second.complete()
            assert [type(error) for error in failed + later] == [UnavailableError] * 2
            assert "which was made before that error was told" in str(later[0])
            await anyio.sleep_forever()
    leaves: list[BaseException] = [caught.value]
    while isinstance(leaves[0], BaseExceptionGroup):
        leaves = list(leaves[0].exceptions)
    assert [type(leaf) for leaf in leaves] == [InvariantError]
    assert world.uploads, "what was acknowledged is uploaded first"


async def test_a_degraded_wal_goes_on_and_observers_hear_of_it_and_of_its_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "WAL_LOOK_S", 0.001)
    news = anyio.Event()

    class Heard(list[WalDegraded | WalRestored]):
        def append(self, event: WalDegraded | WalRestored) -> None:
            super().append(event)
            news.set()

    world.health = Heard()
    async with world.open() as e:
        for state in ("degraded", "open"):
            news = anyio.Event()
            world.wal.state = state
            with anyio.fail_after(HANG_S):
                await news.wait()
            e.append(b"x")
    degraded, restored = world.health
    assert isinstance(degraded, WalDegraded)
    assert isinstance(restored, WalRestored)
    assert degraded.location == "fake wal"
