"""An OffsetCommit before a group decides on it: all that takes long and needs no group, in portions.

What is left for the decision is short: whether the member may commit and whether there is room. It is made, and the
records are handed to the log, in one step; so commits are in the log in the order in which groups allowed them.
"""

from __future__ import annotations

__all__ = ("CommitSet", "PreparedCommit", "prepare_commit")

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from penstock.coordinator.group_offsets import committed_offset
from penstock.coordinator.group_table import offset_record
from penstock.coordinator.group_types import (
    CommittedOffset,
    GroupSettings,
    OffsetAndMetadata,
    TopicPartition,
)
from penstock.coordinator.state_log import Cutter, records_bytes
from penstock.log.keyed_log import Record
from penstock.wire.error_codes import ErrorCode
from penstock.work.pieces import in_portions


@dataclass(frozen=True, slots=True)
class CommitSet:
    """Offsets that are appended together, and become visible together."""

    offsets: Mapping[TopicPartition, CommittedOffset]
    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class PreparedCommit:
    """What a commit would write, and what of it no group takes."""

    asked: Mapping[TopicPartition, OffsetAndMetadata]
    sets: Sequence[CommitSet]
    refused: Mapping[TopicPartition, ErrorCode]


async def prepare_commit(
    group_id: str,
    asked: Mapping[TopicPartition, OffsetAndMetadata],
    *,
    retention_ms: int | None,
    now_ms: int,
    settings: GroupSettings,
    take: Callable[[int], bool],
) -> PreparedCommit:
    """Encode the records of a commit. ``take`` is told of their bytes as they are made, and says whether there may be
    more: what is left is refused as retriable.

    A commit is one set if it fits into one append; of more, each counts by itself.
    """
    accepted: dict[TopicPartition, CommittedOffset] = {}
    refused: dict[TopicPartition, ErrorCode] = {}
    chunks: list[list[Record]] = []
    cutter = Cutter(settings.append_bytes_max)
    has_room = True
    async for partition, one in in_portions(asked.items()):
        if not has_room:
            refused[partition] = ErrorCode.COORDINATOR_NOT_AVAILABLE
            continue
        committed = committed_offset(one, retention_ms, now_ms, settings.offset_metadata_bytes_max)
        if committed is None:
            refused[partition] = ErrorCode.OFFSET_METADATA_TOO_LARGE
            continue
        accepted[partition] = committed
        if full := cutter.add(offset_record(group_id, partition, committed)):
            has_room = take(records_bytes(full))
            chunks.append(full)
    if cutter.rest:
        take(records_bytes(cutter.rest))
        chunks.append(cutter.rest)
    if len(chunks) == 1:
        return PreparedCommit(asked, [CommitSet(accepted, chunks[0])], refused)
    left = iter(accepted.items())
    return PreparedCommit(asked, [CommitSet(dict(islice(left, len(one))), one) for one in chunks], refused)
