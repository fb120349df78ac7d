"""No request stays without an answer while its connection is open: whatever breaks it off ends the connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest
from tests.unit.api.fakes import FakeLogs, make_batch
from tests.unit.server.harness import Harness, produce, serving

from penstock.api.context import RequestContext
from penstock.api.dispatch import apis
from penstock.server import requests
from penstock.server.large_frame import LargeFrame
from penstock.server.waiting import WaitingProduce
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.init_producer_id import InitProducerIdRequest
from penstock.wire.messages.metadata import MetadataRequest, MetadataRequestTopic
from penstock.wire.registry import Message

pytestmark = pytest.mark.anyio

#: How a piece of work may break off, other than by an error that its client is told.
Breaks = Callable[[], Awaitable[Any]]


async def fails() -> None:
    raise ZeroDivisionError("oops")


async def is_cancelled_by_others() -> None:
    raise anyio.get_cancelled_exc_class()("by whoever owns what it waited for")


async def forgets() -> None:
    """Ends as if all were well."""


@pytest.fixture
def logs() -> FakeLogs:
    logs = FakeLogs()
    logs.add("t", 2)
    return logs


async def ends_with_a_line(
    harness: Harness,
    caplog: pytest.LogCaptureFixture,
    api_key: int,
    version: int,
    request: Message,
    cut: int = 0,
) -> None:
    """The client that asks gets the end of its connection, the log a line, and others are served."""
    async with await harness.connect() as client, await harness.connect() as other:
        frame = client.frame(api_key, version, request)
        await client.send_raw(frame[:cut] if cut else frame)
        assert await client.ends()
        await other.call(ApiKey.METADATA, 9, MetadataRequest(topics=[]))
    assert "this is a bug" in caplog.text
    assert harness.server.core.handling.used == 0
    assert harness.allocator.used == 0


@pytest.mark.parametrize("breaks", [is_cancelled_by_others, forgets])
async def test_a_handler_that_breaks_off_ends_its_connection(
    logs: FakeLogs, caplog: pytest.LogCaptureFixture, breaks: Breaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(request: Message, context: RequestContext) -> Any:
        return await breaks()

    async def no_answer(*args: Any, **kwargs: Any) -> None:
        """An answer that nobody makes."""

    if breaks is forgets:
        monkeypatch.setattr(requests, "_answer_in_turn", no_answer)
    api = replace(apis()[ApiKey.INIT_PRODUCER_ID], handler=handler, nowait=None)
    async with serving(logs, handlers=[api]) as harness:
        request = InitProducerIdRequest(transactional_id=None)
        await ends_with_a_line(harness, caplog, ApiKey.INIT_PRODUCER_ID, 3, request)


@pytest.mark.parametrize("breaks", [fails, is_cancelled_by_others])
async def test_a_long_request_that_breaks_off_ends_its_connection(
    logs: FakeLogs, caplog: pytest.LogCaptureFixture, breaks: Breaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any) -> Any:
        return await breaks()

    monkeypatch.setattr(requests, "admit_and_decode", broken)
    topics = [MetadataRequestTopic(name=f"absent-{number}") for number in range(3000)]
    async with serving(logs) as harness:
        await ends_with_a_line(harness, caplog, ApiKey.METADATA, 9, MetadataRequest(topics=topics))


@pytest.mark.parametrize("breaks", [fails, is_cancelled_by_others])
async def test_an_answer_that_breaks_off_ends_its_connection(
    logs: FakeLogs, caplog: pytest.LogCaptureFixture, breaks: Breaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any, **kwargs: Any) -> Any:
        return await breaks()

    monkeypatch.setattr(requests, "_answer_in_turn", broken)
    async with serving(logs, handlers=[replace(apis()[ApiKey.INIT_PRODUCER_ID], nowait=None)]) as harness:
        request = InitProducerIdRequest(transactional_id=None)
        await ends_with_a_line(harness, caplog, ApiKey.INIT_PRODUCER_ID, 3, request)


@pytest.mark.parametrize("breaks", [fails, is_cancelled_by_others, forgets])
async def test_a_waiting_produce_that_breaks_off_ends_its_connection(
    logs: FakeLogs, caplog: pytest.LogCaptureFixture, breaks: Breaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any) -> None:
        await breaks()

    monkeypatch.setattr(WaitingProduce, "run", broken)
    logs.room = 0
    async with serving(logs) as harness:
        await ends_with_a_line(harness, caplog, ApiKey.PRODUCE, 9, produce(make_batch()))


@pytest.mark.parametrize("breaks", [fails, is_cancelled_by_others])
async def test_a_wait_for_memory_that_breaks_off_ends_its_connection(
    logs: FakeLogs, caplog: pytest.LogCaptureFixture, breaks: Breaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: Any) -> None:
        await breaks()

    monkeypatch.setattr(LargeFrame, "wait_for_grant", broken)
    monkeypatch.setattr(LargeFrame, "try_grant", lambda *args: False)
    request = produce(make_batch(1, b"x" * 900_000))
    async with serving(logs) as harness:
        await ends_with_a_line(harness, caplog, ApiKey.PRODUCE, 9, request, cut=20_000)
