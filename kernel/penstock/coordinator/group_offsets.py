"""The committed offsets of one group: pure bookkeeping with the rules of retention (KIP-211).

An offset enters `OffsetBook` only once its record is durable. Between the decision to commit and that moment it
is *pending*: pending partitions are never expired, so that the tombstone of an old offset can't land behind
the record of a newer one.
"""

from __future__ import annotations

__all__ = ("OffsetBook", "committed_offset", "metadata_fit")

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from itertools import chain
from operator import attrgetter, itemgetter

from penstock.coordinator.group_types import (
    CommittedOffset,
    OffsetAndMetadata,
    TopicPartition,
)

_STRING_BYTES_MAX = 32_767
#: So many characters fit, whatever they are.
_SHORT_CHARACTERS = _STRING_BYTES_MAX // 4
#: What an offset takes beside its strings: two objects, a place in a dictionary (measured: 330).
_OFFSET_BYTES = 400


def _offset_bytes(partition: TopicPartition, metadata: str) -> int:
    return _OFFSET_BYTES + len(partition[0]) + len(metadata)


def _offsets_bytes(
    partitions: Collection[TopicPartition], offsets: Mapping[TopicPartition, CommittedOffset]
) -> int:
    """`_offset_bytes` of all; without a bytecode for each, since nothing of a commit of thousands may wait here."""
    topics = sum(map(len, map(itemgetter(0), partitions)))
    metadata = sum(map(len, map(attrgetter("metadata"), map(offsets.__getitem__, partitions))))
    return _OFFSET_BYTES * len(partitions) + topics + metadata


#: The last time that a record can hold: a client may ask for any retention.
_TIMESTAMP_MAX = 2**63 - 1


def metadata_fit(metadata: str, metadata_max: int) -> bool:
    """Whether an offset may be committed with these metadata."""
    # Kafka counts characters; the record's string holds at most 32767 bytes whatever the setting says.
    return len(metadata) <= metadata_max and (
        len(metadata) <= _SHORT_CHARACTERS or len(metadata.encode()) <= _STRING_BYTES_MAX
    )


def committed_offset(
    asked: OffsetAndMetadata, retention_ms: int | None, now_ms: int, metadata_max: int
) -> CommittedOffset | None:
    """What is kept of an offset that is committed now; None if its metadata are too large."""
    metadata = asked.metadata
    if not metadata_fit(metadata, metadata_max):
        return None
    expire_ms = None
    if retention_ms is not None and retention_ms >= 0:
        expire_ms = min(now_ms + retention_ms, _TIMESTAMP_MAX)
    return CommittedOffset(asked.offset, asked.leader_epoch, metadata, now_ms, expire_ms)


class OffsetBook:
    """The offsets of one group."""

    __slots__ = ("_committed", "_pending", "size_bytes")

    def __init__(self) -> None:
        #: What the committed offsets take in memory.
        self.size_bytes = 0
        self._committed: dict[TopicPartition, CommittedOffset] = {}
        #: By identity: the same offsets may be committed many times at once.
        self._pending: dict[int, Mapping[TopicPartition, CommittedOffset]] = {}

    def __len__(self) -> int:
        return len(self._committed)

    @property
    def has_pending(self) -> bool:
        """Whether a commit is on its way to the log."""
        return bool(self._pending)

    def get(self, partition: TopicPartition) -> CommittedOffset | None:
        """The committed offset of one partition, if there is one."""
        return self._committed.get(partition)

    def items(self) -> Iterator[tuple[TopicPartition, CommittedOffset]]:
        """All committed offsets, in the order of the first commit."""
        return iter(self._committed.items())

    def begin(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> None:
        """These offsets are on their way to the log, and pending until `settle`."""
        self._pending[id(offsets)] = offsets

    def settle(self, offsets: Mapping[TopicPartition, CommittedOffset], *, durable: bool) -> None:
        """What was begun is durable and becomes visible, all of it at once, or it failed and is forgotten."""
        self._pending.pop(id(offsets), None)
        if durable:
            self.size_bytes += self.growth_bytes(offsets)
            self._committed.update(offsets)

    def growth_bytes(self, offsets: Mapping[TopicPartition, CommittedOffset]) -> int:
        """How much more memory the book takes with these offsets in it; negative for less."""
        replaced = list(filter(self._committed.__contains__, offsets))
        return _offsets_bytes(offsets, offsets) - _offsets_bytes(replaced, self._committed)

    def _put(self, partition: TopicPartition, committed: CommittedOffset) -> None:
        before = self._committed.get(partition)
        if before is None:
            self.size_bytes += _offset_bytes(partition, committed.metadata)
        else:
            self.size_bytes += len(committed.metadata) - len(before.metadata)
        self._committed[partition] = committed

    def _drop(self, partition: TopicPartition) -> None:
        before = self._committed.pop(partition, None)
        if before is not None:
            self.size_bytes -= _offset_bytes(partition, before.metadata)

    def restore(self, partition: TopicPartition, committed: CommittedOffset | None) -> None:
        """Replay one record of the log; None is a tombstone."""
        if committed is None:
            self._drop(partition)
        else:
            self._put(partition, committed)

    def remove(self, partitions: Iterable[TopicPartition]) -> None:
        """The tombstones of these partitions are durable."""
        for partition in partitions:
            self._drop(partition)

    def known(self) -> list[TopicPartition]:
        """The partitions that have an offset or are about to get one."""
        return list(dict.fromkeys(chain(self._committed, *self._pending.values())))

    def known_of(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """The ones among these partitions that have an offset or are about to get one."""
        pending = set(chain.from_iterable(self._pending.values()))
        return [one for one in partitions if one in self._committed or one in pending]

    def of_topics(
        self, topics: Mapping[str, int], among: Iterable[TopicPartition] | None = None
    ) -> list[TopicPartition]:
        """The offsets of `known` (of ``among``, else of all) that belong to these topics, and aren't newer than the
        time that each has, in ms.
        """
        pending: dict[TopicPartition, CommittedOffset] = {}
        for offsets in self._pending.values():
            pending.update(offsets)
        found = []
        for partition in self.known() if among is None else among:
            if partition[0] in topics:
                newest = pending.get(partition) or self._committed.get(partition)
                if newest is not None and newest.commit_timestamp_ms <= topics[partition[0]]:
                    found.append(partition)
        return found

    def expired(
        self,
        now_ms: int,
        retention_ms: int,
        *,
        empty_since_ms: int | None,
        keep_topics: Container[str],
        among: Iterable[TopicPartition] | None = None,
    ) -> list[TopicPartition]:
        """The partitions (of ``among``, else of all) whose offset has outlived its retention.

        The retention counts from `empty_since_ms`, or from the commit if that is None. An explicit expiry
        time (OffsetCommit v2-4) wins over both. Topics in `keep_topics` are subscribed to and never expire.
        """
        gone = []
        pending = set(chain.from_iterable(self._pending.values()))
        for partition in self._committed if among is None else among:
            committed = self._committed.get(partition)
            if committed is None or partition in pending or partition[0] in keep_topics:
                continue
            if committed.expire_timestamp_ms is not None:
                is_expired = now_ms >= committed.expire_timestamp_ms
            else:
                since_ms = committed.commit_timestamp_ms if empty_since_ms is None else empty_since_ms
                is_expired = now_ms - since_ms >= retention_ms
            if is_expired:
                gone.append(partition)
        return gone
