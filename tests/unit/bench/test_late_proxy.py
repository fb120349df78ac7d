"""The proxy of benchmarks: what it forwards is as it was, and answers to puts come late."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias

import pytest
from tests.patience import HANG_S

from penstock.errors import InvalidRequestError
from penstock_tools.bench.late_proxy import Delays, LateProxy, proxy_process

pytestmark = pytest.mark.anyio


Handler: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class CountedDelays(Delays):
    """Tell how many were drawn."""

    drawn = 0

    def next_s(self) -> float:
        self.drawn += 1
        return 0.02


@asynccontextmanager
async def proxied(
    server: Handler, delays: Delays
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection through a proxy to ``server``, a handler of connections."""
    handlers: list[asyncio.Task[None]] = []

    async def served(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.append(task)
        await handler(reader, writer)
        writer.close()
        await writer.wait_closed()

    behind = await asyncio.start_server(partial(served, server), "127.0.0.1", 0)
    async with behind:
        proxy = LateProxy("127.0.0.1", behind.sockets[0].getsockname()[1], delays)
        before = await asyncio.start_server(partial(served, proxy.serve), "127.0.0.1", 0)
        async with before:
            reader, writer = await asyncio.open_connection(*before.sockets[0].getsockname()[:2])
            try:
                yield reader, writer
            finally:
                writer.close()
                await writer.wait_closed()
                await asyncio.wait(handlers)


async def test_requests_and_answers_pass_unchanged_and_only_puts_are_delayed() -> None:
    asked: list[bytes] = []
    put = b"PUT /b/k HTTP/1.1\r\nContent-Length: 5\r\n\r\n"
    waiting = put.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
    answers = {
        put: b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        waiting: b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 2\r\n\r\nno",
        b"HEAD / HTTP/1.1\r\n\r\n": b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    }

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"Expect" in head:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                asked.append(head + (await reader.readexactly(5) if head.startswith(b"PUT") else b""))
                writer.write(answers[head])
        except asyncio.IncompleteReadError:
            return

    delays = CountedDelays(60, 200, 1)
    async with asyncio.timeout(HANG_S), proxied(server, delays) as (reader, writer):
        for head, answer in answers.items():
            writer.write(head)
            if b"Expect" in head:
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            if head.startswith(b"PUT"):
                writer.write(b"12345")
            assert await reader.readexactly(len(answer)) == answer
    assert asked == [put + b"12345", waiting + b"12345", *list(answers)[2:]]
    assert delays.drawn == 2


async def test_a_server_that_goes_away_takes_the_connection_with_it() -> None:
    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async with asyncio.timeout(HANG_S), proxied(server, Delays(1, 2, 1)) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == b""


def test_delays_have_the_median_and_the_p99_that_were_asked_for() -> None:
    delays = Delays(60, 200, 1)
    drawn = [delays.next_s() * 1000 for _ in range(20_000)]
    assert statistics.median(drawn) == pytest.approx(60, rel=0.05)
    assert statistics.quantiles(drawn, n=100)[98] == pytest.approx(200, rel=0.1)


def test_only_a_plain_server_is_put_behind_it() -> None:
    with (
        pytest.raises(InvalidRequestError, match=r"like http://127.0.0.1:9000"),
        proxy_process("s3://b", 1, 2, 1),
    ):
        pass
