"""A real S3 server for tests: versitygw where Go is there to build it, ministack otherwise.

Both hold what conditional writes promise, at every size. versitygw keeps objects as files, so it can be killed and
started again; ministack keeps them in memory.
"""

from __future__ import annotations

__all__ = ("S3Server", "free_port", "serving_s3")

import contextlib
import functools
import http.client
import itertools
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from tests.fetched import go_program, python_environment
from tests.patience import HANG_S

from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services

VERSITYGW = ("github.com/versity/versitygw/cmd/versitygw", "v1.8.0")
MINISTACK = "ministack==1.5.33"
_STARTS_MAX = 5


class S3Server:
    """An S3 server on this host; its buckets are gone with ``directory``."""

    access_key = "the-key"
    secret_key = "the-secret"
    region = "us-east-1"

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kind, self._program = _find(directory)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = itertools.count(1)

    @property
    def checks_credentials(self) -> bool:
        """Whether it refuses wrong ones; ministack takes any."""
        return self.kind != "ministack"

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, on the port that it had before if it was started before, and return when it answers."""
        for _ in range(_STARTS_MAX):  # somebody may take a free port before it does
            port = self.port or free_port()
            with (self.directory / "log").open("ab") as log:
                self._process = subprocess.Popen(
                    self._command(port),
                    cwd=self.directory,
                    env={**os.environ, **self._environment(port)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            if self._answers(port):
                self.port = port
                return
        raise AssertionError(f"{self.kind} doesn't start:\n{self.printed}")

    def kill(self) -> None:
        """SIGKILL, as a power loss of the store would be."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(HANG_S)
            self._process = None

    @property
    def printed(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def make_bucket(self, name: str | None = None) -> str:
        """A new bucket; its name."""
        name = name or f"bucket-{next(self._numbers)}"
        status, _, body = self.ask("PUT", f"/{name}")
        assert status == 200, body
        return name

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers and body of a signed request; a client of botocore's costs a tenth of a second each."""
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials

        request = AWSRequest(method=method, url=f"{self.endpoint_url}{path}", data=body, headers=headers)
        S3SigV4Auth(Credentials(self.access_key, self.secret_key), "s3", self.region).add_auth(request)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_S)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(request.headers.items()))
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _command(self, port: int) -> list[str]:
        if self.kind == "ministack":
            return [str(self._program)]
        (self.directory / "buckets").mkdir(exist_ok=True)
        return [str(self._program), "--port", f"127.0.0.1:{port}", "posix", str(self.directory / "buckets")]

    def _environment(self, port: int) -> dict[str, str]:
        if self.kind == "ministack":
            return {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "HOME": str(self.directory)}
        return {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}

    def _answers(self, port: int) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + HANG_S
        while self._process.poll() is None:
            assert time.monotonic() < deadline, f"{self.kind} is there and doesn't answer:\n{self.printed}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=HANG_S):
                    return True
            except urllib.error.HTTPError as error:
                error.close()
                return True  # it wants a signature
            except OSError:
                time.sleep(0.05)
        return False


def open_s3(
    url: str, endpoint: str, *, client: str, options: Mapping[str, Any] | None = None, **settings: Any
) -> AbstractAsyncContextManager[ObjectStore]:
    """A store on a server, by ``client``, with its credentials; ``settings`` are others of the store."""
    from penstock_object_store_fsspec import Settings, penstock_register_object_store

    services = Services(
        node_id=1, epoch=1, cluster_id="test", data_dir=Path("/nonexistent"), clock=time.monotonic
    )
    credentials = {"key": S3Server.access_key, "secret": S3Server.secret_key, "endpoint_url": endpoint}
    chosen = {"url": url, "client": client, "options": {**credentials, **(options or {})}, **settings}
    return penstock_register_object_store().open(Settings.model_validate(chosen), services)


@functools.cache
def _read_models_once() -> None:
    """Have botocore parse what it knows of S3 once a process, not for each client: two thirds of opening a store."""
    from botocore.loaders import JSONFileLoader, Loader

    load = functools.cache(JSONFileLoader().load_file)
    find = functools.cache(Loader().list_available_services)
    JSONFileLoader.load_file = lambda self, path: load(path)
    Loader.list_available_services = lambda self, type_name: find(type_name)
    _look_at_handlers_once()


def _look_at_handlers_once() -> None:
    """Of each session, botocore takes a hundred handlers' signatures, and looks up old names of as many events."""
    from botocore import hooks

    accepts, accepted = hooks.accepts_kwargs, dict[CodeType, bool]()
    alias, names = hooks.EventAliaser._alias_event_name, dict[str, str]()

    def accepts_once(function: Any) -> Any:
        plain = getattr(function, "__func__", function)
        if not isinstance(plain, FunctionType):
            return accepts(function)
        if plain.__code__ not in accepted:
            accepted[plain.__code__] = accepts(function)
        return accepted[plain.__code__]

    def alias_once(self: Any, name: str) -> str:
        if self._event_aliases is not hooks.EVENT_ALIASES:
            return str(alias(self, name))
        if name not in names:
            names[name] = str(alias(self, name))
        return names[name]

    hooks.accepts_kwargs = accepts_once
    hooks.EventAliaser._alias_event_name = alias_once


@contextmanager
def serving_s3(directory: Path) -> Iterator[S3Server]:
    """A running server with its files in ``directory``; skips where none can be had."""
    pytest.importorskip("botocore", reason="needs pip install 'penstock[s3]'")
    _read_models_once()
    server = S3Server(directory)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def _find(directory: Path) -> tuple[str, Path]:
    """The server to run; the reasons for both are in the skip when there is none."""
    try:
        os.setxattr(directory, "user.penstock", b"1")  # versitygw keeps what belongs to an object there
        return "versitygw", go_program(*VERSITYGW)
    except OSError as error:
        why = f"versitygw: no extended attributes in {directory}: {error}"
    except pytest.skip.Exception as skipped:
        why = f"versitygw: {skipped.msg}"
    try:
        return "ministack", python_environment(MINISTACK) / "ministack"
    except pytest.skip.Exception as skipped:
        pytest.skip(f"no S3 server; {why}; ministack: {skipped.msg}")


def free_port() -> int:
    """A port that nobody listens on; somebody may take it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert isinstance(port, int)
        return port
