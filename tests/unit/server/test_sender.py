"""Large responses, which a thread sends: whole, in order, beside everything else, and given up without a trace."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import selectors
import socket
import threading
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from tests.patience import HANG_S
from tests.unit.api.fakes import FakeLogs, make_batch
from tests.unit.server.harness import Client, Harness, offsets, produce, serving, until

from penstock.server import sender
from penstock.wire.api_keys import ApiKey
from penstock.wire.messages.api_versions import ApiVersionsRequest
from penstock.wire.messages.fetch import FetchPartition, FetchRequest, FetchTopic

pytestmark = pytest.mark.anyio

PRODUCE = ApiKey.PRODUCE
FETCH = ApiKey.FETCH
API_VERSIONS = ApiKey.API_VERSIONS
RECORD_BYTES = 50_000
#: More than sockets of this machine take without a reader.
MUCH = 20_000_000


@pytest.fixture(params=["asyncio", "asyncio+uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param == "asyncio+uvloop"}


def logs_of(size: int) -> FakeLogs:
    """A log with so many bytes of records, no two alike."""
    logs = FakeLogs()
    logs.add("t", 2)
    dice = random.Random(size)
    for _ in range(size // RECORD_BYTES):
        logs.at("t").write(1, value=dice.randbytes(RECORD_BYTES))
    return logs


def stored(logs: FakeLogs) -> bytes:
    found = logs.at("t").read_nowait(0, 1 << 30, read_committed=False, at_least_one=True)
    assert found is not None
    return b"".join(bytes(record) for record in found.records)


def fetch(size: int = 1 << 30) -> FetchRequest:
    partition = FetchPartition(partition=0, fetch_offset=0, partition_max_bytes=size)
    return FetchRequest(max_wait_ms=0, min_bytes=1, topics=[FetchTopic(topic="t", partitions=[partition])])


async def records(client: Client) -> bytes:
    response = await client.receive()
    return bytes(response.responses[0].partitions[0].records)


def under_way(harness: Harness) -> list[Any]:
    return [one for one in harness.server.connections if one.outbox.is_sending]


async def test_a_response_of_a_mebibyte_is_sent_without_a_hand_over_to_a_thread() -> None:
    logs = logs_of(2**20)
    async with serving(logs) as harness, await harness.connect() as client:
        await client.send(FETCH, 11, fetch())
        assert await records(client) == stored(logs)
        assert not any(thread.name == "penstock-sender" for thread in threading.enumerate())


async def test_others_are_served_while_a_large_response_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    writev = os.writev

    def slow(fd: int, vectors: Sequence[Any]) -> int:
        begun.set()
        assert may_go_on.wait(HANG_S)
        return writev(fd, vectors)

    monkeypatch.setattr(os, "writev", slow)
    logs = logs_of(sender.LARGE_BYTES + RECORD_BYTES)
    async with serving(logs) as harness, await harness.connect() as reader, await harness.connect() as other:
        await reader.send(FETCH, 11, fetch())
        await until(begun.is_set)
        assert (await other.call(API_VERSIONS, 0, ApiVersionsRequest())).api_keys
        assert offsets(await other.call(PRODUCE, 9, produce(make_batch(), partition=1))) == [(0, 0)]
        may_go_on.set()
        assert await records(reader) == stored(logs)


async def test_a_client_that_the_system_does_not_watch_is_closed_and_others_are_sent_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It watches so many descriptors at the most. The error ended the thread, and with it all large responses."""
    refused: list[int] = []

    class Selector(selectors.DefaultSelector):
        def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
            if data is not None and not refused:
                refused.append(events)
                raise OSError(errno.ENOSPC, "no space left on device")
            return super().register(fileobj, events, data)

    monkeypatch.setattr(selectors, "DefaultSelector", Selector)
    logs = logs_of(MUCH)
    async with serving(logs) as harness:
        async with await harness.connect() as client:
            await client.send(FETCH, 11, fetch())
            await until(lambda: bool(refused) and not under_way(harness))
        async with await harness.connect() as client:
            await client.send(FETCH, 11, fetch(2 * sender.LARGE_BYTES))
            assert len(await records(client)) > sender.LARGE_BYTES


async def test_a_large_response_arrives_whole_however_little_the_system_takes_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dice = random.Random(7)
    writev = os.writev

    def stingy(fd: int, vectors: Sequence[Any]) -> int:
        if dice.random() < 0.2:
            raise BlockingIOError
        whole = b"".join(vectors)
        return writev(fd, [whole[: dice.randint(1, 40_000)]])

    monkeypatch.setattr(os, "writev", stingy)
    logs = logs_of(sender.LARGE_BYTES + RECORD_BYTES)
    async with serving(logs) as harness, await harness.connect() as client:
        for _ in range(3):
            await client.send(FETCH, 11, fetch())
            assert await records(client) == stored(logs)


async def test_what_follows_a_large_response_arrives_behind_it() -> None:
    logs = logs_of(MUCH)
    async with serving(logs) as harness, await harness.connect() as client:
        request = client.frame(FETCH, 11, fetch())
        await client.send_raw(request + client.frame(PRODUCE, 9, produce(make_batch(), partition=1)))
        await until(lambda: under_way(harness))
        assert await records(client) == stored(logs)
        assert offsets(await client.receive()) == [(0, 0)]


async def test_answers_of_a_connection_that_is_being_sent_something_are_sent_behind_it() -> None:
    logs = logs_of(MUCH)
    async with serving(logs) as harness, await harness.connect() as client:
        await client.send(FETCH, 11, fetch())
        await until(lambda: under_way(harness))
        (connection,) = under_way(harness)
        connection.outbox.write([b"behind", b" it"], [])
        assert await records(client) == stored(logs)
        assert await client.receive_raw(9) == b"behind it"
        await until(lambda: not connection.outbox.is_full)


async def test_a_client_that_half_closes_gets_its_large_response() -> None:
    logs = logs_of(MUCH)
    async with serving(logs) as harness, await harness.connect() as client:
        await client.send(FETCH, 11, fetch())
        await until(lambda: under_way(harness))
        await client.finish_sending()
        await harness.until_clients_are_full()
        assert await records(client) == stored(logs)
        assert await client.ends()


async def test_a_connection_that_is_closed_first_sends_what_was_written() -> None:
    logs = logs_of(MUCH)
    async with serving(logs) as harness, await harness.connect() as client:
        await client.send(FETCH, 11, fetch())
        await until(lambda: under_way(harness))
        for connection in under_way(harness):
            connection.close()
            connection.outbox.write([b"too late"], [])
        assert await records(client) == stored(logs)
        assert await client.ends()
        await until(lambda: not harness.server.statistics().connections)
        assert logs.fetch_memory.used == 0


@pytest.mark.parametrize("who", ["client", "server", "stop"])
async def test_a_large_response_that_is_given_up_leaves_nothing(who: str) -> None:
    logs = logs_of(MUCH)
    async with serving(logs, drain_timeout_ms=1) as harness:
        async with await harness.connect() as first:  # the thread and what wakes it are there
            await first.send(FETCH, 11, fetch())
            assert await records(first)
        await until(lambda: not harness.server.statistics().connections)
        before = len(os.listdir("/proc/self/fd"))
        client = await harness.connect()
        await client.send(FETCH, 11, fetch())
        await until(lambda: under_way(harness))
        assert logs.fetch_memory.used > MUCH
        if who == "client":
            await client.__aexit__(None, None, None)
        elif who == "server":
            for connection in under_way(harness):
                connection.lose_place()
            assert logs.fetch_memory.used == 0
        if who != "stop":
            await until(lambda: not harness.server.statistics().connections)
            await client.__aexit__(None, None, None)
            await until(lambda: len(os.listdir("/proc/self/fd")) == before)
    await client.__aexit__(None, None, None)
    assert logs.fetch_memory.used == 0
    assert not any(thread.name == "penstock-sender" for thread in threading.enumerate())


async def test_a_large_response_that_is_given_up_before_it_has_begun_leaves_nothing() -> None:
    ours, theirs = socket.socketpair()
    before = len(os.listdir("/proc/self/fd"))
    some = sender.Sender()
    some.open(asyncio.get_running_loop())
    opened = len(os.listdir("/proc/self/fd"))
    called: list[None] = []
    with ours, theirs:
        ours.setblocking(False)
        assert some.send(ours.fileno(), [b"x" * 10], lambda: called.append(None)) is not None
        await until(lambda: bool(called))
        assert len(os.listdir("/proc/self/fd")) == opened, "its own are taken when it opens"
        called.clear()
        for _ in range(100):
            sending = some.send(ours.fileno(), [b"x" * 10], lambda: called.append(None))
            assert sending is not None
            some.cancel(sending)
            some.cancel(sending)
        some.close()
        assert len(os.listdir("/proc/self/fd")) == before
    await anyio.lowlevel.checkpoint()
    assert not called


async def test_an_error_of_the_socket_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(fd: int, vectors: Sequence[Any]) -> int:
        raise OSError(errno.ECONNRESET, "reset")

    monkeypatch.setattr(os, "writev", broken)
    logs = logs_of(sender.LARGE_BYTES + RECORD_BYTES)
    async with serving(logs) as harness, await harness.connect() as client:
        await client.send(FETCH, 11, fetch())
        assert await client.ends()
        await until(lambda: not harness.server.statistics().connections)
        assert logs.fetch_memory.used == 0


@pytest.mark.parametrize("lack", ["descriptors", "places"])
async def test_without_descriptors_or_places_the_loop_sends(
    lack: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_descriptor(fd: int) -> int:
        raise OSError(errno.EMFILE, "too many")

    logs = logs_of(sender.LARGE_BYTES + RECORD_BYTES)
    async with serving(logs) as harness, await harness.connect() as client:
        if lack == "descriptors":
            monkeypatch.setattr(os, "dup", no_descriptor)
        else:
            monkeypatch.setattr(sender, "_SENDINGS_MAX", 0)
        await client.send(FETCH, 11, fetch())
        assert await records(client) == stored(logs)
        assert not any(thread.name == "penstock-sender" for thread in threading.enumerate())


async def test_many_clients_are_sent_large_responses_at_once() -> None:
    logs = logs_of(sender.LARGE_BYTES + 1_000_000)
    whole = stored(logs)
    async with serving(logs) as harness:
        clients = [await harness.connect() for _ in range(8)]
        found: list[bytes] = []

        async def read(client: Client) -> None:
            async with client:
                for _ in range(3):
                    await client.send(FETCH, 11, fetch())
                    found.append(await records(client))

        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(read, client)
        assert len(found) == 24
        assert all(one == whole for one in found)


async def test_where_no_thread_can_be_had_nothing_is_taken_over_and_nothing_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    duplicates: list[int] = []
    dup = os.dup

    def duplicate(fd: int) -> int:
        duplicates.append(dup(fd))
        return duplicates[-1]

    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    sending = sender.Sender()
    sending.open(asyncio.get_running_loop())
    with ours, theirs:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            patch.setattr(os, "dup", duplicate)
            assert sending.send(ours.fileno(), [b"x"], lambda: None) is None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(duplicates[0])
        sent = anyio.Event()
        assert sending.send(ours.fileno(), [b"y"], sent.set) is not None, "the next one has a thread"
        with anyio.fail_after(HANG_S):
            await sent.wait()
        assert theirs.recv(2) == b"y"
        sending.close()
