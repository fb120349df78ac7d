"""The groups of one partition of `__consumer_offsets`: what the log says of them, and what they take in memory.

A :class:`penstock.coordinator.state_log.State`. While the log is replayed, records are kept as they are, the newest
of each key; `build` makes groups of them, so that only what counts is decoded.
"""

from __future__ import annotations

__all__ = ("Entry", "GroupTable", "offset_record")

from collections.abc import Iterator
from typing import Final

import anyio

from penstock.account import Ledger
from penstock.coordinator.group_machine import Group
from penstock.coordinator.group_types import CommittedOffset, GroupMetadata, GroupSettings, TopicPartition
from penstock.coordinator.records import (
    GROUP_KEY_VERSION,
    OFFSETS_LOG,
    OffsetKey,
    UnknownKey,
    decode_group_value,
    decode_key,
    decode_offset_value,
    encode_group_key,
    encode_offset_key,
    encode_offset_value,
)
from penstock.errors import NewerVersionError
from penstock.log.keyed_log import Record

#: What a record takes beside its bytes until it is part of a group: two objects, a place in a dictionary.
_RAW_BYTES: Final = 200


def offset_record(group_id: str, partition: TopicPartition, committed: CommittedOffset) -> Record:
    """The record of a committed offset."""
    return encode_offset_key(group_id, *partition), encode_offset_value(committed)


class Entry:
    """A group, with what its coordinator knows about it beside the machine."""

    __slots__ = ("charged_bytes", "deletion", "group", "value")

    def __init__(self, group: Group) -> None:
        self.group = group
        #: The value of its metadata that is durable.
        self.value: bytes | None = None
        #: What of ``memory`` it has.
        self.charged_bytes = 0
        #: Set once the tombstones are durable or failed; None if it isn't being deleted.
        self.deletion: anyio.Event | None = None


class GroupTable:
    """group id -> entry, of one partition."""

    def __init__(self, partition: int, settings: GroupSettings, memory: Ledger) -> None:
        self._partition = partition
        self._settings = settings
        self._memory = memory
        self._raw: dict[bytes, bytes] = {}
        self.entries: dict[str, Entry] = {}
        #: Names of the topics that had an offset when groups were made of the log.
        self.built_topics: set[str] = set()

    # -- the log says -------------------------------------------------------------------------------------

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Replay one record."""
        if key in self._raw:
            self._take(key)
        if value is not None:
            self._raw[key] = value
            self._memory.add(_raw_bytes(key, value))

    def build(self, now_ms: int) -> Iterator[tuple[Entry, GroupMetadata] | None]:
        """Make groups of what was replayed, one record a step; those with metadata are given, for the machine.

        Metadata come after all offsets, so that no group is forgotten before it is complete.

        Raises:
            CorruptError: a record isn't well-formed.
            NewerVersionError: a newer version wrote it.
        """
        groups: list[tuple[bytes, str]] = []
        for key in list(self._raw):
            decoded = decode_key(key)
            if isinstance(decoded, OffsetKey):
                committed = decode_offset_value(self._take(key))
                entry = self.entries.get(decoded.group_id) or self.create(decoded.group_id, now_ms)
                entry.group.offsets.restore((decoded.topic, decoded.partition), committed)
                self.built_topics.add(decoded.topic)
                self.account(entry)
            elif isinstance(decoded, UnknownKey):
                # left alone, it would be lost at the next checkpoint
                raise NewerVersionError.of(
                    "a record of a group",
                    f"log={OFFSETS_LOG} partition={self._partition}",
                    version=decoded.version,
                    known=GROUP_KEY_VERSION,
                )
            else:
                groups.append((key, decoded.group_id))
            yield None
        for key, group_id in groups:
            value = self._take(key)
            metadata = decode_group_value(value)
            entry = self.entries.get(group_id) or self.create(group_id, now_ms)
            entry.value = value
            yield entry, metadata

    def _take(self, key: bytes) -> bytes:
        """Remove and return the value that was replayed for ``key``."""
        value = self._raw.pop(key)
        self._memory.add(-_raw_bytes(key, value))
        return value

    def live(self) -> Iterator[Record]:
        """The records of a checkpoint: exactly what is durable and not deleted."""
        for entry in list(self.entries.values()):
            group_id = entry.group.group_id
            if entry.value is not None:
                yield encode_group_key(group_id), entry.value
            for item in entry.group.offsets.items():
                yield offset_record(group_id, *item)

    # -- groups come and go -------------------------------------------------------------------------------

    def create(self, group_id: str, now_ms: int) -> Entry:
        """An empty group."""
        entry = Entry(Group(group_id, self._settings, now_ms))
        self.entries[group_id] = entry
        self.account(entry)
        return entry

    def account(self, entry: Entry) -> None:
        """Account for what the group takes now; nothing if it is forgotten."""
        size = 0
        if self.entries.get(entry.group.group_id) is entry:
            size = entry.group.size_bytes + (0 if entry.value is None else len(entry.value))
        if size != entry.charged_bytes:
            self._memory.add(size - entry.charged_bytes)
            entry.charged_bytes = size

    def drop(self, entry: Entry) -> None:
        """Forget a group; nothing if that is done."""
        group_id = entry.group.group_id
        if self.entries.get(group_id) is entry:
            del self.entries[group_id]
            self.account(entry)

    def drop_raw(self) -> None:
        """Forget what was replayed and never became a group."""
        for key in list(self._raw):
            self._take(key)


def _raw_bytes(key: bytes, value: bytes) -> int:
    return _RAW_BYTES + len(key) + len(value)
