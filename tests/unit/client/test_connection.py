"""One connection against a scripted broker: versions, pipelining, and one clear sentence per way to fail."""

from __future__ import annotations

import anyio
import anyio.abc
import pytest
from tests.patience import HANG_S
from tests.unit.client.fake_broker import HANG_UP, SILENCE, FakeBroker

from penstock.errors import ClosedError, InvalidRequestError, UnavailableError
from penstock.wire import ApiKey, VersionRange
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic, MetadataResponse
from penstock_tools.client._scope import task_group
from penstock_tools.client.connection import Connection, choose_version

pytestmark = pytest.mark.anyio


def ask(name: str) -> MetadataRequest:
    return MetadataRequest(topics=[MetadataRequestTopic(name=name)])


async def free_port() -> int:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener:
        return int(listener.extra(anyio.abc.SocketAttribute.local_port))


async def test_requests_go_out_in_the_newest_version_that_both_speak() -> None:
    async with FakeBroker().serving() as broker, Connection.open("127.0.0.1", broker.port) as connection:
        await connection.request(ApiKey.METADATA, ask("t"))
        assert [(key, version) for key, version, _ in broker.seen] == [
            (ApiKey.API_VERSIONS, 3),
            (ApiKey.METADATA, 9),
        ]


async def test_a_broker_that_knows_only_the_first_version_of_api_versions_is_asked_again() -> None:
    broker = FakeBroker()
    broker.versions[ApiKey.API_VERSIONS] = (0, 0)
    async with broker.serving(), Connection.open("127.0.0.1", broker.port) as connection:
        assert connection.version_of(ApiKey.METADATA) == 9


async def test_pipelined_requests_get_their_own_answers() -> None:
    broker = FakeBroker({f"t{index}": index + 1 for index in range(20)})
    async with broker.serving(), Connection.open("127.0.0.1", broker.port) as connection:
        pending = [await connection.begin(ApiKey.METADATA, ask(f"t{index}")) for index in range(20)]
        for index, each in enumerate(pending):
            await each.wait(HANG_S)
            answer = each.result()
            assert isinstance(answer, MetadataResponse)
            assert len(answer.topics[0].partitions) == index + 1


async def test_nobody_listening_is_one_sentence_that_says_what_to_do() -> None:
    port = await free_port()
    with pytest.raises(UnavailableError, match=f"no broker listens there.*penstock serve.*127.0.0.1:{port}"):
        async with Connection.open("127.0.0.1", port):
            pytest.fail("connected")


async def test_a_broker_that_hangs_up_at_once_may_want_tls() -> None:
    broker = FakeBroker()
    broker.override[ApiKey.API_VERSIONS] = lambda request: HANG_UP
    async with broker.serving():
        with pytest.raises(UnavailableError, match="TLS or SASL"):
            async with Connection.open("127.0.0.1", broker.port):
                pytest.fail("connected")


async def test_what_speaks_another_protocol_is_named_as_such() -> None:
    async def speak_http(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100))

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, task_group() as tasks:
        tasks.start_soon(listener.serve, speak_http)
        with pytest.raises(UnavailableError, match="doesn't speak Kafka's protocol"):
            async with Connection.open("127.0.0.1", port):
                pytest.fail("connected")


async def test_an_answer_that_does_not_come_ends_the_connection_for_all_who_wait() -> None:
    broker = FakeBroker()
    broker.override[ApiKey.METADATA] = lambda request: SILENCE
    async with broker.serving(), Connection.open("127.0.0.1", broker.port) as connection:
        other = await connection.begin(ApiKey.METADATA, ask("t"))
        with pytest.raises(UnavailableError, match=r"didn't answer within 0.05 s.*request=metadata"):
            await connection.request(ApiKey.METADATA, ask("t"), timeout_s=0.05)
        assert not connection.is_usable
        with pytest.raises(UnavailableError):
            other.result()
        with pytest.raises(UnavailableError):
            await connection.request(ApiKey.METADATA, ask("t"))


async def test_a_request_that_is_cancelled_leaves_the_connection_to_others() -> None:
    broker = FakeBroker()
    async with broker.serving(), Connection.open("127.0.0.1", broker.port) as connection:
        with anyio.CancelScope() as scope:
            pending = await connection.begin(ApiKey.METADATA, ask("t"))
            scope.cancel()
            await pending.wait(HANG_S)
        answer = await connection.request(ApiKey.METADATA, ask("t"))
        assert isinstance(answer, MetadataResponse)


async def test_closing_answers_those_who_wait() -> None:
    broker = FakeBroker()
    broker.override[ApiKey.METADATA] = lambda request: SILENCE
    async with broker.serving():
        async with Connection.open("127.0.0.1", broker.port) as connection:
            pending = await connection.begin(ApiKey.METADATA, ask("t"))
        with pytest.raises(ClosedError):
            pending.result()


async def test_an_api_that_the_broker_lacks_is_refused_before_anything_is_sent() -> None:
    async with FakeBroker().serving() as broker, Connection.open("127.0.0.1", broker.port) as connection:
        with pytest.raises(InvalidRequestError, match="doesn't have this api: api=delete_groups"):
            await connection.begin(ApiKey.DELETE_GROUPS, ApiVersionsRequest())
        assert len(broker.seen) == 1


@pytest.mark.parametrize(
    ("broker", "expected"), [(VersionRange(0, 99), 12), (VersionRange(0, 5), 5), (VersionRange(4, 4), 4)]
)
def test_produce_stops_at_the_last_version_with_topic_names(broker: VersionRange, expected: int) -> None:
    assert choose_version(ApiKey.PRODUCE, broker, "a") == expected


def test_no_version_in_common_names_both_ranges() -> None:
    with pytest.raises(InvalidRequestError, match="broker=0-2 client=3-12"):
        choose_version(ApiKey.PRODUCE, VersionRange(0, 2), "a")
