"""A proxy in front of an HTTP server that holds back the answers to puts, as a store far away would.

    python -m penstock_tools.bench.late_proxy HOST:PORT P50_MS P99_MS SEED     # prints its own port

Requests and answers are forwarded byte by byte, so signatures stay good. The time that a put takes is drawn when its
head arrives, and includes what the server itself takes. ``penstock bench wal-latency --proxy-to`` starts one.
"""

from __future__ import annotations

__all__ = ("Delays", "LateProxy", "proxy_process")

import asyncio
import math
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from penstock.errors import InvalidRequestError, UnavailableError

#: Standard deviations from the median to p99.
_P99 = 2.326
_PIECE_BYTES = 256 * 1024
_END = b"\r\n\r\n"


class Delays:
    """How long puts take: log-normally distributed, as a cloud's are."""

    def __init__(self, p50_ms: float, p99_ms: float, seed: int) -> None:
        self._mu = math.log(p50_ms)
        self._sigma = math.log(p99_ms / p50_ms) / _P99
        self._random = random.Random(seed)

    def next_s(self) -> float:
        """That of one more."""
        return self._random.lognormvariate(self._mu, self._sigma) / 1000


class LateProxy:
    """Serves each connection by one of its own to the server, request by request."""

    def __init__(self, host: str, port: int, delays: Delays) -> None:
        self._address = host, port
        self._delays = delays

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side has enough."""
        server_writer = None
        with suppress(asyncio.IncompleteReadError, OSError):
            try:
                server_reader, server_writer = await asyncio.open_connection(
                    *self._address, limit=_PIECE_BYTES
                )
                while True:
                    await self._forward(reader, writer, server_reader, server_writer)
            finally:
                for each in (writer, server_writer):
                    if each is not None:
                        each.close()
                        await each.wait_closed()

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        server_reader: asyncio.StreamReader,
        server_writer: asyncio.StreamWriter,
    ) -> None:
        head = await reader.readuntil(_END)
        loop = asyncio.get_running_loop()
        due_s = loop.time() + self._delays.next_s() if head.startswith(b"PUT ") else 0.0
        server_writer.write(head)
        if _value(head, b"Expect") == b"100-continue":
            answer = await server_reader.readuntil(_END)
            if not answer.startswith(b"HTTP/1.1 100"):
                await self._answer(head, answer, server_reader, writer, due_s)
                return  # the client keeps its body
            writer.write(answer)
        await _copy_body(head, reader, server_writer)
        await self._answer(head, await server_reader.readuntil(_END), server_reader, writer, due_s)

    async def _answer(
        self,
        head: bytes,
        answer: bytes,
        server_reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        due_s: float,
    ) -> None:
        await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()))
        writer.write(answer)
        if not head.startswith(b"HEAD "):
            await _copy_body(answer, server_reader, writer)
        await writer.drain()


async def _copy_body(head: bytes, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    """Forward what follows ``head``, of a length that it tells, or in chunks."""
    if _value(head, b"Transfer-Encoding") == b"chunked":
        size = 1
        while size:
            line = await source.readuntil(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            target.write(line)
            await _copy(size + 2, source, target)
        return
    await _copy(int(_value(head, b"Content-Length") or 0), source, target)


async def _copy(left: int, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while left:
        piece = await source.read(min(left, _PIECE_BYTES))
        if not piece:
            raise asyncio.IncompleteReadError(b"", left)
        target.write(piece)
        left -= len(piece)
        await target.drain()


def _value(head: bytes, name: bytes) -> bytes:
    """Of a header field, in lower case; empty if it isn't there."""
    found = re.search(rb"\r\n" + name + rb":[ \t]*([^\r]*)", head, re.IGNORECASE)
    return found[1].strip().lower() if found else b""


@contextmanager
def proxy_process(url: str, p50_ms: float, p99_ms: float, seed: int) -> Iterator[str]:
    """A proxy before the server at ``url`` in a process of its own; gives its URL.

    Raises InvalidRequestError for another URL than ``http://HOST:PORT``, and UnavailableError if it doesn't start.
    """
    found = re.fullmatch(r"http://([^/:]+:\d+)/?", url)
    if found is None:
        raise InvalidRequestError(f"the server behind the proxy is one like http://127.0.0.1:9000: url={url}")
    command = [sys.executable, "-m", "penstock_tools.bench.late_proxy", found[1]]
    with subprocess.Popen(
        [*command, str(p50_ms), str(p99_ms), str(seed)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            if not port:
                raise UnavailableError("the delaying proxy didn't start, see what it printed above")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


async def _main(address: str, p50_ms: str, p99_ms: str, seed: str) -> None:
    host, _, port = address.rpartition(":")
    proxy = LateProxy(host, int(port), Delays(float(p50_ms), float(p99_ms), int(seed)))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=_PIECE_BYTES)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main(*sys.argv[1:]))
