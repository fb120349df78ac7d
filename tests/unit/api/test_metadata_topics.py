"""A large Metadata response is put together in pieces: the same bytes as in one go, and never old ones."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs, make_context

from penstock.api import metadata as metadata_module
from penstock.api import metadata_topics
from penstock.api.context import RequestContext
from penstock.api.metadata import handle_metadata, metadata_nowait
from penstock.api.metadata_topics import MetadataFragments, describe_topic
from penstock.wire.api_keys import ApiKey
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic, MetadataResponse
from penstock.wire.registry import decode_response, encode_response

pytestmark = pytest.mark.anyio
VERSIONS = range(14)


@pytest.fixture
def context(logs: FakeLogs) -> RequestContext:
    logs.add("many", 300)
    logs.add("other", 2, internal=True)
    for index in (0, 4, 299):
        del logs._partitions["many", index]
    return make_context(logs, 12)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_topics, "_PIECE_PARTITIONS", 7)


async def in_one_go(request: MetadataRequest, context: RequestContext) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata_module, "PARTITIONS_INLINE_MAX", 10**6)
        response = metadata_nowait(request, context)
    assert response is not None
    return b"".join(encode_response(ApiKey.METADATA, context.version, 5, response))


async def in_pieces(request: MetadataRequest, context: RequestContext) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata_module, "PARTITIONS_INLINE_MAX", 0)
        assert metadata_nowait(request, context) is None
        response = await handle_metadata(request, context)
    assert not isinstance(response, MetadataResponse)
    return b"".join(encode_response(ApiKey.METADATA, context.version, 5, response))


@pytest.mark.parametrize("version", VERSIONS)
async def test_pieces_are_the_same_bytes_in_every_version(context: RequestContext, version: int) -> None:
    context.version = version
    everything = MetadataRequest(topics=None if version else [])
    named = MetadataRequest(topics=[MetadataRequestTopic(name=name) for name in ("t", "absent", "many", "t")])
    for request in (everything, named):
        request.include_topic_authorized_operations = version >= 8
        request.include_cluster_authorized_operations = 8 <= version <= 10
        request.allow_auto_topic_creation = False
        expected = await in_one_go(request, context)
        assert await in_pieces(request, context) == expected
        assert await in_pieces(request, context) == expected, "from what was kept"
        decode_response(ApiKey.METADATA, version, memoryview(expected)[4:])


async def test_what_was_kept_is_given_up_when_the_topic_changes(
    logs: FakeLogs, context: RequestContext
) -> None:
    request = MetadataRequest(topics=None)
    before = await in_pieces(request, context)
    logs.topics()["many"].partition_count += 1
    assert await in_pieces(request, context) == await in_one_go(request, context) != before
    del logs._partitions["t", 1]
    logs.topics()["t"].version += 1
    changed = await in_pieces(request, context)
    assert changed == await in_one_go(request, context)
    logs._partitions["other", 0].unavailable = "damaged"
    logs.topics()["other"].version += 1
    assert await in_pieces(request, context) == await in_one_go(request, context) != changed
    del logs._by_name["other"]
    assert await in_pieces(request, context) == await in_one_go(request, context) != changed


async def test_only_what_may_be_asked_for_again_is_kept(logs: FakeLogs, context: RequestContext) -> None:
    for version in VERSIONS:
        context.version = version
        await in_pieces(MetadataRequest(topics=None if version else []), context)
    fragments: MetadataFragments = context.api.metadata_fragments
    assert [version for version, _ in fragments._kinds] == [10, 11, 12, 13]
    del logs._by_name["many"]
    await in_pieces(MetadataRequest(topics=None), context)
    assert len(fragments._kinds[13, -(2**31)].encoded) == 2


@pytest.mark.parametrize("elsewhere", [-1, 8])
async def test_a_partition_that_another_node_leads_has_no_leader_that_a_client_could_reach(
    logs: FakeLogs, elsewhere: int
) -> None:
    """Metadata say who leads, and of another node no address is known; what is still open here shows nothing."""
    topic = logs.add("led", partitions=2)
    topic.led_elsewhere[1] = elsewhere
    described = describe_topic(topic, make_context(logs, 12).api.logs, 0)
    assert [(p.leader_id, p.error_code) for p in described.partitions] == [
        (7, 0),
        (-1, ErrorCode.LEADER_NOT_AVAILABLE),
    ]
