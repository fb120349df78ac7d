"""What the commands that talk to a broker have in common: the address, running, reading lines, the partitioner."""

from __future__ import annotations

__all__ = (
    "BootstrapOption",
    "JsonOption",
    "connect",
    "open_partitioner",
    "print_json",
    "read_lines",
    "run",
)

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
import msgspec
import typer

from penstock_tools.cli._format import write_out

if TYPE_CHECKING:
    from penstock.spi.partitioner import Partitioner
    from penstock_tools.cli._app import Setup
    from penstock_tools.client import Cluster

T = TypeVar("T")

BootstrapOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--bootstrap-server", "-b", metavar="HOST:PORT", help="A broker; more, with commas between."
    ),
]
DEFAULT_BOOTSTRAP: Final = "127.0.0.1:9092"
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_READ_BYTES: Final = 1 << 18


def run(function: Callable[[], Awaitable[T]]) -> T:
    """Run a command's coroutine.

    SIGTERM ends it as Ctrl-C does: what a command does at its end, as to commit and to leave its group, is done.
    An error that comes out of nested task groups comes out alone. When the reader of our output went away
    (``penstock consume | head``) nothing is wrong: the command ends with exit code 0.
    """
    terminated = False

    async def until_terminated() -> T:
        task = asyncio.current_task()
        assert task is not None

        def terminate() -> None:
            nonlocal terminated
            terminated = True
            task.cancel()  # this task alone, as for Ctrl-C: its connections are needed to the end

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
        return await function()

    try:
        return anyio.run(until_terminated)
    except BaseException as error:
        if terminated and isinstance(error, asyncio.CancelledError):
            raise KeyboardInterrupt from None
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BrokenPipeError):
            # what is buffered must go somewhere when the interpreter ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from None
        raise error from error.__cause__


@asynccontextmanager
async def connect(
    bootstrap_servers: str, *, client_id: str = "penstock-cli", timeout_s: float = 30.0
) -> AsyncIterator[Cluster]:
    """The cluster at ``bootstrap_servers``; one request, or its retries, take at most ``timeout_s`` seconds."""
    from penstock_tools.client import ClientSettings, Cluster

    defaults = ClientSettings()
    settings = ClientSettings(
        bootstrap_servers=bootstrap_servers,
        client_id=client_id,
        connect_timeout_s=min(timeout_s, defaults.connect_timeout_s),
        request_timeout_s=timeout_s,
        retry_timeout_s=timeout_s,
    )
    async with Cluster.open(settings) as cluster:
        yield cluster


@asynccontextmanager
async def open_partitioner(setup: Setup) -> AsyncIterator[Partitioner]:
    """The partitioner that the configuration selects. Raises ConfigError or PluginError."""
    import time
    from pathlib import Path

    from penstock.spi.kinds import PARTITIONER
    from penstock.spi.plugin import Services

    config, registry = setup.load_config(), setup.registry()
    spec = registry.select(PARTITIONER.name, config.plugin_name(PARTITIONER.name))
    settings = registry.validate_plugin_settings(config, PARTITIONER.name)
    services = Services(node_id=-1, epoch=0, cluster_id="", data_dir=Path.cwd(), clock=time.monotonic)
    async with spec.open(settings, services) as partitioner:
        yield partitioner


def print_json(document: Any) -> None:
    """``document`` as indented JSON."""
    write_out(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


async def read_lines(fd: int) -> AsyncIterator[list[bytes]]:
    """The lines of a file, pipe or terminal as they come, without their ends; the last may lack one.

    Never blocks the event loop on a pipe or a terminal; may be cancelled between chunks, which loses nothing
    but what stands there without a line end.
    """
    rest: list[bytes] = []
    waits = not stat.S_ISREG(os.fstat(fd).st_mode)
    while True:
        if waits:
            try:
                await anyio.wait_readable(fd)
            except PermissionError:  # epoll's answer for what is always readable, like /dev/null
                waits = False
        else:
            await anyio.lowlevel.checkpoint()
        chunk = os.read(fd, _READ_BYTES)
        if not chunk:
            break
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            lines = [b"".join(rest), *others]
            rest = [lines.pop()]
            yield lines
    last = b"".join(rest)
    if last:
        yield [last]
