"""Keys and values of `__consumer_offsets`, byte for byte as Kafka writes them, in the coordinator's words.

    key version 0, 1   a committed offset      OffsetCommitKey, OffsetCommitValue
    key version 2      a group                 GroupMetadataKey, GroupMetadataValue

As they are written::

    offset key:     int16 1, string group, string topic, int32 partition
    offset value:   int16 3, int64 offset, int32 leader epoch, string metadata, int64 commit time
    expiring:       int16 1, int64 offset, string metadata, int64 commit time, int64 expiry time
    group key:      int16 2, string group
    group value:    int16 3, string protocol type, int32 generation, string protocol, string leader,
                    int64 time of the state, int32 members, then each member
    member:         string id, string instance id, string client id, string host, int32 rebalance timeout,
                    int32 session timeout, bytes subscription, bytes assignment

A string is an int16 length (-1: null) and UTF-8, bytes have an int32 length; integers are big-endian, times in ms.
The first int16 of keys and values is their version; a null value is a tombstone. The expiring value is for
OffsetCommit v2-4 that asked for a retention time. All versions up to 4 are read. The codecs are generated from the
schemas (``penstock.wire.messages``); this module says which version is written, and what is damage.
"""

from __future__ import annotations

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
    "encode_long_group_value",
    "encode_offset_key",
    "encode_offset_value",
)

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import anyio.lowlevel
import msgspec

from penstock.coordinator.group_types import CommittedOffset, GroupMetadata, MemberMetadata
from penstock.errors import CorruptError, NewerVersionError
from penstock.wire import DecodeError
from penstock.wire.messages import group_metadata_value, offset_commit_key, offset_commit_value
from penstock.wire.messages.group_metadata_key import GroupMetadataKey
from penstock.wire.messages.group_metadata_value import GroupMetadataValue
from penstock.wire.messages.group_metadata_value import MemberMetadata as MemberValue
from penstock.wire.messages.offset_commit_key import OffsetCommitKey
from penstock.wire.messages.offset_commit_value import OffsetCommitValue
from penstock.wire.registry import data_encoder, decode_data, encode_data
from penstock.work.pieces import PORTION, pieces

#: The name of the log, for messages.
OFFSETS_LOG: Final = "__consumer_offsets"
_OFFSET_KEY_VERSION: Final = 1
GROUP_KEY_VERSION: Final = 2
_OFFSET_VALUE_VERSION: Final = 3
#: The only one that has a place for an expiry time; it has none for the leader epoch.
_OFFSET_VALUE_VERSION_EXPIRING: Final = 1
_GROUP_VALUE_VERSION: Final = 3
_NO_EXPIRY: Final = -1

_pack_count = struct.Struct(">i").pack
_unpack_version = struct.Struct(">h").unpack_from
# of commits there are thousands a second
_encode_offset_key = data_encoder(_OFFSET_KEY_VERSION, offset_commit_key.ENCODERS)
_encode_offset_value = data_encoder(_OFFSET_VALUE_VERSION, offset_commit_value.ENCODERS)
_encode_offset_value_expiring = data_encoder(_OFFSET_VALUE_VERSION_EXPIRING, offset_commit_value.ENCODERS)

_M = TypeVar("_M", bound=msgspec.Struct)


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


def encode_offset_key(group_id: str, topic: str, partition: int) -> bytes:
    """OffsetCommitKey version 1."""
    return _encode_offset_key(OffsetCommitKey(group=group_id, topic=topic, partition=partition))


def encode_group_key(group_id: str) -> bytes:
    """GroupMetadataKey version 2."""
    return encode_data(GROUP_KEY_VERSION, GroupMetadataKey(group=group_id))


def decode_key(key: bytes) -> OffsetKey | GroupKey | UnknownKey:
    """Tell what a record is about.

    Raises:
        CorruptError: the key isn't well-formed.
    """
    version = _version(key, "a key")
    if version == _OFFSET_KEY_VERSION or version == 0:
        offset = _decode(OffsetCommitKey, key, "a key")
        return OffsetKey(offset.group, offset.topic, offset.partition)
    if version == GROUP_KEY_VERSION:
        return GroupKey(_decode(GroupMetadataKey, key, "a key").group)
    return UnknownKey(version)


def encode_offset_value(committed: CommittedOffset) -> bytes:
    """OffsetCommitValue version 3, or version 1 when an expiry time was asked for (as Kafka does)."""
    expire_ms = committed.expire_timestamp_ms
    value = OffsetCommitValue(
        offset=committed.offset,
        leader_epoch=committed.leader_epoch,
        metadata=committed.metadata,
        commit_timestamp=committed.commit_timestamp_ms,
        expire_timestamp=_NO_EXPIRY if expire_ms is None else expire_ms,
    )
    return _encode_offset_value(value) if expire_ms is None else _encode_offset_value_expiring(value)


def decode_offset_value(value: bytes) -> CommittedOffset:
    """Read OffsetCommitValue versions 0 to 4.

    Raises:
        CorruptError: the value isn't well-formed.
        NewerVersionError: a newer version wrote it.
    """
    what = "an offset commit"
    _check_known(_version(value, what), offset_commit_value.DECODERS, what)
    read = _decode(OffsetCommitValue, value, what)
    return CommittedOffset(
        read.offset,
        read.leader_epoch,
        read.metadata,
        read.commit_timestamp,
        None if read.expire_timestamp == _NO_EXPIRY else read.expire_timestamp,
    )


def encode_group_value(metadata: GroupMetadata) -> bytes:
    """GroupMetadataValue version 3."""
    return _encode_group_value(metadata, metadata.members)


async def encode_long_group_value(metadata: GroupMetadata) -> bytes:
    """`encode_group_value` of any number of members, in portions: others get their turn between them."""
    # members come last: of each portion's value only they are taken, and the empty value's count is replaced
    head = _encode_group_value(metadata, ())
    value = bytearray(head[: -len(_pack_count(0))] + _pack_count(len(metadata.members)))
    for portion in pieces(metadata.members, PORTION):
        value += _encode_group_value(metadata, portion)[len(head) :]
        await anyio.lowlevel.checkpoint()
    return bytes(value)


def _encode_group_value(metadata: GroupMetadata, members: Sequence[MemberMetadata]) -> bytes:
    return encode_data(
        _GROUP_VALUE_VERSION,
        GroupMetadataValue(
            protocol_type=metadata.protocol_type,
            generation=metadata.generation_id,
            protocol=metadata.protocol_name,
            leader=metadata.leader,
            current_state_timestamp=metadata.state_timestamp_ms,
            members=[
                MemberValue(
                    member_id=member.member_id,
                    group_instance_id=member.group_instance_id,
                    client_id=member.client_id,
                    client_host=member.client_host,
                    rebalance_timeout=member.rebalance_timeout_ms,
                    session_timeout=member.session_timeout_ms,
                    subscription=member.subscription,
                    assignment=member.assignment,
                )
                for member in members
            ],
        ),
    )


def decode_group_value(value: bytes) -> GroupMetadata:
    """Read GroupMetadataValue versions 0 to 4.

    Raises:
        CorruptError: the value isn't well-formed.
        NewerVersionError: a newer version wrote it.
    """
    what = "group metadata"
    version = _version(value, what)
    _check_known(version, group_metadata_value.DECODERS, what)
    read = _decode(GroupMetadataValue, value, what)
    return GroupMetadata(
        protocol_type=read.protocol_type,
        generation_id=read.generation,
        protocol_name=read.protocol,
        leader=read.leader,
        state_timestamp_ms=read.current_state_timestamp,
        members=tuple(_member(member, version) for member in read.members),
    )


def _member(read: MemberValue, version: int) -> MemberMetadata:
    # version 0 has no rebalance timeout: the session timeout stands in for it, as in JoinGroup v0 (KIP-62)
    has_rebalance_timeout = version >= 1 and read.rebalance_timeout >= 0
    return MemberMetadata(
        member_id=read.member_id,
        group_instance_id=read.group_instance_id,
        client_id=read.client_id,
        client_host=read.client_host,
        rebalance_timeout_ms=read.rebalance_timeout if has_rebalance_timeout else read.session_timeout,
        session_timeout_ms=read.session_timeout,
        # views of the record, which isn't kept
        subscription=bytes(read.subscription),
        assignment=bytes(read.assignment),
    )


def _version(data: bytes, what: str) -> int:
    """The version that ``data`` begins with."""
    try:
        version: int = _unpack_version(data)[0]
    except struct.error as error:
        raise CorruptError(
            f"{what} in {OFFSETS_LOG} is malformed, it ends before its version: size={len(data)}"
        ) from error
    return version


def _check_known(version: int, decoders: Mapping[int, object], what: str) -> None:
    known = max(decoders)
    if version > known:
        raise NewerVersionError.of(what, f"log={OFFSETS_LOG}", version=version, known=known)
    if version < 0:
        raise CorruptError(f"{what} in {OFFSETS_LOG} is malformed, no version={version}")


def _decode(message_type: type[_M], data: bytes, what: str) -> _M:
    try:
        return decode_data(message_type, data)[1]
    except DecodeError as error:
        raise CorruptError(f"{what} in {OFFSETS_LOG} is malformed, {error}") from error
