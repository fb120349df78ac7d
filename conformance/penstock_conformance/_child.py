"""Child processes that work on what a clause tests, and are killed."""

from __future__ import annotations

__all__ = ("MOMENTS", "Child", "Moment", "Race", "killed", "share_of")

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from unittest import mock

import anyio
from anyio.lowlevel import checkpoint

from penstock_conformance._jobs import HALTED, run_job
from penstock_conformance._target import Target

if TYPE_CHECKING:
    from penstock_conformance._env import Env


#: Beside what others take when nobody is in their way: one that halts may hold a lock that they wait for.
_PATIENCE_S = 0.05

#: What of the module ``__main__`` is hidden, is so for one start at a time.
_starting = threading.Lock()


class Surroundings(Protocol):
    """What a child process is told of the environment that it works in."""

    @property
    def target(self) -> Target:
        """The plugin under test."""

    @property
    def data_dir(self) -> Path:
        """Where it works."""


class Child:
    """A child process that does a job in the data directory of ``env``: one of ``penstock_conformance._jobs``, by
    name, or a function of another module.

    Parent and child tell each other JSON values, one a line.

    It is forked from a server that has imported everything already, so that starting one costs little. An
    ``async with`` that is left kills what still runs.
    """

    def __init__(self, env: Surroundings, job: str | Callable[..., Any], **arguments: Any) -> None:
        #: Where the environment is from. Imported once, in the server, so that no child has to.
        self._room = type(env).__module__
        self._order = json.dumps(
            {
                "target": env.target.to_json(),
                "data_dir": str(env.data_dir),
                "room": "" if isinstance(job, str) else job.__module__,
                "job": job if isinstance(job, str) else job.__name__,
                "arguments": arguments,
            }
        )
        self._unread = b""

    async def __aenter__(self) -> Child:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([run_job.__module__, self._room])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=run_job, args=(self._order, theirs), daemon=True)
        await anyio.to_thread.run_sync(self._start)
        theirs.close()
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            self.kill()
            await anyio.to_thread.run_sync(self._process.join)
            self._process.close()
            self._connection.close()

    def _start(self) -> None:
        """Start it without the script that runs the suite, which without a guard would run the suite again there."""
        with (
            _starting,
            mock.patch.multiple(sys.modules["__main__"], create=True, __file__=None, __spec__=None),
        ):
            self._process.start()

    async def tell(self, value: object) -> None:
        """Send a line."""
        await checkpoint()
        os.write(self._connection.fileno(), json.dumps(value).encode() + b"\n")

    async def next(self) -> Any:
        """The next line, or None at the end of the child's output. A line that a SIGKILL cut off is dropped.

        Raises AssertionError with the child's traceback when its job failed.
        """
        while b"\n" not in self._unread:
            await anyio.wait_readable(self._connection.fileno())
            try:
                piece = os.read(self._connection.fileno(), 2**16)
            except ConnectionResetError:
                piece = b""  # killed with an order of ours unread
            if not piece:
                return None
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        value = json.loads(line)
        if isinstance(value, dict) and "failed" in value:
            raise AssertionError(f"the child process failed: {value['failed']}")
        return value

    async def rest(self) -> list[Any]:
        """All lines to the end of the output."""
        lines = []
        while (line := await self.next()) is not None:
            lines.append(line)
        return lines

    @property
    def pid(self) -> int:
        """The number of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL: nothing of the child runs any more when its output ends."""
        self._process.kill()

    def stop(self) -> None:
        """SIGSTOP: it sleeps until :meth:`wake`, and doesn't know."""
        os.kill(self.pid, signal.SIGSTOP)

    def _is_asleep(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    @asynccontextmanager
    async def asleep(self, patience_s: float = 0.0) -> AsyncIterator[None]:
        """Have the process, which has told that it halts, sleep in the body; wake it at the end, or a moment after
        ``patience_s``: what is done there may wait for a lock that it has, and may block the event loop."""
        # a SIGCONT before it sleeps would be lost
        while not self._is_asleep():  # noqa: ASYNC110 - the kernel tells only its parent, which is the server
            await anyio.sleep(0.001)
        is_awake = threading.Event()

        def wake() -> None:
            is_awake.set()
            self.wake()

        timer = threading.Timer(_PATIENCE_S + patience_s, wake)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
            if not is_awake.is_set():  # else it may halt again by now, and another would wake it
                self.wake()

    def wake(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    async def ending(self) -> str:
        """Wait for the end, and say which it was."""
        await anyio.to_thread.run_sync(self._process.join)
        code = self._process.exitcode or 0
        return f"signal={signal.Signals(-code).name}" if code < 0 else f"exit={code}"

    async def finish(self) -> list[Any]:
        """Wait for the regular end; the lines that came."""
        lines = await self.rest()
        await anyio.to_thread.run_sync(self._process.join)
        assert self._process.exitcode == 0, f"the child process died: exit={self._process.exitcode}"
        return lines


class Race:
    """Child processes that do their orders at once; or one of them halts in the middle, and the others come between.
    Left to the scheduler they meet now and then, and on a busy machine seldom."""

    def __init__(self, children: Sequence[Child]) -> None:
        self._children = children
        #: How long all take for one thing at once.
        self._took_s = 0.0

    async def answers(
        self, order: Mapping[str, Any], halting: int | None = None, share: float = 0.5
    ) -> list[Any]:
        """What each answers to ``order``. The child number ``halting`` begins alone, halts when ``share`` of the time
        has passed that such a call takes, and wakes when the others have answered, or seem to wait for it."""
        if halting is None:
            began = time.monotonic()
            answers = await _all_answers(self._children, order)
            self._took_s = (time.monotonic() - began) / order.get("times", 1)
            return answers
        others = list(self._children)
        first = others.pop(halting)
        await first.tell({**order, "halt": share})
        answer = await first.next()
        if answer == HALTED:
            async with first.asleep(3 * self._took_s):
                answers = await _all_answers(others, order)
            answer = await first.next()
        else:  # its first call, or the shortest so far
            answers = await _all_answers(others, order)
        answers.insert(halting, answer)
        return answers


async def _all_answers(children: Sequence[Child], order: Mapping[str, Any]) -> list[Any]:
    for child in children:
        await child.tell({**order, "halt": 0.0})
    return [await child.next() for child in children]


def share_of(number: int) -> float:
    """Where to halt for the time with this number, so that a few halts lie all over a call."""
    # the golden ratio: each falls into the widest gap of those before
    return 0.05 + 0.9 * (number * 0.618 % 1)


#: When ``killed`` kills.
Moment = Literal["at an ack", "in a call", "from outside"]
MOMENTS: Final[Sequence[Moment]] = ("at an ack", "in a call", "from outside")


async def killed(env: Env, job: str, moment: Moment, acks_max: int, **arguments: Any) -> list[Any]:
    """Run ``job`` in a child process that ends by SIGKILL at a random point; what it told before.

    The kill comes directly after one of its first ``acks_max`` acknowledgements, in the middle of a large call behind
    it (of jobs that tell of their calls), or from outside a moment later.
    """
    acks = env.random.randrange(1, acks_max)
    pause_s = env.random.random() * 0.005
    die_after = {"at an ack": acks, "in a call": -acks, "from outside": 0}[moment]
    async with Child(env, job, die_after=die_after, **arguments) as child:
        first = await child.next()
        assert first is not None, "the child process died before its first word"
        lines = []
        if moment == "from outside":
            for _ in range(acks):
                lines.append(await child.next())
            await anyio.sleep(pause_s)
            child.kill()
        lines += await child.rest()
        assert None not in lines, "the child process died too early"
        return lines
