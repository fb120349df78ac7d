"""What clients of a simulated broker do: produce, read, and what administrators ask for."""

from __future__ import annotations

__all__ = ("Clients",)

from contextlib import suppress
from dataclasses import dataclass, field

import anyio
from tests.simulation.history import History, Life
from tests.simulation.model import NAMES, Producer, Sent
from tests.simulation.world import SimulatedWal
from tests.unit.stream.harness import SETTINGS

from penstock.errors import ClosedError, FullError, PenstockError, UnavailableError
from penstock.log.append_outcome import AppendOutcome
from penstock.log.errors import KafkaError
from penstock.log.partition import Partition
from penstock.log.producer_book import WINDOW_BATCHES
from penstock.log.topic import NewTopic
from penstock.wire.error_codes import ErrorCode
from penstock.wire.records import build_batch, iter_records


@dataclass
class _Asked:
    """An append that waits for its outcome."""

    wal: SimulatedWal
    done: anyio.Event = field(default_factory=anyio.Event)
    outcomes: list[AppendOutcome] = field(default_factory=list)
    #: Of the WAL, when the outcome came.
    wal_state: str = ""

    def answer(self, outcome: AppendOutcome) -> None:
        self.outcomes.append(outcome)
        self.wal_state = self.wal.state
        self.done.set()


class Clients(History):
    """Steps of producers, readers and administrators. Answers are held against the model as they come."""

    async def _produce(self, life: Life, producer: Producer) -> None:
        partition = self._pick(life)
        if partition is None:
            return
        place = (partition.topic_id, partition.index)
        sequence = producer.sequences.setdefault(place, Sent())
        if sequence.last is not None and not sequence.unknown and self.random.random() < 0.15:
            await self._produce_again(life, producer, partition, sequence)
            return
        if producer.producer_id >= 0 and not sequence.unknown and self._aside.random() < 0.15:
            sequence.begin_epoch()
        batches = list(sequence.unknown)  # first of all, and as they were
        in_flight = self.random.choice([1, 1, 2, WINDOW_BATCHES]) if producer.producer_id >= 0 else 1
        while len(batches) < in_flight:
            batches.append((sequence.next, self._make_values(producer)))
            if producer.producer_id >= 0:
                sequence.next += len(batches[-1][1])
                sequence.unknown.append(batches[-1])
        written = self._written(partition)
        asked: list[_Asked] = []
        for first, values in batches:
            written.sent.update(values)
            asked.append(await self._send(life, partition, producer, sequence.epoch, first, values))
            await self._turns(self.random.randrange(4))
        failed = False
        for (first, values), answer in zip(batches, asked, strict=True):
            outcome = await self._outcome(answer)
            if outcome.error_code:
                failed = True
                continue
            assert not failed, "nothing overtakes what failed"
            self.note(f"acked {partition.topic}-{partition.index}@{outcome.base_offset}+{len(values)}")
            for i, value in enumerate(values):
                assert written.acked.setdefault(outcome.base_offset + i, value) == value, (
                    "an offset is given once"
                )
            assert partition.high_watermark >= outcome.base_offset + len(values)
            if producer.producer_id >= 0:
                sequence.unknown.remove((first, values))
                sequence.last = (first, values, outcome.base_offset)

    def _make_values(self, producer: Producer) -> list[bytes]:
        values = []
        for _ in range(self.random.randrange(1, 4)):
            producer.count += 1
            values.append(b"%d-%d" % (producer.number, producer.count) + b"." * self.random.randrange(150))
        return values

    async def _produce_again(
        self, life: Life, producer: Producer, partition: Partition, sequence: Sent
    ) -> None:
        """What was acknowledged last, whether it is deleted meanwhile or not; or last in the epoch before."""
        if producer.producer_id < 0 or sequence.last is None:
            return
        first, values, base_offset = sequence.last
        if sequence.fenced is not None and self._aside.random() < 0.5:
            first, values, _ = sequence.fenced
            asked = await self._send(life, partition, producer, sequence.epoch - 1, first, values)
            await asked.done.wait()
            code = asked.outcomes[0].error_code
            assert code in {ErrorCode.INVALID_PRODUCER_EPOCH, ErrorCode.NOT_LEADER_OR_FOLLOWER}, code
            self.note(f"fenced {partition.topic}-{partition.index} {code}")
            return
        outcome = await self._outcome(
            await self._send(life, partition, producer, sequence.epoch, first, values)
        )
        if outcome.error_code == 0:
            assert outcome.base_offset == base_offset, "a duplicate gets the offset that it has"

    async def _send(
        self,
        life: Life,
        partition: Partition,
        producer: Producer,
        epoch: int,
        first: int,
        values: list[bytes],
    ) -> _Asked:
        """Append like the Produce API; what is returned waits for the answer."""
        idempotent = producer.producer_id >= 0
        batch = build_batch(
            [(None, value, (), self.world.now_ms) for value in values],
            producer_id=producer.producer_id,
            producer_epoch=epoch if idempotent else -1,
            base_sequence=first if idempotent else -1,
        )
        asked = _Asked(self.wal)
        while True:
            try:
                partition.append(
                    memoryview(batch),
                    produce_version=9,
                    now_ms=self.world.now_ms,
                    charge=None,
                    on_done=asked.answer,
                )
                break
            except FullError:
                await life.logs.wait_for_room()
        return asked

    async def _outcome(self, asked: _Asked) -> AppendOutcome:
        await asked.done.wait()
        (outcome,) = asked.outcomes
        if outcome.error_code == ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER:
            assert asked.wal_state == "open", "who hears of a hole sends what is in doubt under a new epoch"
            self.note("hole")
            return outcome
        assert outcome.error_code in {
            0,
            ErrorCode.KAFKA_STORAGE_ERROR,
            ErrorCode.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
            ErrorCode.NOT_LEADER_OR_FOLLOWER,
        }, outcome.error_message
        return outcome

    async def _read_somewhere(self, life: Life) -> None:
        partition = self._pick(life)
        if partition is None:
            return
        written = self._written(partition)
        offset = self.random.randint(partition.log_start_offset, partition.high_watermark)
        try:
            result = await partition.read(
                offset, self.random.choice([1, 300, 10**6]), read_committed=False, at_least_one=True
            )
        except UnavailableError:
            assert self.store.fault_rate
            return
        except KafkaError as error:
            trimmed = error.error_code == ErrorCode.OFFSET_OUT_OF_RANGE and offset < written.start_max
            gone = error.error_code == ErrorCode.NOT_LEADER_OR_FOLLOWER and partition.topic_id in self.doomed
            if not (trimmed or gone):
                raise
            return
        for piece in result.records:
            for record in iter_records(piece):
                value = bytes(record.value or b"")
                assert value in written.sent
                assert written.acked.get(record.offset, value) == value

    async def _administrate(self, life: Life) -> None:
        step = self.random.choice(
            [
                self._create,
                self._create,
                self._grow,
                self._delete,
                self._trim,
                self._trim,
                self._clean,
                self._flush,
                self._flush,
                self._sweep,
                self._sweep_orphans,
                self._evict,
                self._configure,
            ]
        )
        try:
            await step(life)
        except UnavailableError:
            pass
        except ClosedError:
            assert self.wal.state != "open"

    async def _create(self, life: Life) -> None:
        name = self.random.choice(NAMES)
        count = self.random.randrange(1, 4)
        results = await self._perhaps_cancelled(lambda: life.logs.create_topics([NewTopic(name, count)]))
        if results is not None and not isinstance(results[0], Exception):
            self.note(f"created {name} {count}")
            self.created[results[0].id] = name

    async def _grow(self, life: Life) -> None:
        partition = self._pick(life)
        if partition is None:
            return
        count = self.random.randrange(2, 6)

        async def grow(count: int) -> None:
            with suppress(PenstockError):
                await self._perhaps_cancelled(lambda: life.logs.create_partitions(partition.topic, count))
                self.note(f"grown {partition.topic} {count}")

        async with anyio.create_task_group() as tasks:
            for more in range(self.random.randrange(1, 3)):
                tasks.start_soon(grow, count + more)

    async def _delete(self, life: Life) -> None:
        partition = self._pick(life)
        if partition is None or self.random.random() < 0.5:
            return
        self.doomed.add(partition.topic_id)
        results = await self._perhaps_cancelled(lambda: life.logs.delete_topics([partition.topic]))
        if results == [None]:
            self.note(f"deleted {partition.topic}")
            self.deleted.add(partition.topic_id)

    async def _trim(self, life: Life) -> None:
        partition = self._pick(life)
        if partition is None:
            return
        written = self._written(partition)
        offset = self.random.randint(partition.log_start_offset, partition.high_watermark)
        with suppress(KafkaError):
            start = await self._perhaps_cancelled(lambda: partition.delete_records(offset))
            if start is not None:
                self.note(f"trimmed {partition.topic}-{partition.index} {start}")
                assert start >= offset
                written.start = max(written.start, offset)

    async def _clean(self, life: Life) -> None:
        await self._perhaps_cancelled(life.logs.clean)

    async def _flush(self, life: Life) -> None:
        await self._perhaps_cancelled(life.engine.engine.flush)

    async def _sweep(self, life: Life) -> None:
        self.world.now_ms += self.random.choice([1, 1000, SETTINGS.upload.prepare_deadline_ms])
        await self._perhaps_cancelled(life.engine.engine._lifecycle.sweep)

    async def _sweep_orphans(self, life: Life) -> None:
        self.store.land(0.2)
        if self._sweeping:
            return  # a broker has one task that sweeps
        self._sweeping = True
        try:
            self.world.now_ms += self.random.choice([0, SETTINGS.orphan_grace_ms])
            await self._perhaps_cancelled(life.engine.engine._orphans.sweep)
        finally:
            self._sweeping = False

    async def _evict(self, life: Life) -> None:
        life.engine.log_cache.evict(self.random.choice([1, 1000, 2**30]))

    async def _configure(self, life: Life) -> None:
        partition = self._pick(life)
        if partition is not None:
            limit = str(self.random.choice([500, 2500, -1]))
            with suppress(PenstockError):
                await self._perhaps_cancelled(
                    lambda: life.logs.alter_configs(partition.topic, {"retention.bytes": limit})
                )
