"""Keys and values of `__consumer_offsets`, byte for byte as Kafka writes them.

    key version 0, 1   int16 version, string group, string topic, int32 partition      (OffsetCommitKey)
    key version 2      int16 version, string group                                     (GroupMetadataKey)

A null value is a tombstone. Values start with an int16 version: offset commits are written as version 3
(version 1 when OffsetCommit v2-4 asked for a retention time), group metadata as version 3. All versions up to
4 (flexible: compact strings and tagged fields) are read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from penstock.coordinator.group_types import CommittedOffset, GroupMetadata, MemberMetadata
from penstock.errors import CorruptError, NewerVersionError

__all__ = (
    "GROUP_KEY_VERSION",
    "OFFSETS_LOG",
    "GroupKey",
    "OffsetKey",
    "UnknownKey",
    "decode_group_value",
    "decode_key",
    "decode_offset_value",
    "encode_group_key",
    "encode_group_value",
    "encode_offset_key",
    "encode_offset_value",
)

_INT16 = struct.Struct(">h")
_INT32 = struct.Struct(">i")
_INT64 = struct.Struct(">q")

#: The name of the log, for messages.
OFFSETS_LOG = "__consumer_offsets"
_OFFSET_KEY_VERSION = 1
GROUP_KEY_VERSION = 2
_OFFSET_VALUE_VERSION = 3
_OFFSET_VALUE_VERSION_EXPIRING = 1
_GROUP_VALUE_VERSION = 3
_VALUE_VERSION_FLEXIBLE = 4
_VARINT_SHIFT_MAX = 28


@dataclass(frozen=True, slots=True)
class OffsetKey:
    """The key of a committed offset."""

    group_id: str
    topic: str
    partition: int


@dataclass(frozen=True, slots=True)
class GroupKey:
    """The key of a group's metadata."""

    group_id: str


@dataclass(frozen=True, slots=True)
class UnknownKey:
    """A key of a version this broker doesn't know (written by a newer one)."""

    version: int


def _string(text: str) -> bytes:
    body = text.encode()
    return _INT16.pack(len(body)) + body


def _nullable_string(text: str | None) -> bytes:
    return _INT16.pack(-1) if text is None else _string(text)


def _bytes(body: bytes) -> bytes:
    return _INT32.pack(len(body)) + body


class _Reader:
    """Reads the fields of one value in order; anything that doesn't fit is `CorruptError`."""

    __slots__ = ("_buffer", "_position", "_what", "flexible")

    def __init__(self, buffer: bytes, what: str) -> None:
        self._buffer = buffer
        self._position = 0
        self._what = what
        self.flexible = False

    def fail(self, why: str) -> CorruptError:
        return CorruptError(f"{self._what} in __consumer_offsets is malformed, {why}: at={self._position}")

    def value_version(self) -> int:
        """The version that a value begins with. Raises NewerVersionError for one above those that are read."""
        version = self.int16()
        if version > _VALUE_VERSION_FLEXIBLE:
            raise NewerVersionError.of(
                self._what, f"log={OFFSETS_LOG}", version=version, known=_VALUE_VERSION_FLEXIBLE
            )
        if version < 0:
            raise self.fail(f"no version={version}")
        return version

    def _take(self, size: int) -> bytes:
        end = self._position + size
        if size < 0 or end > len(self._buffer):
            raise self.fail(f"a field of size={size} doesn't fit")
        body = self._buffer[self._position : end]
        self._position = end
        return body

    def int16(self) -> int:
        value: int = _INT16.unpack(self._take(2))[0]
        return value

    def int32(self) -> int:
        value: int = _INT32.unpack(self._take(4))[0]
        return value

    def int64(self) -> int:
        value: int = _INT64.unpack(self._take(8))[0]
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > _VARINT_SHIFT_MAX:
                raise self.fail("a varint is too long")

    def nullable_string(self) -> str | None:
        size = self._varint() - 1 if self.flexible else self.int16()
        if size == -1:
            return None
        try:
            return self._take(size).decode()
        except UnicodeDecodeError as error:
            raise self.fail("a string isn't utf-8") from error

    def string(self) -> str:
        value = self.nullable_string()
        if value is None:
            raise self.fail("a string is null")
        return value

    def bytes_(self) -> bytes:
        size = self._varint() - 1 if self.flexible else self.int32()
        return b"" if size == -1 else self._take(size)

    def array_size(self) -> int:
        size = self._varint() - 1 if self.flexible else self.int32()
        if not 0 <= size <= len(self._buffer) - self._position:
            raise self.fail(f"an array of size={size} doesn't fit")
        return size

    def tags(self) -> None:
        """Skip tagged fields (KIP-482); there are none before the flexible version."""
        if self.flexible:
            for _ in range(self._varint()):
                self._varint()
                self._take(self._varint())

    def end(self) -> None:
        if self._position != len(self._buffer):
            raise self.fail(f"bytes are left over, size={len(self._buffer)}")


def encode_offset_key(group_id: str, topic: str, partition: int) -> bytes:
    """OffsetCommitKey version 1."""
    return b"".join(
        (_INT16.pack(_OFFSET_KEY_VERSION), _string(group_id), _string(topic), _INT32.pack(partition))
    )


def encode_group_key(group_id: str) -> bytes:
    """GroupMetadataKey version 2."""
    return _INT16.pack(GROUP_KEY_VERSION) + _string(group_id)


def decode_key(key: bytes) -> OffsetKey | GroupKey | UnknownKey:
    """Tell what a record is about.

    Raises:
        CorruptError: the key isn't well-formed.
    """
    reader = _Reader(key, "a key")
    version = reader.int16()
    decoded: OffsetKey | GroupKey
    if version in (0, _OFFSET_KEY_VERSION):
        decoded = OffsetKey(reader.string(), reader.string(), reader.int32())
    elif version == GROUP_KEY_VERSION:
        decoded = GroupKey(reader.string())
    else:
        return UnknownKey(version)
    reader.end()
    return decoded


def encode_offset_value(committed: CommittedOffset) -> bytes:
    """OffsetCommitValue version 3, or version 1 when an expiry time was asked for (as Kafka does)."""
    if committed.expire_timestamp_ms is not None:
        return b"".join(
            (
                _INT16.pack(_OFFSET_VALUE_VERSION_EXPIRING),
                _INT64.pack(committed.offset),
                _string(committed.metadata),
                _INT64.pack(committed.commit_timestamp_ms),
                _INT64.pack(committed.expire_timestamp_ms),
            )
        )
    return b"".join(
        (
            _INT16.pack(_OFFSET_VALUE_VERSION),
            _INT64.pack(committed.offset),
            _INT32.pack(committed.leader_epoch),
            _string(committed.metadata),
            _INT64.pack(committed.commit_timestamp_ms),
        )
    )


def decode_offset_value(value: bytes) -> CommittedOffset:
    """Read OffsetCommitValue versions 0 to 4.

    Raises:
        CorruptError: the value isn't well-formed.
        NewerVersionError: a newer version wrote it.
    """
    reader = _Reader(value, "an offset commit")
    version = reader.value_version()
    reader.flexible = version >= _VALUE_VERSION_FLEXIBLE
    offset = reader.int64()
    leader_epoch = reader.int32() if version >= _OFFSET_VALUE_VERSION else -1
    metadata = reader.string()
    commit_timestamp_ms = reader.int64()
    expire_timestamp_ms = reader.int64() if version == _OFFSET_VALUE_VERSION_EXPIRING else -1
    reader.tags()
    reader.end()
    return CommittedOffset(
        offset,
        leader_epoch,
        metadata,
        commit_timestamp_ms,
        None if expire_timestamp_ms == -1 else expire_timestamp_ms,
    )


def encode_group_value(metadata: GroupMetadata) -> bytes:
    """GroupMetadataValue version 3."""
    parts = [
        _INT16.pack(_GROUP_VALUE_VERSION),
        _string(metadata.protocol_type),
        _INT32.pack(metadata.generation_id),
        _nullable_string(metadata.protocol_name),
        _nullable_string(metadata.leader),
        _INT64.pack(metadata.state_timestamp_ms),
        _INT32.pack(len(metadata.members)),
    ]
    for member in metadata.members:
        parts += (
            _string(member.member_id),
            _nullable_string(member.group_instance_id),
            _string(member.client_id),
            _string(member.client_host),
            _INT32.pack(member.rebalance_timeout_ms),
            _INT32.pack(member.session_timeout_ms),
            _bytes(member.subscription),
            _bytes(member.assignment),
        )
    return b"".join(parts)


def decode_group_value(value: bytes) -> GroupMetadata:
    """Read GroupMetadataValue versions 0 to 4.

    Raises:
        CorruptError: the value isn't well-formed.
        NewerVersionError: a newer version wrote it.
    """
    reader = _Reader(value, "group metadata")
    version = reader.value_version()
    reader.flexible = version >= _VALUE_VERSION_FLEXIBLE
    protocol_type = reader.string()
    generation_id = reader.int32()
    protocol_name = reader.nullable_string()
    leader = reader.nullable_string()
    state_timestamp_ms = reader.int64() if version >= 2 else -1
    members = tuple(_decode_member(reader, version) for _ in range(reader.array_size()))
    reader.tags()
    reader.end()
    return GroupMetadata(
        protocol_type=protocol_type,
        generation_id=generation_id,
        protocol_name=protocol_name,
        leader=leader,
        state_timestamp_ms=state_timestamp_ms,
        members=members,
    )


def _decode_member(reader: _Reader, version: int) -> MemberMetadata:
    member_id = reader.string()
    group_instance_id = reader.nullable_string() if version >= _GROUP_VALUE_VERSION else None
    client_id = reader.string()
    client_host = reader.string()
    rebalance_timeout_ms = reader.int32() if version >= 1 else -1
    session_timeout_ms = reader.int32()
    if rebalance_timeout_ms < 0:
        rebalance_timeout_ms = session_timeout_ms
    subscription = reader.bytes_()
    assignment = reader.bytes_()
    reader.tags()
    return MemberMetadata(
        member_id=member_id,
        group_instance_id=group_instance_id,
        client_id=client_id,
        client_host=client_host,
        rebalance_timeout_ms=rebalance_timeout_ms,
        session_timeout_ms=session_timeout_ms,
        subscription=subscription,
        assignment=assignment,
    )
