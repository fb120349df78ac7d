"""Write records to a topic, one per line."""

from __future__ import annotations

__all__ = ("app",)

import dataclasses
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from penstock.errors import InvalidRequestError
from penstock.units import format_size
from penstock_tools.cli._app import Setup
from penstock_tools.cli._client import (
    DEFAULT_BOOTSTRAP,
    BootstrapOption,
    connect,
    open_partitioner,
    read_lines,
    run,
)
from penstock_tools.cli._format import count_text, parse_key_delimiter, parse_pairs

if TYPE_CHECKING:
    from penstock_tools.client import Cluster, Producer, ProducerSettings

app = typer.Typer(add_completion=False)

_ACKS = {"all": -1, "-1": -1, "1": 1, "0": 0}
#: The longest that one request waits for its answer, however patient the user is.
_STEP_TIMEOUT_S_MAX = 30.0
_STRATEGIES = ("hash", "sticky", "round_robin")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """How a line becomes a record."""

    key_delimiter: bytes | None = None
    empty_is_null: bool = False

    def record(self, line: bytes) -> tuple[bytes | None, bytes | None]:
        """(key, value) of one line; a line without the delimiter has no key."""
        key: bytes | None = None
        value: bytes | None = line
        if self.key_delimiter is not None:
            head, found, tail = line.partition(self.key_delimiter)
            if found:
                key, value = head, tail
        if self.empty_is_null:
            return key or None, value or None
        return key, value


@app.command()
def produce(
    context: typer.Context,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="The topic.")],
    file: Annotated[
        Path | None,
        typer.Option("--file", "-l", metavar="FILE", help="Read lines from here instead of stdin."),
    ] = None,
    key_delimiter: Annotated[
        str | None,
        typer.Option(
            "--key-delimiter", "-K", metavar="DELIM", help=r"Key and value are split here, e.g. ':' or '\t'."
        ),
    ] = None,
    partition: Annotated[
        int | None,
        typer.Option("--partition", "-p", metavar="N", min=0, help="Send everything to this partition."),
    ] = None,
    codec: Annotated[
        str, typer.Option("--compression", "-z", metavar="CODEC", help="none, gzip, snappy, lz4 or zstd.")
    ] = "none",
    acks: Annotated[str, typer.Option("--acks", metavar="ACKS", help="all, 1 or 0.")] = "all",
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header", "-H", metavar="NAME=VALUE", help="Add a header to every record; may be repeated."
        ),
    ] = None,
    empty_is_null: Annotated[
        bool, typer.Option("--tombstones", "-t", "-Z", help="Send empty values (and keys) as null.")
    ] = False,
    partitioner: Annotated[
        str | None,
        typer.Option(
            "--partitioner", metavar="STRATEGY", help="hash, sticky or round_robin; else as configured."
        ),
    ] = None,
    no_idempotence: Annotated[
        bool, typer.Option("--no-idempotence", help="Without producer id: a retry may write records twice.")
    ] = False,
    linger_ms: Annotated[
        float,
        typer.Option("--linger-ms", metavar="MS", min=0, help="Wait this long for more records of a batch."),
    ] = 5.0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="Give a record up after this long.")
    ] = 120.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Don't say on stderr what was done.")] = False,
    bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP,
) -> None:
    """Write records to a topic: one per line, until the end of the input or Ctrl-C, which sends what was read.

    Reading stops at the first record that is refused; the exit code is 1 then.
    """
    from penstock.wire.compression import codec_id
    from penstock_tools.client import ProducerSettings

    if acks not in _ACKS:
        raise InvalidRequestError(f"--acks is all, 1 or 0: value={acks}")
    if partitioner is not None and partitioner not in _STRATEGIES:
        raise InvalidRequestError(f"--partitioner is one of {', '.join(_STRATEGIES)}: value={partitioner}")
    settings = ProducerSettings(
        acks=_ACKS[acks],
        # What isn't acknowledged by all can't be idempotent; asking for less acks is asking for that too.
        idempotent=not no_idempotence and _ACKS[acks] == -1,
        codec=codec_id(codec),
        linger_ms=linger_ms,
        delivery_timeout_s=timeout,
    )
    lines = Lines(
        key_delimiter=None if key_delimiter is None else parse_key_delimiter(key_delimiter),
        empty_is_null=empty_is_null,
    )
    headers = [(name, os.fsencode(value)) for name, value in parse_pairs(header or (), "--header")]
    strategy = [f"partitioner.strategy={partitioner}"] if partitioner is not None else []
    setup = Setup.of(context, sets=strategy)
    session = _Session(setup, topic, partition, settings, lines, headers, file, quiet)
    code = run(lambda: session.run(bootstrap_server))
    if code:
        raise typer.Exit(code)


class _Session:
    """One run of the command."""

    def __init__(
        self,
        setup: Setup,
        topic: str,
        partition: int | None,
        settings: ProducerSettings,
        lines: Lines,
        headers: list[tuple[str, bytes]],
        file: Path | None,
        quiet: bool,
    ) -> None:
        self.setup = setup
        self.topic = topic
        self.partition = partition
        self.settings = settings
        self.lines = lines
        self.headers = headers
        self.file = file
        self.quiet = quiet
        self.interrupted = False
        self.records_taken = 0

    async def run(self, bootstrap_server: str) -> int:
        """Everything; returns the exit code."""
        from penstock_tools.client import Producer

        async with AsyncExitStack() as stack:
            fd = self._open_input(stack)
            partitioner = await stack.enter_async_context(open_partitioner(self.setup))
            # no single step may be more patient than the user
            timeout_s = min(self.settings.delivery_timeout_s, _STEP_TIMEOUT_S_MAX)
            cluster = await stack.enter_async_context(connect(bootstrap_server, timeout_s=timeout_s))
            await self._check_topic(cluster)
            producer = await stack.enter_async_context(
                Producer.open(cluster, partitioner, self.settings, now_ms=lambda: time.time_ns() // 1_000_000)
            )
            started = time.perf_counter()
            try:
                await self._send_until_interrupted(producer, fd)
            finally:
                self._report(producer, time.perf_counter() - started)
            return 1 if producer.statistics.records_failed else 130 if self.interrupted else 0

    def _open_input(self, stack: AsyncExitStack) -> int:
        if self.file is None:
            return sys.stdin.fileno()
        try:
            return stack.enter_context(self.file.open("rb", buffering=0)).fileno()
        except OSError as error:
            raise InvalidRequestError(f"file can't be read, {error.strerror}: path={self.file}") from error

    async def _check_topic(self, cluster: Cluster) -> None:
        """Refuse a wrong name or partition before anything is read."""
        from penstock.errors import NotFoundError

        topic = await cluster.topic(self.topic, create=self.settings.create_topics)
        if self.partition is not None and self.partition >= len(topic.partitions):
            raise NotFoundError(
                f"topic has no such partition: topic={self.topic} partition={self.partition} "
                f"partitions={len(topic.partitions)}"
            )

    async def _send_until_interrupted(self, producer: Producer, fd: int) -> None:
        """The first signal ends reading and sends what was read; the second gives that up too."""
        async with anyio.create_task_group() as tasks:
            reading = anyio.CancelScope()

            async def listen() -> None:
                with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    listening.set()
                    async for _ in signals:
                        if self.interrupted:
                            tasks.cancel_scope.cancel()
                        self.interrupted = True
                        reading.cancel()

            listening = anyio.Event()
            tasks.start_soon(listen)
            await listening.wait()
            with reading:
                await self._send_lines(producer, fd)
            await producer.flush()
            tasks.cancel_scope.cancel()

    async def _send_lines(self, producer: Producer, fd: int) -> None:
        topic, partition, headers, make = self.topic, self.partition, self.headers, self.lines.record
        async for lines in read_lines(fd):
            for line in lines:
                key, value = make(line)
                if producer.send_nowait(topic, value, key=key, headers=headers, partition=partition) is None:
                    # not to be cut short by a signal: this line was read, so it is sent
                    with anyio.CancelScope(shield=True):
                        await producer.send(topic, value, key=key, headers=headers, partition=partition)
                self.records_taken += 1
            if producer.first_error is not None:
                return

    def _report(self, producer: Producer, elapsed_s: float) -> None:
        counts = producer.statistics
        unknown = self.records_taken - counts.records_delivered - counts.records_failed
        if unknown:
            sys.stderr.write(
                f"penstock: {count_text(unknown, 'record')} not acknowledged, each may be there or not\n"
            )
        if counts.records_failed:
            sys.stderr.write(
                f"penstock: {count_text(counts.records_failed, 'record')} not written, the first because: "
                f"{producer.first_error}\n"
            )
        if not self.quiet:
            word = "sent" if self.settings.acks == 0 else "produced"
            size = format_size(counts.payload_bytes_delivered)
            rate = counts.records_delivered / elapsed_s if elapsed_s > 0 else 0
            sys.stderr.write(
                f"{word} {count_text(counts.records_delivered, 'record')} ({size}) "
                f"to {self.topic} in {elapsed_s:.2f} s, {rate:.0f} records/s\n"
            )
