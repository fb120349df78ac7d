"""Damage and mending of a partition: out of service while what it must know can't be read, back once it can."""

from __future__ import annotations

__all__ = ("Mendable", "Mender")

import logging
from typing import Protocol

import anyio

from penstock.errors import CorruptError, NotFoundError, PenstockError
from penstock.log.producer_snapshots import ProducerSnapshots
from penstock.stream.engine import StreamEngine
from penstock.stream.open_stream import Stream
from penstock.wire.records import BatchError

logger = logging.getLogger("penstock.log")


class Mendable(Protocol):
    """What a partition is for its mender."""

    topic: str
    index: int
    stream: Stream

    @property
    def is_closed(self) -> bool:
        """Whether nothing is served, or mended, any more."""

    @property
    def unavailable(self) -> str | None:
        """Why nothing is served for now; None: it is."""

    def set_unavailable(self, reason: str | None) -> None:
        """Serve nothing from here on, for this reason; None: serve again."""


class Mender:
    """Decides whether ``partition`` may serve."""

    __slots__ = ("_engine", "_loaded_ms", "_mending", "_partition", "_snapshots")

    def __init__(self, partition: Mendable, engine: StreamEngine, snapshots: ProducerSnapshots) -> None:
        self._partition = partition
        self._engine = engine
        self._snapshots = snapshots
        self._mending = anyio.Lock()
        self._loaded_ms = 0

    async def load(self, now_ms: int) -> bool:
        """Rebuild the producers' state; if that meets damage, take the partition offline and return False.

        Raises UnavailableError.
        """
        self._loaded_ms = now_ms
        try:
            await self._snapshots.load(now_ms)
        except (CorruptError, NotFoundError, BatchError) as error:
            await self.take_offline(error, self._snapshots.replay_offset)
            return False
        return True

    async def take_offline(self, error: PenstockError, damaged_from: int | None) -> None:
        """Serve nothing from here on: what the partition, or its owner, must know is damaged or missing.

        ``damaged_from`` is an offset before the damage; None if it is the snapshot of the producers' state.
        Raises UnavailableError.
        """
        partition = self._partition
        before = partition.stream.start_offset
        place = "the snapshot of its producers' state"
        if damaged_from is not None:
            start, before = await self._engine.reads.find_damage(partition.stream, damaged_from)
            place = f"records=[{start},{before})"
        if partition.is_closed:
            return  # deleted while we looked
        self._snapshots.forget()
        logger.error(
            "%s-%d is unavailable, what must be known before it serves anybody is damaged; put the object back "
            "from a copy and start again, or give up the records (penstock topic delete-records %s --partition %d "
            "--before %d), or delete the topic: damaged=%s log=[%d,%d) %s",
            partition.topic,
            partition.index,
            partition.topic,
            partition.index,
            before,
            place,
            partition.stream.start_offset,
            partition.stream.confirmed_offset,
            error,
        )
        partition.set_unavailable(
            f"data of the partition are damaged, and nothing is served until they are mended: {error}"
        )

    async def mend(self) -> None:
        """Somebody deleted records of an unavailable partition: it serves again if what is left is whole.

        What the deleted records said of their producers is given up, and so is a snapshot that is damaged: a
        producer that isn't known may start at any sequence, and of what is left nothing can be there twice.
        Raises UnavailableError, or the error of the metadata log.
        """
        partition, snapshots = self._partition, self._snapshots
        async with self._mending:
            if partition.unavailable is None or partition.is_closed:
                return
            try:
                await snapshots.load(self._loaded_ms)
            except (CorruptError, NotFoundError, BatchError) as error:
                if snapshots.replay_offset is not None:
                    await self.take_offline(error, snapshots.replay_offset)
                    return
                logger.warning(
                    "giving up the producers' state of %s-%d: %s", partition.topic, partition.index, error
                )
                await snapshots.give_up()
                if not await self.load(self._loaded_ms):
                    return
            logger.warning(
                "%s-%d is available again: log=[%d,%d)",
                partition.topic,
                partition.index,
                partition.stream.start_offset,
                partition.stream.confirmed_offset,
            )
            partition.set_unavailable(None)
