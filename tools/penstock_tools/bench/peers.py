"""What attackers have in common: hostile connections, crowds of them, and the table of all attacks."""

from __future__ import annotations

__all__ = (
    "ATTACKS",
    "MIB",
    "MOVED",
    "Attack",
    "Moved",
    "Peer",
    "ask",
    "attack",
    "crowd",
    "flood",
    "make_topics",
)

import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from penstock.wire import ApiKey
from penstock.wire.messages import create_topics
from penstock_tools.bench.good_client import HOST, request

Attack: TypeAlias = Callable[[int], Awaitable[None]]
MIB: Final = 2**20
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    """Have it in the table."""
    ATTACKS[function.__name__] = function
    return function


@dataclass(slots=True)
class Moved:
    """How much the attackers of a process have done: what they sent counts when the system has taken all of it."""

    connections: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


#: Of this process.
MOVED: Final = Moved()


class Peer:
    """One hostile connection, from this ``address`` of the machine.

    ``receive_bytes`` is its socket's buffer, small for those that don't read.
    """

    def __init__(self, port: int, receive_bytes: int = 0, address: str = HOST) -> None:
        self._address = address
        self._port = port
        self._receive_bytes = receive_bytes
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> Peer:
        sock = self._socket = socket.socket()
        if self._receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
        sock.setblocking(False)
        if self._address != HOST:
            sock.bind((self._address, 0))
        await asyncio.get_running_loop().sock_connect(sock, (HOST, self._port))
        MOVED.connections += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._socket is not None
        self._socket.close()

    async def send(self, data: bytes | bytearray) -> None:
        """All of it."""
        assert self._socket is not None
        await asyncio.get_running_loop().sock_sendall(self._socket, data)
        MOVED.sent_bytes += len(data)

    async def receive(self) -> bytes:
        """Some bytes. Raises ConnectionError at the end."""
        assert self._socket is not None
        data = await asyncio.get_running_loop().sock_recv(self._socket, MIB)
        if not data:
            raise ConnectionResetError("closed by the broker")
        MOVED.received_bytes += len(data)
        return data

    async def frame(self) -> bytes:
        """One response, without its length."""
        data = bytearray()
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            data += await self.receive()
        return bytes(data[4:])

    async def hold(self) -> None:
        """Do nothing until the broker closes the connection; never read."""
        assert self._socket is not None
        poll = struct.Struct("=BBHIQQQ")
        while True:
            await asyncio.sleep(0.2)
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, poll.size)
            if poll.unpack(info)[0] != 1:  # TCP_ESTABLISHED
                raise ConnectionResetError("closed by the broker")


async def crowd(
    count: int,
    port: int,
    conduct: Callable[[Peer], Awaitable[None]],
    receive_bytes: int = 0,
    addresses: int = 1,
) -> None:
    """``count`` connections that do what ``conduct`` does, and come again when they are closed.

    They come from so many ``addresses``, 250 at most, in turn; one is the good client's.
    """

    async def one(number: int) -> None:
        address = f"127.0.0.{1 + number % addresses}"
        while True:
            with contextlib.suppress(OSError):
                async with Peer(port, receive_bytes, address) as peer:
                    await conduct(peer)
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(one(number))


async def make_topics(port: int, *names: str, partitions: int = 1) -> None:
    """Make topics that the attack needs, if they aren't there."""
    topics = [
        create_topics.CreatableTopic(name=name, num_partitions=partitions, replication_factor=1)
        for name in names
    ]
    async with Peer(port) as peer:
        await peer.send(request(ApiKey.CREATE_TOPICS, 5, create_topics.CreateTopicsRequest(topics=topics)))
        await peer.frame()


async def flood(count: int, port: int, data: bytes, pipelined: int, addresses: int = 1) -> None:
    """``count`` connections that ask the same, ``pipelined`` requests at a time, and read the answers."""

    async def conduct(peer: Peer) -> None:
        batch = data * pipelined
        while True:
            await peer.send(batch)
            answers, buffer = 0, bytearray()
            while answers < pipelined:
                buffer += await peer.receive()
                pos = 0
                while len(buffer) - pos >= 4:
                    end = pos + 4 + int.from_bytes(buffer[pos : pos + 4], "big")
                    if end > len(buffer):
                        break
                    answers, pos = answers + 1, end
                del buffer[:pos]

    await crowd(count, port, conduct, addresses=addresses)


async def ask(count: int, port: int, asked: Callable[[int, int], bytes]) -> None:
    """``count`` connections that ask what ``asked(connection, turn)`` says, one request at a time."""
    numbers = itertools.count()

    async def conduct(peer: Peer) -> None:
        number = next(numbers)
        for turn in itertools.count():
            await peer.send(asked(number, turn))
            await peer.frame()

    await crowd(count, port, conduct)
