"""The keyed state log by itself, with a user that isn't groups: it carries any state, over crashes at any point."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.depth import examples
from tests.unit.coordinator.conftest import MemoryLog, settle

from penstock.account import Ledger
from penstock.coordinator.state_log import StateLog, StateLogCounters, StateLogSettings, cut_in_portions
from penstock.errors import ClosedError, CorruptError, FencedError, UnavailableError
from penstock.log.errors import KafkaError
from penstock.log.keyed_log import Record
from penstock.wire.error_codes import ErrorCode

pytestmark = pytest.mark.anyio


class Counts:
    """How often each transactional id has committed: what a coordinator of something else than groups might keep."""

    def __init__(self) -> None:
        self.of: dict[str, int] = {}

    def apply(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            self.of.pop(key.decode(), None)
        elif len(value) != 4:
            raise CorruptError(f"a count is malformed: key={key!r}")
        else:
            self.of[key.decode()] = struct.unpack(">i", value)[0]

    def live(self) -> Iterator[Record]:
        for name, count in self.of.items():
            yield name.encode(), struct.pack(">i", count)


class Life:
    """One coordinator's time with a partition: a loaded log and what is acknowledged."""

    def __init__(self, log: MemoryLog, **changes: int) -> None:
        self.memory = Ledger("counts", 1_000_000)
        self.counters = StateLogCounters()
        bounds = StateLogSettings(**{"checkpoint_records": 6, "append_bytes_max": 40, **changes})
        self.log = StateLog(0, log, bounds, self.memory, self.counters)
        self.counts = Counts()
        self.answers: list[ErrorCode] = []

    def write(self, records: Sequence[Record]) -> None:
        def done(error: ErrorCode) -> None:
            if error is ErrorCode.NONE:
                for record in records:
                    self.counts.apply(*record)
            self.answers.append(error)

        self.log.submit(records, done)


class CrashingLog(MemoryLog):
    """An append that is cancelled lands nevertheless, if told so: nobody knows which it is."""

    lands = False

    async def append(self, partition: int, records: Sequence[Record]) -> int:
        try:
            return await super().append(partition, records)
        except anyio.get_cancelled_exc_class():
            if self.lands:
                base = self.ends[partition]
                self.records[partition] += [(base + index, one) for index, one in enumerate(records)]
                self.ends[partition] += len(records)
            raise


def record(name: str, count: int | None) -> Record:
    return name.encode(), None if count is None else struct.pack(">i", count)


async def loaded(log: MemoryLog) -> dict[str, int]:
    """What a fresh coordinator finds."""
    life = Life(log)
    await life.log.load(life.counts)
    return life.counts.of


# -- a set is whole -------------------------------------------------------------------------------------------


async def test_a_set_of_records_is_one_append_however_large_it_is(log: MemoryLog) -> None:
    life = Life(log, append_bytes_max=10, checkpoint_records=1_000)
    await life.log.load(life.counts)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(life.log.run)
        life.write([record(f"transaction-{number}", number) for number in range(50)])
        life.write([record("x", 1)])
        await settle()
        assert log.batches[:2] == [50, 1]
        assert life.answers == [ErrorCode.NONE] * 2
        life.log.close()
    assert await loaded(log) == life.counts.of


async def test_small_sets_that_wait_are_appended_together_up_to_the_bound(log: MemoryLog) -> None:
    life = Life(log, append_bytes_max=40, checkpoint_records=1_000)
    await life.log.load(life.counts)
    async with anyio.create_task_group() as tasks:
        log.gate = anyio.Event()
        tasks.start_soon(life.log.run)
        for number in range(9):
            life.write([record("abcd", number)])  # 8 bytes
        await settle()
        log.gate.set()
        await settle()
        assert log.batches == [5, 4]
        assert life.memory.used_bytes == 0
        life.log.close()


async def test_cutting_keeps_the_order_and_takes_one_record_at_least() -> None:
    records = [record("a" * size, 1) for size in (1, 1, 100, 1)]
    sets = [one async for one in cut_in_portions(iter(records), 20)]
    assert [len(some) for some in sets] == [2, 1, 1]
    assert [one for some in sets for one in some] == records
    assert [one async for one in cut_in_portions(iter(()), 20)] == []


# -- what is told ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (UnavailableError("no"), ErrorCode.COORDINATOR_NOT_AVAILABLE),
        (KafkaError(ErrorCode.KAFKA_STORAGE_ERROR, "damaged"), ErrorCode.COORDINATOR_NOT_AVAILABLE),
        (KafkaError(ErrorCode.NOT_LEADER_OR_FOLLOWER, "closed"), ErrorCode.NOT_COORDINATOR),
        (FencedError("another owner"), ErrorCode.NOT_COORDINATOR),
        (ClosedError("closed"), ErrorCode.NOT_COORDINATOR),
    ],
)
async def test_a_set_that_is_not_appended_is_answered_by_who_may_come_again(
    log: MemoryLog, error: Exception, told: ErrorCode
) -> None:
    life = Life(log)
    await life.log.load(life.counts)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(life.log.run)
        log.error = error  # type: ignore[assignment]
        life.write([record("a", 1)])
        await settle()
        assert life.answers == [told]
        assert life.counts.of == {}
        assert life.counters.failures == 1
        life.log.close()


async def test_closing_answers_what_waits_and_lets_the_running_append_end(log: MemoryLog) -> None:
    life = Life(log)
    await life.log.load(life.counts)
    async with anyio.create_task_group() as tasks:
        log.gate = anyio.Event()
        tasks.start_soon(life.log.run)
        life.write([record("a", 1)])
        await settle()
        life.write([record("a", 2)])
        life.log.close()
        life.write([record("a", 3)])
        assert life.answers == [ErrorCode.NOT_COORDINATOR] * 2
        log.gate.set()
    assert life.answers[2:] == [ErrorCode.NONE]
    assert await loaded(log) == {"a": 1}
    assert life.memory.used_bytes == 0


async def test_a_closed_checkpoint_trims_nothing_that_it_has_not_written_again(log: MemoryLog) -> None:
    life = Life(log, checkpoint_records=20, append_bytes_max=20)
    await life.log.load(life.counts)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(life.log.run)
        life.write([record(f"n{number:02}", number) for number in range(19)])
        await settle()
        log.gate = anyio.Event()
        life.write([record("last", 1)])
        await settle()
        gate, log.gate = log.gate, anyio.Event()  # the checkpoint's first portion waits for the second gate
        gate.set()
        await settle()
        life.log.close()
        log.gate.set()
    assert log.starts == [0, 0, 0]
    assert await loaded(log) == {**{f"n{number:02}": number for number in range(19)}, "last": 1}


class BrokenLog(MemoryLog):
    """An append ends with a bug's error, while others wait."""

    def __init__(self) -> None:
        super().__init__()
        self.breaks = anyio.Event()

    async def append(self, partition: int, records: Sequence[Record]) -> int:
        await self.breaks.wait()
        raise RuntimeError("a bug")


async def test_whoever_waits_is_answered_when_the_writer_ends_with_a_bug() -> None:
    log = BrokenLog()
    life = Life(log)
    await life.log.load(life.counts)

    async def write_beside() -> None:
        life.write([record("a", 1)])
        await settle()
        life.write([record("a" * 100, 2)])
        log.breaks.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write_beside)
        with pytest.raises(RuntimeError, match="a bug"):
            await life.log.run()
    life.write([record("a", 3)])
    assert life.answers == [ErrorCode.NOT_COORDINATOR] * 3, "nobody writes any more"
    assert life.memory.used_bytes == 0


@pytest.mark.parametrize("is_closed", [False, True])
async def test_an_answer_that_fails_keeps_nobody_else_from_theirs(log: MemoryLog, is_closed: bool) -> None:
    life = Life(log)
    await life.log.load(life.counts)

    def fail(error: ErrorCode) -> None:
        life.answers.append(error)
        raise RuntimeError("a bug")

    life.log.submit([record("a", 1)], fail)
    life.write([record("b", 1)])
    life.log.submit([record("c", 1)], fail)
    life.write([record("d" * 100, 1)])

    async def end() -> None:
        if is_closed:
            life.log.close()
        await life.log.run()

    with pytest.raises(RuntimeError, match="a bug"):
        await end()
    told = ErrorCode.NOT_COORDINATOR if is_closed else ErrorCode.NONE
    assert life.answers == [told, told, told, ErrorCode.NOT_COORDINATOR]
    assert life.memory.used_bytes == 0


class SilentStore(MemoryLog):
    """Trims wait for the store, appends don't."""

    def __init__(self) -> None:
        super().__init__()
        self.answers = anyio.Event()

    async def trim(self, partition: int, offset: int) -> None:
        await self.answers.wait()
        await super().trim(partition, offset)


async def test_what_is_written_does_not_wait_for_a_store_that_says_nothing_to_a_trim() -> None:
    log = SilentStore()
    life = Life(log)
    await life.log.load(life.counts)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(life.log.run)
        for number in range(30):
            life.write([record("a", number)])
            await settle()
        assert life.answers == [ErrorCode.NONE] * 30
        assert life.counters.checkpoints == 0
        log.answers.set()
        await settle()
        life.log.close()
    assert 1 <= life.counters.checkpoints <= 2, "the newest one counts"
    assert log.starts[0] > 20
    assert await loaded(log) == {"a": 29}


async def test_a_checkpoint_that_only_the_wal_holds_takes_the_place_of_nothing(log: MemoryLog) -> None:
    """A WAL that is lost takes what it alone held, and not what had been uploaded before."""
    life = Life(log)
    await life.log.load(life.counts)
    log.uploaded_end_max = 6
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(life.log.run)
        for number in range(30):
            life.write([record("a", number)])
            await settle()
        assert log.starts[0] == 0
        log.uploaded_end_max = 20
        life.write([record("a", 30)])
        await settle()
        life.log.close()
    assert 0 < log.starts[0] < 20, "the newest one that is uploaded"
    assert await loaded(log) == {"a": 30}
    log.records[0] = [one for one in log.records[0] if one[0] < 20]
    assert 0 < (await loaded(log))["a"] < 20


async def test_a_record_that_is_not_understood_fails_the_load(log: MemoryLog) -> None:
    await log.append(0, [record("a", 1), (b"b", b"123")])
    life = Life(log)
    with pytest.raises(CorruptError, match="a count is malformed"):
        await life.log.load(life.counts)


async def test_a_long_load_lets_others_have_their_turn(log: MemoryLog) -> None:
    await log.append(0, [record(f"n{number}", number) for number in range(5_000)])
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        await loaded(log)
        tasks.cancel_scope.cancel()
    assert turns >= 5


async def test_a_long_checkpoint_lets_others_have_their_turn_and_says_what_was_durable_when_it_began(
    log: MemoryLog,
) -> None:
    """What is submitted meanwhile comes behind it."""
    life = Life(log, checkpoint_records=3_000, append_bytes_max=1_000_000)
    await life.log.load(life.counts)
    turns = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(life.log.run)
        life.write([record(f"n{number}", number) for number in range(3_000)])
        while not life.answers:
            await anyio.lowlevel.checkpoint()
        life.write([record("n0", 7)])
        while len(life.answers) < 2:
            await anyio.lowlevel.checkpoint()
            turns += 1
        life.log.close()
    assert log.batches == [3_000, 3_000, 1]
    assert turns >= 30
    assert await loaded(log) == {**{f"n{number}": number for number in range(3_000)}, "n0": 7}


async def test_a_checkpoint_that_is_closed_while_it_gathers_writes_and_trims_nothing(log: MemoryLog) -> None:
    life = Life(log, checkpoint_records=3_000, append_bytes_max=1_000_000)
    await life.log.load(life.counts)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(life.log.run)
        life.write([record(f"n{number}", number) for number in range(3_000)])
        while not life.answers:
            await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        life.log.close()
    assert log.batches == [3_000]
    assert log.starts == [0, 0, 0]


# -- any history ----------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "transactional-id"])
SETS = st.lists(st.tuples(NAMES, st.none() | st.integers(0, 9)), min_size=1, max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), SETS),
        st.tuples(st.just("turns"), st.integers(0, 12)),
        st.tuples(st.just("fail"), st.booleans()),
        st.tuples(st.just("crash"), st.booleans()),
        st.tuples(st.just("resign"), st.just(0)),
    ),
    max_size=40,
)


@settings(deadline=None, derandomize=True, max_examples=examples(150))
@given(STEPS)
def test_reloads_give_the_acknowledged_writes_after_any_history(steps: list[tuple[str, object]]) -> None:
    """Writes, checkpoints, failures, crashes at any point: each set is whole, and what was acknowledged is there.

    What wasn't acknowledged may be there as well, as a whole, if it was on its way when the coordinator died.
    """
    anyio.run(_history, steps)


async def _history(steps: list[tuple[str, object]]) -> None:
    log = CrashingLog(1)
    todo = iter(steps)
    going = True
    expected: dict[str, int] = {}
    doubtful: list[list[Record]] = []
    while going:
        going = False
        life = Life(log)
        await life.log.load(life.counts)
        assert life.counts.of in _possible(expected, doubtful)
        assert life.counts.of == _compacted(log)
        submitted: list[list[Record]] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(life.log.run)
            for step, argument in todo:
                if step == "write":
                    assert isinstance(argument, list)
                    submitted.append([record(name, count) for name, count in argument])
                    life.write(submitted[-1])
                elif step == "turns":
                    assert isinstance(argument, int)
                    for _ in range(argument):
                        await anyio.lowlevel.checkpoint()
                elif step == "fail":
                    log.error = UnavailableError("no") if argument else None
                elif step == "resign":
                    life.log.close()
                    going = True
                    break
                else:
                    log.lands = bool(argument)
                    tasks.cancel_scope.cancel()
                    going = True
                    break
            else:
                life.log.close()
        log.error = None
        life.log.close()
        # what is told is told in order; only the one that was cancelled may be durable and not told
        assert len(life.answers) == len(submitted)
        expected = dict(life.counts.of)
        doubtful = [
            one for one, answer in zip(submitted, life.answers, strict=True) if answer != ErrorCode.NONE
        ]
        assert life.memory.used_bytes == 0
    assert await loaded(log) in _possible(expected, doubtful)


def _compacted(log: MemoryLog) -> dict[str, int]:
    return {key.decode(): struct.unpack(">i", value)[0] for key, value in log.live().items()}


def _possible(expected: dict[str, int], doubtful: list[list[Record]]) -> list[dict[str, int]]:
    """The acknowledged state, alone or with one append of doubtful sets, which follow each other, on top."""
    states = [expected]
    for start in range(len(doubtful)):
        counts = Counts()
        counts.of = dict(expected)
        for some in doubtful[start:]:
            for one in some:
                counts.apply(*one)
            states.append(dict(counts.of))
    return states


async def test_records_that_are_made_late_keep_their_place() -> None:
    log = MemoryLog(1)
    life = Life(log)
    ready = anyio.Event()
    answers: list[str] = []

    async def make() -> list[Record]:
        await ready.wait()
        return [(b"late", b"1")]

    async with anyio.create_task_group() as tasks:
        await life.log.load(life.counts)
        tasks.start_soon(life.log.run)
        life.log.submit_later(make, 5, lambda error: answers.append(f"late {error.name}"))
        life.log.submit([(b"early", b"2")], lambda error: answers.append(f"early {error.name}"))
        await settle()
        assert answers == []
        assert log.records == [[]]
        assert life.memory.used_bytes >= 5, "accounted for before it is there"
        ready.set()
        await settle()
        life.log.close()
    assert answers == ["late NONE", "early NONE"]
    assert [record for _, record in log.records[0]] == [(b"late", b"1"), (b"early", b"2")]
    assert life.memory.used_bytes == 0
