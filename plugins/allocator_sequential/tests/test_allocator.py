"""The sequential allocator: recycling, pinning, waiting, and the account, against a model."""

from __future__ import annotations

import gc
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from penstock_allocator_sequential import _allocator, penstock_register_allocator
from penstock_allocator_sequential._allocator import (
    SequentialAllocator,
    SequentialAllocatorSettings,
    open_allocator,
)
from penstock_allocator_sequential._mapping import class_bytes
from tests.depth import examples

from penstock.errors import ClosedError, FullError, InvalidRequestError, InvariantError
from penstock.spi import Services
from penstock.spi.allocator import Allocation, Charge

KIB = 1024
MIB = 1024 * 1024
SERVICES = Services(node_id=1, epoch=1, cluster_id="c", data_dir=Path(), clock=lambda: 0.0)

pytestmark = pytest.mark.anyio


def make(limit: int = 16 * MIB, chunk: int = 64 * KIB, idle: int = 4) -> SequentialAllocator:
    def soon(function: Callable[[], None]) -> None:
        function()

    config = SequentialAllocatorSettings(limit=limit, chunk_bytes=chunk, idle_chunks_max=idle)
    return SequentialAllocator(config, soon)


async def settle() -> None:
    for _ in range(4):
        await checkpoint()


# Cutting and recycling


def test_allocations_are_writable_exact_and_apart() -> None:
    allocator = make()
    pieces = [allocator.allocate_nowait(size, "append") for size in (1, 7, 1000, 40 * KIB, 300 * KIB)]
    for number, piece in enumerate(pieces):
        assert len(piece.view) == piece.size
        piece.view[:] = bytes([number]) * piece.size
    for number, piece in enumerate(pieces):
        assert bytes(piece.view) == bytes([number]) * piece.size


def test_purposes_do_not_share_a_chunk() -> None:
    allocator = make(chunk=64 * KIB)
    allocator.allocate_nowait(10, "append")
    allocator.allocate_nowait(10, "upload")
    assert allocator.statistics().used_by_purpose == {"append": 64 * KIB, "upload": 64 * KIB}


def test_released_chunk_is_reused_and_accounted_as_idle() -> None:
    allocator = make(chunk=64 * KIB)
    large = allocator.allocate_nowait(256 * KIB, "append")
    large.release()
    assert allocator.statistics().used_by_purpose == {"idle": 256 * KIB}
    again = allocator.allocate_nowait(256 * KIB, "upload")
    assert allocator.statistics().used_by_purpose == {"upload": 256 * KIB}
    again.release()


def test_idle_memory_has_a_bound() -> None:
    allocator = make(chunk=64 * KIB, idle=2)
    pieces = [allocator.allocate_nowait(64 * KIB, "append") for _ in range(5)]
    for piece in pieces:
        piece.release()
    assert allocator.statistics().used_bytes == 128 * KIB


def test_idle_memory_is_given_back_before_anyone_is_refused() -> None:
    allocator = make(limit=MIB, chunk=32 * KIB, idle=100)
    pieces = [allocator.allocate_nowait(32 * KIB, "append") for _ in range(8)]
    for piece in pieces:
        piece.release()
    assert allocator.statistics().used_by_purpose == {"idle": 256 * KIB}
    whole = allocator.allocate_nowait(MIB, "append")
    assert allocator.statistics().used_by_purpose == {"append": MIB}
    whole.release()


def test_empty_open_chunks_are_given_back_before_anyone_is_refused() -> None:
    allocator = make(limit=MIB, chunk=32 * KIB)
    for purpose in ("a", "b", "c"):
        allocator.allocate_nowait(1, purpose).release()
    assert allocator.allocate_nowait(MIB, "append").size == MIB


def test_near_the_limit_chunks_get_smaller_instead_of_refusing() -> None:
    allocator = make(limit=MIB, chunk=32 * KIB)
    allocator.charge_nowait(MIB - 8 * KIB, "block_cache")
    assert allocator.allocate_nowait(5 * KIB, "append").size == 5 * KIB
    with pytest.raises(FullError):
        allocator.allocate_nowait(5 * KIB, "append")


def test_double_release_is_a_bug_that_shows() -> None:
    allocator = make()
    for taken in (allocator.allocate_nowait(5, "append"), allocator.charge_nowait(5, "append")):
        taken.release()
        with pytest.raises(InvariantError):
            taken.release()


def test_a_size_below_one_is_refused() -> None:
    allocator = make()
    allocator.allocate_nowait(5, "append")
    for size in (0, -1):
        with pytest.raises(InvalidRequestError):
            allocator.allocate_nowait(size, "append")
    with pytest.raises(InvalidRequestError):
        allocator.charge_nowait(-1, "append")


@pytest.mark.parametrize("size", [1, 4096, 4097, 200 * KIB, 200 * KIB + 1, MIB - 1, MIB, 5 * MIB + 3])
def test_size_classes_waste_at_most_an_eighth_or_a_page(size: int) -> None:
    assert size <= class_bytes(size) <= size + max(4095, size // 8)
    assert class_bytes(size) % 4096 == 0
    assert class_bytes(class_bytes(size)) == class_bytes(size)


# Pinned memory


def test_memory_with_a_view_is_never_handed_out_again() -> None:
    allocator = make()
    piece = allocator.allocate_nowait(256 * KIB, "append")
    piece.view[:4] = b"slow"
    response = piece.view[:4]
    piece.release()
    assert allocator.statistics().used_by_purpose == {"pinned": 256 * KIB}
    for _ in range(20):
        other = allocator.allocate_nowait(256 * KIB, "append")
        other.view[:4] = b"fast"
        other.release()
    assert bytes(response) == b"slow"


def test_memory_is_recycled_once_its_last_view_is_gone() -> None:
    allocator = make()
    piece = allocator.allocate_nowait(256 * KIB, "append")
    response = piece.view[10:20][1:3]
    piece.release()
    assert allocator.statistics().used_by_purpose == {"pinned": 256 * KIB}
    del response
    again = allocator.allocate_nowait(256 * KIB, "append")
    assert allocator.statistics().used_by_purpose == {"append": 256 * KIB}
    again.release()


async def test_a_waiter_is_woken_when_the_last_view_goes_away() -> None:
    config = SequentialAllocatorSettings(limit=MIB, chunk_bytes=32 * KIB)
    async with open_allocator(config, SERVICES) as allocator:
        held = allocator.allocate_nowait(MIB, "append")
        views = [held.view[:1]]
        held.release()
        got: list[Allocation] = []

        async def wait() -> None:
            got.append(await allocator.allocate(MIB, "append"))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await settle()
            assert not got
            assert allocator.statistics().used_by_purpose == {"pinned": MIB}
            thread = threading.Thread(target=views.clear)
            thread.start()
        thread.join()
        assert got[0].size == MIB
        got[0].release()


# Limit, pressure and waiting


def test_over_the_limit_is_refused_and_releasing_helps() -> None:
    allocator = make(limit=MIB, chunk=32 * KIB)
    first = allocator.allocate_nowait(MIB // 2, "append")
    charge = allocator.charge_nowait(MIB // 2, "block_cache")
    with pytest.raises(FullError):
        allocator.allocate_nowait(1, "append")
    with pytest.raises(FullError):
        allocator.charge_nowait(1, "append")
    charge.release()
    assert allocator.allocate_nowait(MIB // 4, "append").size == MIB // 4
    first.release()


@pytest.mark.parametrize("kind", ["allocate", "charge"])
def test_one_request_over_the_whole_limit_passes_alone(kind: str) -> None:
    allocator = make(limit=MIB, chunk=32 * KIB)

    def take() -> Charge:
        if kind == "charge":
            return allocator.charge_nowait(3 * MIB, "append")
        return allocator.allocate_nowait(3 * MIB, "append")

    small = allocator.allocate_nowait(1, "append")
    with pytest.raises(FullError):
        take()
    small.release()
    whole = take()
    with pytest.raises(FullError):
        take()
    with pytest.raises(FullError):
        allocator.charge_nowait(1, "append")
    whole.release()
    take().release()


def test_pressure_is_asked_for_what_is_missing_before_refusing() -> None:
    allocator = make(limit=MIB, chunk=32 * KIB)
    cached = [allocator.charge_nowait(128 * KIB, "block_cache") for _ in range(8)]
    asked: list[int] = []

    def evict(wanted: int) -> None:
        asked.append(wanted)
        freed = 0
        while cached and freed < wanted:
            charge = cached.pop()
            freed += charge.size
            charge.release()

    allocator.add_pressure_listener(evict)
    assert allocator.allocate_nowait(200 * KIB, "append").size == 200 * KIB
    assert asked == [200 * KIB]
    assert len(cached) == 6


def test_pressure_that_frees_nothing_ends_in_full() -> None:
    allocator = make(limit=MIB)
    allocator.charge_nowait(MIB, "log_cache")
    asked: list[int] = []
    allocator.add_pressure_listener(asked.append)
    with pytest.raises(FullError):
        allocator.charge_nowait(10, "append")
    assert asked == [10]


def test_who_lets_go_of_parts_of_a_chunk_is_asked_until_the_chunk_is_free_and_no_memory_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fresh memory costs a page fault per page, so what is evicted is used again, chunk by chunk."""
    allocator = make(limit=4 * MIB, chunk=64 * KIB)
    cached: deque[Allocation] = deque()

    def evict(wanted: int) -> int:
        freed = 0
        while cached and freed < wanted:
            freed += cached[0].size
            cached.popleft().release()
        return freed

    allocator.add_pressure_listener(evict)
    for _ in range(4096):
        cached.append(allocator.allocate_nowait(KIB, "append"))
    made: list[int] = []
    monkeypatch.setattr(_allocator, "map_memory", made.append)  # what it gives is no memory
    for _ in range(8192):
        cached.append(allocator.allocate_nowait(KIB, "append"))
    assert not made
    assert allocator.statistics().peak_bytes <= 4 * MIB


async def test_waiters_are_served_in_order_and_not_overtaken() -> None:
    config = SequentialAllocatorSettings(limit=MIB, chunk_bytes=32 * KIB)
    async with open_allocator(config, SERVICES) as allocator:
        held = [allocator.charge_nowait(256 * KIB, "x") for _ in range(4)]
        order: list[str] = []
        got: list[Charge] = []

        async def take(name: str, size: int, *, memory: bool) -> None:
            got.append(
                await (allocator.allocate(size, "append") if memory else allocator.charge(size, "append"))
            )
            order.append(name)

        async with anyio.create_task_group() as group:
            group.start_soon(lambda: take("large", 512 * KIB, memory=True))
            await settle()
            group.start_soon(lambda: take("small", KIB, memory=False))
            await settle()
            assert allocator.statistics().waiting == 2
            held.pop().release()
            await settle()
            assert order == []
            with pytest.raises(FullError):
                allocator.charge_nowait(1, "append")
            held.pop().release()
            await settle()
            assert order == ["large"]
            held.pop().release()
        assert order == ["large", "small"]
        for taken in [*got, *held]:
            taken.release()


async def test_room_in_an_open_chunk_is_no_way_around_the_queue() -> None:
    config = SequentialAllocatorSettings(limit=MIB, chunk_bytes=32 * KIB)
    async with open_allocator(config, SERVICES) as allocator, anyio.create_task_group() as group:
        first = allocator.allocate_nowait(1, "append")
        group.start_soon(allocator.allocate, MIB, "large")
        await settle()
        with pytest.raises(FullError):
            allocator.allocate_nowait(1, "append")
        first.release()


async def test_a_cancelled_waiter_gives_up_its_place_and_leaks_nothing() -> None:
    config = SequentialAllocatorSettings(limit=MIB, chunk_bytes=32 * KIB)
    async with open_allocator(config, SERVICES) as allocator:
        held = allocator.charge_nowait(MIB // 2, "x")
        got: list[Charge] = []

        async def small() -> None:
            got.append(await allocator.charge(MIB // 2, "y"))

        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(allocator.allocate, MIB, "blocked")
                await settle()
                group.start_soon(small)
                await settle()
                assert got == []
            del scope
            group.cancel_scope.cancel()
        assert allocator.statistics().waiting == 0
        held.release()
        assert allocator.statistics().used_bytes == 0


async def test_cancelling_the_first_waiter_serves_the_next() -> None:
    config = SequentialAllocatorSettings(limit=MIB, chunk_bytes=32 * KIB)
    async with open_allocator(config, SERVICES) as allocator:
        held = allocator.charge_nowait(MIB // 2, "x")
        got: list[Charge] = []
        scope = anyio.CancelScope()

        async def first() -> None:
            with scope:
                await allocator.allocate(MIB, "blocked")

        async def second() -> None:
            got.append(await allocator.charge(MIB // 2, "y"))

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await settle()
            group.start_soon(second)
            await settle()
            assert got == []
            scope.cancel()
        assert got[0].size == MIB // 2
        got[0].release()
        held.release()
        assert allocator.statistics().used_bytes == 0


async def test_cancelled_after_the_grant_gives_it_back() -> None:
    config = SequentialAllocatorSettings(limit=MIB, chunk_bytes=32 * KIB)
    async with open_allocator(config, SERVICES) as allocator:
        held = allocator.charge_nowait(MIB, "x")
        scope = anyio.CancelScope()

        async def wait() -> None:
            with scope:
                await allocator.charge(MIB, "y")

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await settle()
            scope.cancel()
            held.release()
            assert allocator.statistics().used_by_purpose == {"y": MIB}
        assert allocator.statistics().used_bytes == 0


async def test_leaving_the_context_answers_waiters_with_closed() -> None:
    config = SequentialAllocatorSettings(limit=MIB, chunk_bytes=32 * KIB)
    errors: list[ClosedError] = []
    async with anyio.create_task_group() as group:
        async with open_allocator(config, SERVICES) as allocator:
            held = allocator.allocate_nowait(MIB, "x")
            held.view[:2] = b"ok"

            async def wait() -> None:
                try:
                    await allocator.allocate(MIB, "y")
                except ClosedError as error:
                    errors.append(error)

            group.start_soon(wait)
            await settle()
    assert len(errors) == 1
    with pytest.raises(ClosedError):
        allocator.allocate_nowait(1, "x")
    with pytest.raises(ClosedError):
        await allocator.charge(1, "x")
    assert bytes(held.view[:2]) == b"ok"
    held.release()
    assert allocator.statistics().used_bytes == 0


async def test_the_spec_opens_what_it_says() -> None:
    spec = penstock_register_allocator()
    assert spec.name == "allocator_sequential"
    async with spec.open(spec.settings(limit=MIB), SERVICES) as allocator:
        assert allocator.capabilities == spec.capabilities
        assert allocator.statistics().limit_bytes == MIB


# Against a model

LIMIT = 512 * KIB


class AllocatorMachine(RuleBasedStateMachine):
    """Random requests, releases and slow readers. No byte is lost, shared or over the limit."""

    @initialize(idle=st.integers(0, 8))
    def start(self, idle: int) -> None:
        self.allocator = make(limit=LIMIT, chunk=16 * KIB, idle=idle)
        self.live: list[tuple[Allocation, int]] = []
        self.charges: list[tuple[Charge, int]] = []
        self.readers: list[tuple[memoryview, int]] = []
        self.stamp = 0

    @rule(
        size=st.one_of(st.integers(1, 64), st.integers(1, 9 * KIB), st.integers(1, 2 * LIMIT)),
        purpose=st.sampled_from("abc"),
    )
    def allocate(self, size: int, purpose: str) -> None:
        used = self.allocator.statistics().used_bytes
        try:
            piece = self.allocator.allocate_nowait(size, purpose)
        except FullError:
            assert self.live or self.charges or self.readers
            return
        assert (
            size <= LIMIT
            or used == self.allocator.statistics().used_by_purpose.get("idle", 0)
            or not self.live
        )
        self.stamp = (self.stamp + 1) % 251
        piece.view[:] = bytes([self.stamp]) * size
        self.live.append((piece, self.stamp))

    @rule(size=st.integers(0, LIMIT // 4), purpose=st.sampled_from("abx"))
    def charge(self, size: int, purpose: str) -> None:
        try:
            self.charges.append((self.allocator.charge_nowait(size, purpose), size))
        except FullError:
            assert self.live or self.charges or self.readers

    @precondition(lambda self: self.charges)
    @rule(data=st.data())
    def release_charge(self, data: st.DataObject) -> None:
        self.charges.pop(data.draw(st.integers(0, len(self.charges) - 1)))[0].release()

    @precondition(lambda self: self.live)
    @rule(data=st.data(), keep_view=st.booleans())
    def release(self, data: st.DataObject, keep_view: bool) -> None:
        piece, stamp = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        if keep_view:
            self.readers.append((piece.view[: max(1, piece.size // 2)], stamp))
        piece.release()

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def finish_reading(self, data: st.DataObject) -> None:
        self.readers.pop(data.draw(st.integers(0, len(self.readers) - 1)))

    @invariant()
    def account_is_right(self) -> None:
        if not hasattr(self, "allocator"):
            return
        state = self.allocator.statistics()
        assert sum(state.used_by_purpose.values()) == state.used_bytes
        assert min(state.used_by_purpose.values(), default=1) > 0
        largest = max(
            [piece.size for piece, _ in self.live] + [len(view) * 2 for view, _ in self.readers], default=0
        )
        assert state.used_bytes <= max(LIMIT, class_bytes(largest) if largest else 0)
        assert state.used_bytes >= sum(p.size for p, _ in self.live) + sum(size for _, size in self.charges)
        if not self.readers:
            assert "pinned" not in state.used_by_purpose

    @invariant()
    def nobody_writes_to_anybody_elses_memory(self) -> None:
        for piece, stamp in getattr(self, "live", []):
            assert bytes(piece.view) == bytes([stamp]) * piece.size
        for view, stamp in getattr(self, "readers", []):
            assert bytes(view) == bytes([stamp]) * len(view)

    def teardown(self) -> None:
        if not hasattr(self, "allocator"):
            return
        self.readers.clear()
        for piece, _ in self.live:
            piece.release()
        for charge, _ in self.charges:
            charge.release()
        self.live.clear()
        self.allocator.close()
        gc.collect(0)
        assert self.allocator.statistics().used_bytes == 0


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = hypothesis_settings(
    max_examples=examples(30), stateful_step_count=40, deadline=None
)
