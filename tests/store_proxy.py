"""A proxy in front of a real object-store server that fails as stores and networks do, request by request.

Each request is asked of ``decide``, which names what goes wrong with it, or nothing. What a server alone can't show
is so on a server's real conditions: replies that are lost after the effect, errors before and after it, answers that
are cut, and a store that looks for the object first and then puts it anyway.
"""

from __future__ import annotations

__all__ = ("FAULTS", "Decide", "Request", "StoreProxy", "each_first", "proxied")

import contextlib
import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from tests.cloud_servers import CloudServer
from tests.patience import HANG_S
from tests.s3_server import S3Server

#: ``reply lost``: done, and nobody hears of it; ``request lost``: not done; ``NNN Code``: answered so and not done;
#: ``done, NNN Code``: done, and answered so; ``cut``: the answer ends half-way. Of one kind of request each:
#: ``late``: done seconds later; ``one not deleted``: of a deletion, told inside an answer of success;
#: ``unconditional``: an existing object is refused at the request's start, the put then has no condition.
FAULTS = (
    "reply lost",
    "request lost",
    "409 ConditionalRequestConflict",
    "500 InternalError",
    "503 SlowDown",
    "done, 500 InternalError",
    "done, 503 SlowDown",
    "cut",
)
_LATE_S = 4
_UNFORWARDED = {"connection", "keep-alive", "transfer-encoding", "expect"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request as the proxy sees it. ``operation`` is like ``PUT``, ``POST delete``, ``GET list``."""

    operation: str
    path: str
    conditional: bool
    checked: bool = False


Decide: TypeAlias = Callable[[Request], str]


def each_first(operation: str, fault: str, times: int = 1) -> Decide:
    """``fault`` for the first ``times`` requests of ``operation``."""
    left = times
    lock = threading.Lock()

    def decide(request: Request) -> str:
        nonlocal left
        with lock:
            if request.operation != operation or not left:
                return ""
            left -= 1
            return fault

    return decide


class StoreProxy:
    """Forwards to ``server``; ``decide`` may be exchanged at any time."""

    def __init__(self, server: S3Server | CloudServer) -> None:
        self.server = server
        self.decide: Decide = lambda request: ""
        #: Requests by operation, and faults by name.
        self.seen: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._listener = _Listener(("127.0.0.1", 0), _Handler)
        self._listener.proxy = self

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._listener.server_address[1]}"

    def exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the server answers to the request as it came: its signature stays good."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=HANG_S)
        with contextlib.closing(connection):
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                if name.lower() not in _UNFORWARDED:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def run(self) -> None:
        self._listener.serve_forever(poll_interval=0.05)

    def stop(self) -> None:
        self._listener.shutdown()
        self._listener.server_close()


@contextmanager
def proxied(server: S3Server | CloudServer) -> Iterator[StoreProxy]:
    """A running proxy in front of ``server``."""
    proxy = StoreProxy(server)
    thread = threading.Thread(target=proxy.run, name="store-proxy")
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(HANG_S)


class _Listener(ThreadingHTTPServer):
    daemon_threads = True  # they end with their clients; the proxy doesn't wait for those
    request_queue_size = 128
    proxy: StoreProxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients go away as they like."""


def _operation(method: str, query: str) -> str:
    names = [part.partition("=")[0] for part in query.split("&") if part]
    for name in ("list-type", "delete", "uploads", "partNumber", "uploadId"):
        if name in names:
            return f"{method} {'list' if name == 'list-type' else name}"
    return method


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    server: _Listener

    def handle_one(self) -> None:
        proxy = self.server.proxy
        parts = urlsplit(self.path)
        request = Request(
            operation=_operation(self.command, parts.query),
            path=parts.path,
            conditional="If-None-Match" in self.headers
            or "If-Match" in self.headers
            or "ifGenerationMatch=" in parts.query,
            checked="x-amz-checksum-crc32c" in self.headers,
        )
        fault = proxy.decide(request)
        proxy.seen[request.operation] += 1
        proxy.faults[fault] += bool(fault)
        exists = fault == "unconditional" and _ask(proxy.server, "HEAD", self.path)[0] == 200
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "late":
            time.sleep(_LATE_S)
        if fault == "request lost":
            self.cut()
        elif fault[:3].isdigit():
            self.answer_error(fault)
        elif fault == "one not deleted":
            self.answer_undeleted(body)
        elif exists:
            self.answer_error("412 PreconditionFailed")
        elif fault == "unconditional":
            self.answer(*_ask(proxy.server, "PUT", self.path, body))
        else:
            answer = proxy.exchange(self.command, self.path, dict(self.headers.items()), body)
            if fault == "reply lost":
                self.cut()
            elif fault.startswith("done, "):
                self.answer_error(fault.removeprefix("done, "))
            else:
                self.answer(*answer, cut=fault == "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one  # noqa: N815 - as http.server calls them

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        length = str(len(body))
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() == "content-length":
                length = value  # of a HEAD, the object's
            elif name.lower() not in _UNFORWARDED:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        if cut and not body:  # there is nothing to cut but the head
            self._headers_buffer: list[bytes] = []
            self.cut()
            return
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.cut()

    def answer_error(self, fault: str) -> None:
        status, _, code = fault.partition(" ")
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
        self.answer(int(status), [("Content-Type", "application/xml")], body)

    def answer_undeleted(self, body: bytes) -> None:
        """Nothing is deleted, and the answer is that of a success in which the first key failed."""
        key = body.partition(b"<Key>")[2].partition(b"</Key>")[0].decode()
        error = f"<Error><Key>{key}</Key><Code>InternalError</Code><Message>no</Message></Error>"
        answer = f"<?xml version='1.0'?><DeleteResult>{error}</DeleteResult>".encode()
        self.answer(200, [("Content-Type", "application/xml")], answer)

    def cut(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: Any) -> None:
        """Nobody reads it."""


def _ask(
    server: S3Server | CloudServer, method: str, path: str, body: bytes = b""
) -> tuple[int, list[tuple[str, str]], bytes]:
    """A request of the proxy's own, without conditions, to S3."""
    assert isinstance(server, S3Server)
    return server.ask(method, urlsplit(path).path, body)
