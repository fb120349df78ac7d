"""A connection and everything that can happen to it, in any order: no request is lost, in the end nothing is held.

The connection is the real one; the transport, the log and the allocator are the test's, and it says when each of them
lets something go on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.depth import examples
from tests.patience import HANG_S
from tests.unit.api.fakes import FakeAllocator, FakeClock, FakeLogs, make_api, make_batch

from penstock.api.client import Endpoint
from penstock.api.dispatch import apis
from penstock.server import Server, ServerSettings
from penstock.server.connection import Connection
from penstock.server.pipeline import Wait
from penstock.server.settings import SCRATCH_BYTES
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from penstock.wire.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from penstock.wire.messages.produce import PartitionProduceData, ProduceRequest, TopicProduceData
from penstock.wire.record_batch import HEADER_BYTES
from penstock.wire.registry import Message, decode_response, encode_request

PIPELINE_MAX = 5
MEMORY_BYTES = 400_000


class Transport:
    """A socket whose other end takes what it is given, or nothing."""

    def __init__(self) -> None:
        self.sent = b""
        self.is_reading = True
        self.is_closed = False
        self.unsent = 0
        self.takes_all = True
        self.connection: Connection

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.sent += bytes(data)
        if not self.takes_all:
            was_empty, self.unsent = not self.unsent, self.unsent + len(data)
            if was_empty and len(data):
                self.connection.pause_writing()

    def writelines(self, parts: list[Any]) -> None:
        self.write(b"".join(bytes(part) for part in parts))

    def take(self) -> None:
        """The client takes everything."""
        unsent, self.unsent, self.takes_all = self.unsent, 0, True
        if unsent and not self.is_closed:
            self.connection.resume_writing()

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("10.1.2.3", 4) if name == "peername" else default

    def set_write_buffer_limits(self, **limits: int) -> None:
        """Of no interest."""

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        assert self.is_reading, "once"
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading, "once"
        self.is_reading = True

    def close(self) -> None:
        self.is_closed = True

    abort = close


class World:
    """A server with one client."""

    def __init__(self, server: Server, logs: FakeLogs, allocator: FakeAllocator, random: Random) -> None:
        self.server = server
        self.core = server.core
        self.logs = logs
        self.allocator = allocator
        self.random = random
        self.transport = Transport()
        self.connection = Connection(
            server.core, server.connections, Endpoint(node_id=1, host="localhost", port=1)
        )
        self.transport.connection = self.connection
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        #: (api key, version, what is to be in the log) of each request.
        self.sent: list[tuple[int, int, bytes | None]] = []
        self.data = b""
        self.core.call_later = self.call_later  # type: ignore[method-assign]
        self.timers: list[Callable[[], None]] = []

    def call_later(self, delay_s: float, function: Callable[[], None]) -> Any:
        self.timers.append(function)
        return self

    def cancel(self) -> None:
        """As a timer's."""

    # -- what the client does ---------------------------------------------------------------------------

    def ask(self) -> None:
        """Have one more request to send."""
        random = self.random
        value: bytes | None = None
        message: Message
        match random.randrange(6):
            case 0:
                key, version, message = ApiKey.API_VERSIONS, 0, ApiVersionsRequest()
            case 1:
                key, version = ApiKey.LIST_OFFSETS, 7
                place = ListOffsetsPartition(partition_index=0, timestamp=-1)
                topics = [ListOffsetsTopic(name="t", partitions=[place])]
                message = ListOffsetsRequest(replica_id=-1, topics=topics)
            case 2:
                key, version = ApiKey.FETCH, 11
                wanted = FetchPartition(partition=1, fetch_offset=0, partition_max_bytes=1000)
                message = FetchRequest(
                    max_wait_ms=300_000, min_bytes=1, topics=[FetchTopic(topic="t", partitions=[wanted])]
                )
            case _:
                size = random.choice([1, 10, 100, 100, 30_000, 50_000, 90_000, 150_000])
                value = len(self.sent).to_bytes(4, "big") * (size // 4 + 1)
                data = PartitionProduceData(index=0, records=bytes(make_batch(1, value)))
                key, version = ApiKey.PRODUCE, random.choice([7, 9, 9, 9])
                topics_data = [TopicProduceData(name="t", partition_data=[data])]
                message = ProduceRequest(acks=-1, timeout_ms=30_000, topic_data=topics_data)
        self.data += b"".join(encode_request(key, version, len(self.sent), "any", message))
        self.sent.append((key, version, value))

    def deliver(self, size: int) -> None:
        """The system hands over so many bytes, if they are wanted."""
        if self.transport.is_reading and not self.transport.is_closed and self.data:
            buffer = self.connection.get_buffer(-1)
            assert 0 < len(buffer) <= max(SCRATCH_BYTES, MEMORY_BYTES)
            size = min(size, len(buffer), len(self.data))
            buffer[:size] = self.data[:size]
            self.data = self.data[size:]
            self.connection.buffer_updated(size)

    # -- what else happens ------------------------------------------------------------------------------

    def commit(self) -> None:
        self.logs.at("t").commit()

    def wake_fetches(self) -> None:
        if not self.logs.at("t", 1).batches:
            self.logs.at("t", 1).write(1)

    def forget(self) -> None:
        """The log's cache lets go of memory."""
        charges = self.logs.at("t").charges
        while charges:
            charges.pop().release()

    def no_room(self) -> None:
        self.logs.room = 0

    def room(self) -> None:
        self.logs.make_room(3)

    def full_pipe(self) -> None:
        self.transport.takes_all = False

    def rest(self) -> None:
        self.connection.channel.rest(5)

    def ring(self) -> None:
        """Timers are due."""
        timers, self.timers = self.timers, []
        for function in timers:
            function()

    async def step(self) -> None:
        """Something happens."""
        random = self.random
        match random.randrange(15):
            case 0 | 1 | 2:
                for _ in range(random.choice([1, 1, 2, 20])):
                    self.ask()
            case 3 | 4 | 5:
                for _ in range(random.choice([1, 3])):
                    self.deliver(random.choice([1, 5, 200, 5_000, 1 << 20, 1 << 20]))
            case 6:
                self.commit()
            case 7:
                self.forget()
            case 8:
                self.wake_fetches()
            case 9:
                self.no_room()
            case 10:
                self.room()
            case 11:
                self.full_pipe()
            case 12:
                self.transport.take()
            case 13:
                (self.rest if random.random() < 0.3 else self.ring)()
            case _:
                for _ in range(random.randrange(4)):
                    await anyio.lowlevel.checkpoint()
        self.check()

    def check(self) -> None:
        """What holds at any time."""
        pipeline = self.connection.channel.pipeline
        assert len(pipeline.slots) <= PIPELINE_MAX
        assert self.core.carried_bytes <= 2 * SCRATCH_BYTES + 200_000
        assert self.allocator.used <= MEMORY_BYTES
        if not self.transport.is_reading and not self.transport.is_closed:
            channel = self.connection.channel
            assert pipeline.waits or channel.flush_scheduled, "it doesn't read because it waits for something"

    async def settle(self) -> None:
        """Everything goes on, until nothing is left to do."""
        self.logs.durable_at_once = True
        self.logs.make_room(1 << 40)
        with anyio.fail_after(HANG_S):
            while self.data or self.connection.unanswered or self.connection.channel.pipeline.waits:
                self.transport.take()
                self.deliver(1 << 20)
                self.commit()
                self.forget()
                self.wake_fetches()
                self.ring()
                await anyio.lowlevel.checkpoint()
                if self.transport.is_closed:
                    return

    def answers(self) -> list[tuple[int, Any]]:
        """(correlation id, response) of each answer, in the order of the bytes."""
        found, data = [], self.transport.sent
        while data:
            (size,) = struct.unpack_from(">i", data)
            (number,) = struct.unpack_from(">i", data, 4)
            key, version, _ = self.sent[number]
            found.append(decode_response(key, version, data[4 : 4 + size]))
            data = data[4 + size :]
        return found

    def stored(self) -> list[bytes]:
        """The value of each batch in the log, by what it begins with."""
        return [batch[HEADER_BYTES:] for _, _, batch in self.logs.at("t").batches]


async def history(seed: int, end: str) -> None:
    random = Random(seed)
    logs = FakeLogs()
    logs.add("t", 2)
    logs.durable_at_once = False
    allocator = FakeAllocator(MEMORY_BYTES)
    clock = FakeClock()
    api = make_api(logs, clock)
    with anyio.fail_after(HANG_S):
        async with Server(
            listeners=[],
            api=api,
            apis=apis(),
            allocator=allocator,  # type: ignore[arg-type]
            settings=ServerSettings(pipeline_requests_max=PIPELINE_MAX),
        ) as server:
            world = World(server, logs, allocator, random)
            for _ in range(random.randrange(10, 120)):
                await world.step()
            if end == "settled":
                await world.settle()
                everything_is_answered(world)
            elif end == "half closed":
                ends_half_closed(world)
                await world.settle()
            elif end == "drained":
                world.connection.drain()
                await world.settle()
                assert world.transport.is_closed
            elif end == "malformed":
                await world.settle()
                world.data = struct.pack(">i", -1)
                world.deliver(4)
                assert world.transport.is_closed
            world.connection.connection_lost(None)
            await anyio.wait_all_tasks_blocked()
            world.commit()  # late answers meet nobody
            world.forget()
            await anyio.wait_all_tasks_blocked()
            in_order(world)
            nothing_is_left(world)


def everything_is_answered(world: World) -> None:
    answers = world.answers()
    assert [number for number, _ in answers] == list(range(len(world.sent))), "each once, in order"
    produced = [value for _, _, value in world.sent if value is not None]
    stored = world.stored()
    assert len(stored) == len(produced)
    assert all(value in batch for value, batch in zip(produced, stored, strict=True)), "in the order sent"
    offsets = [
        answer.responses[0].partition_responses[0].base_offset
        for number, answer in answers
        if world.sent[number][0] == ApiKey.PRODUCE
    ]
    assert offsets == list(range(len(produced)))
    assert world.transport.is_reading


def ends_half_closed(world: World) -> None:
    if not world.transport.is_closed and not world.connection.eof_received():
        world.transport.close()


def in_order(world: World) -> None:
    numbers = [number for number, _ in world.answers()]
    assert numbers == list(range(len(numbers))), "what was answered was answered in order"


def nothing_is_left(world: World) -> None:
    core, connection = world.core, world.connection
    assert connection.unanswered == 0
    assert connection.channel.pipeline.waits & Wait.END
    assert core.carried_bytes == 0
    assert core.incoming.used == core.handling.used == core.outgoing.used == 0
    assert core.incoming.waiting == 0
    assert world.allocator.used == 0
    assert (core.waiting_for_room, core.preparing, core.waiting_for_memory) == (0, 0, 0)
    assert not connection.channel.scopes
    assert not world.logs.at("t", 1).listeners
    assert core.handler_errors == 0
    assert len(world.server.connections) == 0


@pytest.mark.parametrize("end", ["settled", "lost", "half closed", "drained", "malformed"])
@settings(max_examples=examples(40), deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_no_request_is_lost_answers_are_in_order_and_nothing_is_left(end: str, seed: int) -> None:
    anyio.run(history, seed, end)
