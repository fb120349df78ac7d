"""A server on a free port, and a client that speaks frames."""

from __future__ import annotations

import itertools
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream
from tests.patience import HANG_S
from tests.unit.api.fakes import FakeAllocator, FakeLogs, make_api

from penstock.api.context import ApiContext
from penstock.api.declaration import Api
from penstock.api.dispatch import apis
from penstock.api.gate import Gate
from penstock.server import ListenerSettings, Server, ServerSettings
from penstock.spi.authorizer import Authorizer
from penstock.wire.messages.produce import (
    PartitionProduceData,
    ProduceRequest,
    ProduceResponse,
    TopicProduceData,
)
from penstock.wire.registry import Message, decode_response, encode_request

DEADLINE_S = HANG_S


class Harness:
    """The server under test and what it stands on."""

    def __init__(self, logs: FakeLogs, api: ApiContext, allocator: FakeAllocator, server: Server) -> None:
        self.logs = logs
        self.api = api
        self.allocator = allocator
        self.server = server

    async def connect(self) -> Client:
        """A new connection."""
        endpoint = self.server.endpoints[0]
        return Client(await anyio.connect_tcp("127.0.0.1", endpoint.port))

    async def until_clients_are_full(self) -> None:
        """Wait until the system takes no more for any client, all of whom are being sent something, and note it."""
        await until(lambda: all(one.outbox.waits_for_client for one in self.server.connections))
        for one in self.server.connections:
            one.probe(self.server.core.time())


@asynccontextmanager
async def serving(
    logs: FakeLogs | None = None,
    *,
    handlers: Sequence[Api] = (),
    memory_bytes: int = 1 << 30,
    api_settings: dict[str, Any] | None = None,
    clock: Any = None,
    gate: Gate | None = None,
    authorizer: Authorizer | None = None,
    **settings: Any,
) -> AsyncIterator[Harness]:
    """A server with the topic ``t`` of two partitions. Fails when it isn't left in time."""
    if logs is None:
        logs = FakeLogs()
        logs.add("t", 2)
    settings.setdefault("half_closed_wait_ms", 0)  # most clients here that close are gone
    with anyio.fail_after(DEADLINE_S):
        api = make_api(logs, clock, authorizer=authorizer, **(api_settings or {}))
        allocator = FakeAllocator(memory_bytes)
        table = apis()
        for handler in handlers:
            table[handler.key] = handler
        async with Server(
            listeners=[ListenerSettings(port=0)],
            api=api,
            apis=table,
            allocator=allocator,  # type: ignore[arg-type]
            settings=ServerSettings(**settings),
            gate=gate,
        ) as server:
            yield Harness(logs, api, allocator, server)


class Client:
    """Writes requests and reads responses in order."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._next_id = 0
        self._sent: list[tuple[int, int, int]] = []

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stream.aclose()

    def frame(self, api_key: int, version: int, message: Message, *, answered: bool = True) -> bytes:
        """The bytes of a request; its response is expected in this order."""
        self._next_id += 1
        if answered:
            self._sent.append((api_key, version, self._next_id))
        return b"".join(encode_request(api_key, version, self._next_id, "test", message))

    async def send_raw(self, data: bytes) -> None:
        await self._stream.send(data)

    def send_now(self, data: bytes) -> None:
        """Hand ``data`` to the system without a turn of the loop."""
        os.write(self._stream.extra(SocketAttribute.raw_socket).fileno(), data)

    async def finish_sending(self) -> None:
        await self._stream.send_eof()

    async def reset(self) -> None:
        """Be gone without a word: what the server sends meets nobody."""
        sock = self._stream.extra(SocketAttribute.raw_socket)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self._stream.aclose()

    async def send(self, api_key: int, version: int, message: Message, *, answered: bool = True) -> None:
        await self.send_raw(self.frame(api_key, version, message, answered=answered))

    async def receive(self) -> Any:
        """The next response, which must be to the oldest unanswered request."""
        api_key, version, correlation_id = self._sent.pop(0)
        size = struct.unpack(">i", await self._exactly(4))[0]
        got_id, message = decode_response(api_key, version, await self._exactly(size))
        assert got_id == correlation_id
        return message

    async def receive_raw(self, size: int) -> bytes:
        """The next bytes as they are."""
        return await self._exactly(size)

    async def call(self, api_key: int, version: int, message: Message) -> Any:
        """Send and receive."""
        await self.send(api_key, version, message)
        return await self.receive()

    async def ends(self) -> bool:
        """Whether the server closes without a further byte."""
        try:
            return not self._buffer and not await self._stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            return True

    async def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += await self._stream.receive(1 << 20)
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


def produce(
    *batches: bytes | bytearray,
    topic: str = "t",
    partition: int = 0,
    acks: int = -1,
    timeout_ms: int = 10_000,
) -> ProduceRequest:
    """A request with one batch for each of the partitions from ``partition`` on."""
    return ProduceRequest(
        acks=acks,
        timeout_ms=timeout_ms,
        topic_data=[
            TopicProduceData(
                name=topic,
                partition_data=[
                    PartitionProduceData(index=partition + at, records=bytes(batch))
                    for at, batch in enumerate(batches)
                ],
            )
        ],
    )


def offsets(response: ProduceResponse) -> list[tuple[int, int]]:
    """(error code, base offset) of each partition."""
    return [
        (partition.error_code, partition.base_offset)
        for topic in response.responses
        for partition in topic.partition_responses
    ]


#: So often the loop turns without a pause, and so long one is.
_TURNS_AT_ONCE = 100
_PAUSE_S = 0.001


async def until(condition: Any) -> None:
    """Let the loop turn until ``condition()`` holds; the harness has the deadline.

    What the kernel or a thread does isn't there after some turns: then they have the processor in between.
    """
    for turn in itertools.count():
        if condition():
            return
        await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0 if turn < _TURNS_AT_ONCE else _PAUSE_S)
