"""Writers that compete for one object: processes, each with its own client, as brokers would be."""

from __future__ import annotations

__all__ = ("LocalWriter", "ProcessWriter", "Race", "Writer", "open_writers", "race")

import dataclasses
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from penstock.errors import ConfigError, UnavailableError
from penstock.spi.object_store import ObjectStore
from penstock_tools.probe.worker import Command, Outcome, perform

#: A store that retries for its whole budget, and a machine with other work.
_ANSWER_S_MAX: Final = 120
_ANSWER_BYTES_MAX: Final = 1 << 20
_END_S_MAX: Final = 5


class Writer(Protocol):
    """Takes one command at a time."""

    async def begin(self, command: Command) -> bool:
        """Begin it. True if it was to be held, and now stalls on its last byte."""

    async def finish(self) -> Outcome:
        """Let it go on if it is held; what came of it."""


class LocalWriter:
    """A task of this process: for stores that no other process sees."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._command: Command | None = None

    async def begin(self, command: Command) -> bool:
        """See ``Writer.begin``."""
        self._command = command
        return False

    async def finish(self) -> Outcome:
        """See ``Writer.finish``."""
        assert self._command is not None
        return await perform(self._store, self._command)


class ProcessWriter:
    """A process of its own, which ends with this one."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin = process.stdin
        self._stdout = BufferedByteReceiveStream(process.stdout)
        self._held = False

    async def open(self, setup: dict[str, Any]) -> None:
        """Have it open the store. Raises ConfigError or UnavailableError, with the process's own sentence."""
        await self._send(setup)
        await self._receive()

    async def begin(self, command: Command) -> bool:
        """See ``Writer.begin``."""
        await self._send(dataclasses.asdict(command))
        self._held = command.hold
        return bool(command.hold and (await self._receive())["held"])

    async def finish(self) -> Outcome:
        """See ``Writer.finish``."""
        if self._held:
            await self._send({})
        return Outcome(**await self._receive())

    async def _send(self, message: dict[str, Any]) -> None:
        try:
            await self._stdin.send(json.dumps(message).encode() + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise UnavailableError("a writer of the probe ended before its time, run it again") from error

    async def _receive(self) -> dict[str, Any]:
        try:
            with anyio.fail_after(_ANSWER_S_MAX):
                line = await self._stdout.receive_until(b"\n", _ANSWER_BYTES_MAX)
        except (anyio.EndOfStream, anyio.IncompleteRead) as error:
            raise UnavailableError("a writer of the probe ended before its time, run it again") from error
        except TimeoutError as error:
            raise UnavailableError(
                f"a writer of the probe doesn't answer, is the store very slow? waited_s={_ANSWER_S_MAX}"
            ) from error
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise ConfigError(f"a second client can't use the store: {answer['refused']}")
        return answer


@asynccontextmanager
async def open_writers(
    count: int, setup: dict[str, Any], store: ObjectStore
) -> AsyncGenerator[Sequence[Writer]]:
    """Start ``count`` writers with the store open; they are gone when this ends."""
    if store.capabilities.durability_domain == "process":
        yield [LocalWriter(store) for _ in range(count)]
        return
    async with AsyncExitStack() as stack:
        writers = [ProcessWriter(await stack.enter_async_context(_process())) for _ in range(count)]
        async with anyio.create_task_group() as tasks:
            for writer in writers:
                tasks.start_soon(writer.open, setup)
        yield writers


@asynccontextmanager
async def _process() -> AsyncGenerator[Process]:
    command = [sys.executable, "-m", "penstock_tools.probe.worker"]
    # A session of its own: Ctrl-C is for the probe, which ends the writers before it removes what they wrote.
    process = await anyio.open_process(command, stdin=subprocess.PIPE, stderr=None, start_new_session=True)
    try:
        yield process
    finally:
        assert process.stdin is not None
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(
                _END_S_MAX
            ):  # the end of its input is what it ends by, with its store closed
                await process.stdin.aclose()
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.aclose()


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """What came of one race, writer by writer."""

    outcomes: Sequence[Outcome]
    #: All of them stalled on their last byte before any went on.
    all_held: bool

    @property
    def winners(self) -> list[int]:
        """The writers that were told that they won."""
        return [number for number, outcome in enumerate(self.outcomes) if outcome.result == "won"]

    @property
    def failures(self) -> list[str]:
        """Why writers learned nothing."""
        return [outcome.detail for outcome in self.outcomes if outcome.result == "failed"]


async def race(writers: Sequence[Writer], commands: Sequence[Command]) -> Race:
    """Let each writer do its command, at the same time."""
    held = [False] * len(writers)
    outcomes: dict[int, Outcome] = {}

    async def begin(number: int) -> None:
        held[number] = await writers[number].begin(commands[number])

    async def finish(number: int) -> None:
        outcomes[number] = await writers[number].finish()

    for step in (begin, finish):
        async with anyio.create_task_group() as tasks:
            for number in range(len(writers)):
                tasks.start_soon(step, number)
    return Race(outcomes=[outcomes[number] for number in range(len(writers))], all_held=all(held))
