"""The bytes of `__consumer_offsets`: literals, the generated codecs as an oracle, and damage."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.coordinator.test_group_service import REQUEST

from penstock.coordinator import group_protocols
from penstock.coordinator.group_machine import Group
from penstock.coordinator.group_member import Member
from penstock.coordinator.group_types import (
    CommittedOffset,
    GroupMetadata,
    GroupSettings,
    MemberMetadata,
)
from penstock.coordinator.records import (
    GroupKey,
    OffsetKey,
    UnknownKey,
    decode_group_value,
    decode_key,
    decode_offset_value,
    encode_group_key,
    encode_group_value,
    encode_long_group_value,
    encode_offset_key,
    encode_offset_value,
)
from penstock.coordinator.subscription import subscribed_topics
from penstock.errors import CorruptError, NewerVersionError
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.consumer_protocol_subscription import ConsumerProtocolSubscription
from penstock.wire.messages.group_metadata_value import GroupMetadataValue
from penstock.wire.messages.group_metadata_value import MemberMetadata as WireMember
from penstock.wire.messages.offset_commit_value import OffsetCommitValue
from penstock.wire.registry import decode_data, encode_data
from penstock.work.pieces import PORTION

TEXT = st.text(max_size=20)
INT32 = st.integers(0, 2**31 - 1)
INT64 = st.integers(0, 2**63 - 1)
MEMBERS = st.builds(
    MemberMetadata,
    member_id=TEXT,
    group_instance_id=st.none() | TEXT,
    client_id=TEXT,
    client_host=TEXT,
    rebalance_timeout_ms=INT32,
    session_timeout_ms=INT32,
    subscription=st.binary(max_size=20),
    assignment=st.binary(max_size=20),
)
GROUPS = st.builds(
    GroupMetadata,
    protocol_type=TEXT,
    generation_id=INT32,
    protocol_name=st.none() | TEXT,
    leader=st.none() | TEXT,
    state_timestamp_ms=INT64,
    members=st.lists(MEMBERS, max_size=3).map(tuple),
)


@pytest.mark.anyio
@pytest.mark.parametrize("count", [0, 1, PORTION, 2 * PORTION + 1])
async def test_a_group_of_any_size_is_the_same_bytes_in_portions(count: int) -> None:
    members = tuple(
        MemberMetadata(
            f"m{i}", None if i % 2 else f"i{i}", "c", "/h", i, i + 1, bytes([i % 256]), b"a" * (i % 7)
        )
        for i in range(count)
    )
    metadata = GroupMetadata(
        protocol_type="consumer",
        generation_id=3,
        protocol_name="range",
        leader="m0",
        state_timestamp_ms=5,
        members=members,
    )
    assert await encode_long_group_value(metadata) == encode_group_value(metadata)


def test_keys_are_kafkas_bytes() -> None:
    assert encode_offset_key("g", "tp", 7) == b"\x00\x01\x00\x01g\x00\x02tp\x00\x00\x00\x07"
    assert encode_group_key("g") == b"\x00\x02\x00\x01g"
    assert decode_key(b"\x00\x00\x00\x01g\x00\x02tp\x00\x00\x00\x07") == OffsetKey("g", "tp", 7)
    assert decode_key(encode_offset_key("g", "tp", 7)) == OffsetKey("g", "tp", 7)
    assert decode_key(encode_group_key("g")) == GroupKey("g")
    assert decode_key(b"\x00\x09whatever") == UnknownKey(9)


def test_offset_values_are_kafkas_bytes() -> None:
    assert encode_offset_value(CommittedOffset(1, 2, "m", 3)) == (
        b"\x00\x03" + b"\0" * 7 + b"\x01" + b"\0\0\0\x02" + b"\0\x01m" + b"\0" * 7 + b"\x03"
    )
    assert encode_offset_value(CommittedOffset(1, 2, "", 3, 4)) == (
        b"\x00\x01" + b"\0" * 7 + b"\x01" + b"\0\0" + b"\0" * 7 + b"\x03" + b"\0" * 7 + b"\x04"
    )


@given(offset=INT64, epoch=INT32, metadata=TEXT, at=INT64, expires=st.none() | INT64)
def test_offset_values_come_back_and_the_generated_codec_agrees(
    offset: int, epoch: int, metadata: str, at: int, expires: int | None
) -> None:
    committed = CommittedOffset(offset, epoch if expires is None else -1, metadata, at, expires)
    value = encode_offset_value(committed)
    assert decode_offset_value(value) == committed
    version, wire = decode_data(OffsetCommitValue, value)
    assert (wire.offset, wire.metadata, wire.commit_timestamp) == (offset, metadata, at)
    assert encode_data(version, wire) == value


@pytest.mark.parametrize("version", range(4))
def test_all_versions_of_offset_values_are_read(version: int) -> None:
    wire = OffsetCommitValue(offset=5, leader_epoch=6, metadata="m", commit_timestamp=7, expire_timestamp=8)
    decoded = decode_offset_value(encode_data(version, wire))
    expected = CommittedOffset(5, 6 if version == 3 else -1, "m", 7, 8 if version == 1 else None)
    assert decoded == expected


def test_the_flexible_offset_value_is_read_with_its_tags() -> None:
    """Version 4 carries the topic id as a tagged field."""
    value = b"\x00\x04" + b"\0" * 7 + b"\x05" + b"\0\0\0\x06" + b"\x02m" + b"\0" * 7 + b"\x07"
    assert decode_offset_value(value + b"\x01\x00\x10" + b"i" * 16) == CommittedOffset(5, 6, "m", 7)


@given(GROUPS)
def test_group_values_come_back_and_the_generated_codec_agrees(metadata: GroupMetadata) -> None:
    value = encode_group_value(metadata)
    assert decode_group_value(value) == metadata
    version, wire = decode_data(GroupMetadataValue, value)
    assert version == 3
    assert encode_data(version, wire) == value


@pytest.mark.parametrize("version", range(5))
def test_all_versions_of_group_values_are_read(version: int) -> None:
    wire = GroupMetadataValue(
        protocol_type="consumer",
        generation=3,
        protocol="range",
        leader="m",
        current_state_timestamp=9,
        members=[
            WireMember(
                member_id="m",
                group_instance_id="i",
                client_id="c",
                client_host="h",
                rebalance_timeout=60,
                session_timeout=10,
                subscription=b"s",
                assignment=b"a",
            )
        ],
    )
    decoded = decode_group_value(encode_data(version, wire))
    assert (decoded.generation_id, decoded.protocol_name, decoded.leader) == (3, "range", "m")
    assert decoded.state_timestamp_ms == (9 if version >= 2 else -1)
    (member,) = decoded.members
    assert member.group_instance_id == ("i" if version >= 3 else None)
    assert member.rebalance_timeout_ms == (60 if version >= 1 else 10)
    assert (member.subscription, member.assignment) == (b"s", b"a")


@given(GROUPS, st.data())
def test_a_cut_value_is_corrupt_and_never_something_else(
    metadata: GroupMetadata, data: st.DataObject
) -> None:
    value = encode_group_value(metadata)
    size = data.draw(st.integers(0, len(value) - 1))
    with pytest.raises(CorruptError):
        decode_group_value(value[:size])


@given(st.binary(max_size=60))
def test_noise_is_read_or_corrupt(noise: bytes) -> None:
    for decode in (decode_key, decode_offset_value, decode_group_value):
        try:
            decode(noise)
        except (CorruptError, NewerVersionError):
            continue


@pytest.mark.parametrize("decode", [decode_offset_value, decode_group_value])
def test_a_value_of_a_newer_version_is_named_and_never_corrupt(decode: object) -> None:
    assert callable(decode)
    with pytest.raises(NewerVersionError, match="__consumer_offsets version=9 known=4"):
        decode(b"\x00\x09" + b"\0" * 40)
    with pytest.raises(CorruptError, match="no version=-1"):
        decode(b"\xff\xff" + b"\0" * 40)


def test_left_over_bytes_are_corrupt() -> None:
    with pytest.raises(CorruptError, match="left over"):
        decode_key(encode_group_key("g") + b"\0")


@pytest.mark.parametrize("version", range(4))
def test_topics_are_read_from_all_versions_of_a_subscription(version: int) -> None:
    wire = ConsumerProtocolSubscription(topics=["a", "bé"], user_data=b"x")
    assert subscribed_topics(encode_data(version, wire)) == frozenset({"a", "bé"})


def test_nothing_but_topics_is_read_of_a_subscription() -> None:
    """As in Kafka. 170,000 partitions that a member owned before took the loop for a fifth of a second."""
    topics = encode_data(0, ConsumerProtocolSubscription(topics=["a"]))[2:]
    assert subscribed_topics(b"\0\1" + topics + b"\0\0\0\5 are not even there") == frozenset({"a"})


def test_no_more_topics_are_read_than_members_subscribe_to() -> None:
    """Members may say as much as a megabyte in strings without a character; what isn't read can't be told."""

    def member(number: int, count: int) -> Member:
        topics = encode_data(0, ConsumerProtocolSubscription(topics=["t"] * count, user_data=b"%d" % number))
        return Member(f"m{number}", replace(REQUEST, protocols=(("range", topics),)))

    half = group_protocols._TOPICS_MAX // 2
    members = [member(0, half), member(0, half), member(1, half)]
    subscribed = group_protocols.subscription_of(members, "range")
    assert subscribed is not None
    assert ("t" in subscribed, "" in subscribed) == (True, False)
    assert group_protocols.subscription_of([*members, member(2, 1)], "range") is None


def test_a_group_counts_the_topics_that_it_subscribes_to() -> None:
    """A megabyte of JoinGroup with names of two characters was 30 MB as names, on nobody's account."""
    count = 5_000
    names = [f"{number:x}" for number in range(count)]
    metadata = encode_data(0, ConsumerProtocolSubscription(topics=names))
    assert sys.getsizeof(group_protocols.Subscription(names)._hashes) < 2 * len(metadata)

    def restored(subscription: bytes) -> Group:
        group = Group("g", GroupSettings(), 0)
        member = MemberMetadata(
            member_id="m",
            group_instance_id=None,
            client_id="c",
            client_host="h",
            rebalance_timeout_ms=1000,
            session_timeout_ms=1000,
            subscription=subscription,
            assignment=b"",
        )
        group.restore(
            GroupMetadata(
                protocol_type="consumer",
                generation_id=1,
                protocol_name="range",
                leader="m",
                state_timestamp_ms=0,
                members=(member,),
            ),
            0,
        )
        return group

    group = restored(metadata)
    assert (group.is_subscribed_to(names[7]), group.is_subscribed_to("none")) == (True, False)
    assert group.size_bytes - restored(bytes(len(metadata))).size_bytes == 8 * count


@pytest.mark.parametrize(
    "metadata", [b"", b"\0", b"\0\0\0\0\0\x02\0\x01a", b"\0\0\xff\xff\xff\xff", b"\0\0\0\0\0\x01\0\x05a"]
)
def test_other_metadata_is_no_subscription(metadata: bytes) -> None:
    assert subscribed_topics(metadata) is None


def test_the_coordinators_error_codes_are_kafkas() -> None:
    for error in ErrorCode:
        assert ErrorCode[error.name] == int(error)
