"""The committed offsets of one group: pure bookkeeping with the rules of retention (KIP-211).

An offset enters `OffsetBook` only once its record is durable. Between the decision to commit and that moment it
is *pending*: pending partitions are never expired, so that the tombstone of an old offset can't land behind
the record of a newer one.
"""

from __future__ import annotations

__all__ = ("OffsetBook",)

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from penstock.coordinator.group_types import (
    CommitPlan,
    CommittedOffset,
    OffsetAndMetadata,
    TopicPartition,
)
from penstock.wire.error_codes import ErrorCode

_STRING_BYTES_MAX = 32_767
#: So many characters fit, whatever they are.
_SHORT_CHARACTERS = _STRING_BYTES_MAX // 4
#: What an offset takes beside its strings: two objects, a place in a dictionary (measured: 330).
_OFFSET_BYTES = 400


def _offset_bytes(partition: TopicPartition, metadata: str) -> int:
    return _OFFSET_BYTES + len(partition[0]) + len(metadata)


#: The last time that a record can hold: a client may ask for any retention.
_TIMESTAMP_MAX = 2**63 - 1


class OffsetBook:
    """The offsets of one group."""

    __slots__ = ("_committed", "_pending", "size_bytes")

    def __init__(self) -> None:
        #: What the committed offsets take in memory.
        self.size_bytes = 0
        self._committed: dict[TopicPartition, CommittedOffset] = {}
        self._pending: Counter[TopicPartition] = Counter()

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

    def plan(
        self,
        offsets: Mapping[TopicPartition, OffsetAndMetadata],
        retention_ms: int | None,
        now_ms: int,
        metadata_max: int,
    ) -> CommitPlan:
        """Decide what of a commit is to be written; that is pending until `settle`."""
        accepted: dict[TopicPartition, CommittedOffset] = {}
        refused: dict[TopicPartition, ErrorCode] = {}
        expire_ms = None
        if retention_ms is not None and retention_ms >= 0:
            expire_ms = min(now_ms + retention_ms, _TIMESTAMP_MAX)
        for partition, asked in offsets.items():
            metadata = asked.metadata
            # Kafka counts characters; the record's string holds at most 32767 bytes whatever the setting says.
            if len(metadata) > metadata_max or (
                len(metadata) > _SHORT_CHARACTERS and len(metadata.encode()) > _STRING_BYTES_MAX
            ):
                refused[partition] = ErrorCode.OFFSET_METADATA_TOO_LARGE
            else:
                accepted[partition] = CommittedOffset(
                    asked.offset, asked.leader_epoch, metadata, now_ms, expire_ms
                )
        self._pending.update(list(accepted))  # a list, since Counter would add up a mapping's values
        return CommitPlan(ErrorCode.NONE, accepted, refused)

    def settle(self, offsets: Mapping[TopicPartition, CommittedOffset], *, durable: bool) -> None:
        """The commit accepted by `plan` is durable and becomes visible, or it failed and is forgotten."""
        for partition in offsets:
            self._pending[partition] -= 1
            if self._pending[partition] <= 0:
                del self._pending[partition]
        if durable:
            for partition, committed in offsets.items():
                self._put(partition, committed)

    def growth_bytes(self, offsets: Mapping[TopicPartition, OffsetAndMetadata]) -> int:
        """How much more memory the book takes with these offsets in it; negative for less."""
        growth = 0
        for partition, asked in offsets.items():
            held = self._committed.get(partition)
            if held is None:
                growth += _offset_bytes(partition, asked.metadata)
            else:
                growth += len(asked.metadata) - len(held.metadata)
        return growth

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
        return list(dict.fromkeys(self._committed) | dict.fromkeys(self._pending))

    def of_topics(self, topics: Collection[str]) -> list[TopicPartition]:
        """The offsets of `known` that belong to these topics."""
        return [partition for partition in self.known() if partition[0] in topics]

    def expired(
        self,
        now_ms: int,
        retention_ms: int,
        *,
        empty_since_ms: int | None,
        keep_topics: Collection[str],
    ) -> list[TopicPartition]:
        """The partitions whose offset has outlived its retention.

        The retention counts from `empty_since_ms`, or from the commit if that is None. An explicit expiry
        time (OffsetCommit v2-4) wins over both. Topics in `keep_topics` are subscribed to and never expire.
        """
        gone = []
        for partition, committed in self._committed.items():
            if partition in self._pending or partition[0] in keep_topics:
                continue
            if committed.expire_timestamp_ms is not None:
                is_expired = now_ms >= committed.expire_timestamp_ms
            else:
                since_ms = committed.commit_timestamp_ms if empty_since_ms is None else empty_since_ms
                is_expired = now_ms - since_ms >= retention_ms
            if is_expired:
                gone.append(partition)
        return gone
