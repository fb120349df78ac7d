"""The compactor in a process of its own, as the broker sees it.

What makes tables out of records holds Python's lock for a tenth of the time, and works for tenths of a second
without a pause: in the broker's process producers wait for both. Threads of lower priority don't help, since one
that has the lock and doesn't get a processor keeps it from the threads of higher priority. (RFC 0059.)

The process is started with the broker, and again when a table is opened after it ended; it ends when this end of its
socket is closed, so it never outlives the broker, however that ends. It says every few seconds that it is there: one
that stands still is ended as if it had crashed.
"""

from __future__ import annotations

__all__ = ("ApartCompactor",)

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from penstock.errors import CorruptError, PenstockError, UnavailableError, again, kept
from penstock.spi import Services
from penstock.spi.lake import (
    LakeCommit,
    LakeCompactorCapabilities,
    LakeMaintenance,
    LakeRecord,
    LakeRecords,
    LakeTopic,
    LakeWritten,
)
from penstock.spi.plugin import Buffer
from penstock.threads import run_in_thread
from penstock_iceberg_compactor._account import Account
from penstock_iceberg_compactor._frames import Failed, error_of, failed_of, receive, send, taken_apart
from penstock_iceberg_compactor._settings import CAPABILITIES, Settings

logger = logging.getLogger("penstock.lake.iceberg")

#: What the process runs; its socket, the level of its log and _BEAT_S follow.
_SERVING = ("-P", "-m", "penstock_iceberg_compactor._serving")
#: So long a call that is cancelled is waited for.
_GIVE_UP_S = 15.0
#: So long the leaving of a table may take: a broker that ends waits for it. Files that are left then are removed by
#: the table's next owner.
_LEAVE_S = 30.0
#: So often the process says that it is there, and so long it may say nothing, unless it waits for a processor. Until
#: it is open, it imports what it needs.
_BEAT_S = 5.0
_SILENCE_S = 30.0
_START_S = 120.0
#: So long a process has to end after its socket did.
_END_S = 5.0
#: So long nobody tries to start it again after it couldn't be: there may be many topics that want it.
_START_PAUSE_S = 5.0
#: The most that is believed to be one answer.
_ANSWER_MAX = 2**30


@dataclass(eq=False)
class _Waiting:
    """A call that has no answer yet."""

    done: anyio.Event = field(default_factory=anyio.Event)
    #: None: the process ended first.
    answer: Any = None


class _Sending:
    """One frame on its way, by a thread that stands if the process reads nothing."""

    def __init__(self, send: Callable[[], None], kill: Callable[[], None]) -> None:
        self._send = send
        self._kill = kill
        self._lock = threading.Lock()
        self._is_given_up = False
        self._is_sent = threading.Event()
        self.has_begun = False

    def run(self) -> None:
        """Send it, unless it was given up before."""
        with self._lock:
            if self._is_given_up:
                return
            self.has_begun = True
        self._send()
        self._is_sent.set()

    def give_up(self) -> None:
        """Have the thread end soon: half a frame can't be taken back, so what doesn't read the rest is killed."""
        with self._lock:
            self._is_given_up = True
        if self.has_begun and not self._is_sent.is_set():
            timer = threading.Timer(_GIVE_UP_S, self._kill_if_it_stands)
            timer.daemon = True
            timer.start()

    def _kill_if_it_stands(self) -> None:
        if not self._is_sent.is_set():
            self._kill()


class _Listener:
    """Hears a process: its silence is what it didn't say with a processor to say it on."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self._pid = pid
        #: How long it may be silent; from the next thing on that it says.
        self.silence_s = 0.0

    def listen_for(self, silence_s: float) -> None:
        self.silence_s = silence_s
        seconds, rest = divmod(silence_s, 1)
        time = struct.pack("@ll", int(seconds), int(rest * 1e6))
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, time)

    def recv_into(self, buffer: memoryview) -> int:
        """As a socket's. Raises BlockingIOError if it was silent, and that wasn't for want of a processor.

        One that goes round and round may want one all the time: with what it had it should have said something.
        """
        silent_s = 0.0
        while True:
            before_s = _waited_s(self._pid)
            try:
                return self._connection.recv_into(buffer)
            except BlockingIOError:
                waited_s = min(_waited_s(self._pid) - before_s, self.silence_s)
                silent_s += self.silence_s - waited_s
                # started anew, it would only have less of it
                if waited_s < self.silence_s / 2 or silent_s >= self.silence_s:
                    raise


def _waited_s(pid: int) -> float:
    """How long a process was ready to run and others had the processors; 0 where the system doesn't say."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


class _Process:
    """One process, from its start to its end."""

    def __init__(self, on_charged: Callable[[int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_charged = on_charged
        self._numbers = itertools.count()
        self._waiting: dict[int, _Waiting] = {}
        self._sending = threading.Lock()
        #: One frame goes at a time: those behind it keep no thread that others need, if the process reads nothing.
        self._limiter = anyio.CapacityLimiter(1)
        self.step: Callable[[str], None] | None = None
        self.ended = anyio.Event()
        #: How it ended, for people.
        self._end_words = "ended"
        self._is_closing = False
        ours, theirs = socket.socketpair()
        self._socket = ours
        is_real_time = os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, *_SERVING]
                    + [str(theirs.fileno()), str(logger.getEffectiveLevel()), str(_BEAT_S)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    # A terminal's signals are for the broker, which stops this one. In the broker's session all
                    # the same: with a session of its own, Linux (autogroup) gives it as much of a processor as all
                    # threads of the broker together, however nice it is. Those of a real-time priority go first
                    # anyway: beside them it has a session of its own, to be preferred to others.
                    process_group=None if is_real_time else 0,
                    start_new_session=is_real_time,
                )
            except BaseException:
                ours.close()
                raise
        self._listener = _Listener(ours, self._process.pid)
        self.listen_for(_START_S)
        self._reader = threading.Thread(target=self._read, name="penstock-lake-process", daemon=True)
        self._reader.start()

    def listen_for(self, silence_s: float) -> None:
        """End it when it has said nothing for so long, from the next thing on that it says."""
        self._listener.listen_for(silence_s)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _read(self) -> None:
        """In a thread of its own: what the process says, to the end."""
        try:
            while True:
                message, _ = receive(self._listener, _ANSWER_MAX)
                match message:
                    case ("answer", number, charged, answer):
                        self._loop.call_soon_threadsafe(self._answer, number, charged, answer)
                    case ("log", name, level, text):
                        logging.getLogger(name).log(level, "%s", text)
                    case ("step", name):
                        self._send(("stepped", self._step(name)), ())
                    case ("charged", charged):
                        self._loop.call_soon_threadsafe(self._on_charged, charged)
                    case ("here",):
                        pass
                    case _:
                        raise CorruptError("the frame is no message")
        except BlockingIOError:
            self._end_words = f"said nothing for {self._listener.silence_s:g} s and was ended"
        except (EOFError, OSError):
            if not self._is_closing and not self._ends_by_itself():
                self._end_words = "hung up and was ended"
        except Exception:
            self._end_words = "said what can't be read and was ended"
            logger.exception(
                "what the lake compactor's process said can't be read, it is ended: pid=%d", self.pid
            )
        self._process.kill()  # it is of no use any more
        code = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._end, code)

    def _ends_by_itself(self) -> bool:
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _step(self, name: str) -> Failed | None:
        try:
            if self.step is not None:
                self.step(name)
        except Exception as error:  # noqa: BLE001 - raised again there
            return failed_of(error)
        return None

    def _answer(self, number: int, charged: int, answer: Any) -> None:
        self._on_charged(charged)
        waiting = self._waiting.pop(number, None)
        if waiting is not None:
            waiting.answer = answer
            waiting.done.set()

    def _end(self, code: int) -> None:
        self.ended.set()
        self._on_charged(0)
        if not self._is_closing:
            if self._end_words == "ended":
                self._end_words = _how_ended(code)
            logger.warning("the process of the lake compactor %s: pid=%d", self._end_words, self.pid)
        for waiting in self._waiting.values():
            waiting.done.set()
        self._waiting.clear()

    def _send(self, message: object, buffers: Sequence[Buffer]) -> None:
        with self._sending:
            send(self._socket, message, buffers)

    async def call(self, name: str, *arguments: Any, buffers: Sequence[Buffer] = ()) -> Any:
        """Have the process do something. Cancelled, it is told so, and killed if it doesn't leave off.

        Raises UnavailableError if it ends before it answers.
        """
        number, waiting = next(self._numbers), _Waiting()
        if self.ended.is_set():
            raise self._gone()
        self._waiting[number] = waiting
        sending = _Sending(
            partial(self._send, ("call", number, name, arguments), buffers), self._process.kill
        )
        try:
            await run_in_thread(sending.run, limiter=self._limiter, give_up=sending.give_up)
            await waiting.done.wait()
        except OSError:
            with anyio.CancelScope(shield=True):
                await self.ended.wait()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._leave_off(number, waiting, is_known=sending.has_begun)
            raise
        answer = waiting.answer
        if answer is None:
            raise self._gone()
        if isinstance(answer, Failed):
            raise error_of(answer)
        return answer[0]

    async def _leave_off(self, number: int, waiting: _Waiting, *, is_known: bool) -> None:
        if not is_known:
            del self._waiting[number]
            return
        with anyio.move_on_after(_GIVE_UP_S):
            sending = _Sending(partial(self._send, ("cancel", number), ()), self._process.kill)
            with contextlib.suppress(OSError):  # it has ended
                await run_in_thread(sending.run, limiter=self._limiter, give_up=sending.give_up)
            await waiting.done.wait()
        if not waiting.done.is_set():
            await self.end()

    async def end(self) -> None:
        """Kill it, as it didn't do what it was told; whatever it was at work on is begun anew."""
        if not self.ended.is_set():
            self._end_words = "didn't leave off and was ended"
            self._process.kill()
            await self.ended.wait()

    def _gone(self) -> UnavailableError:
        return UnavailableError(
            f"the process of the lake compactor {self._end_words}, it is started again with the next try: "
            f"pid={self.pid}"
        )

    def watch(self, step: Callable[[str], None]) -> None:
        """Have ``step`` called from now on, in a thread, while the process waits."""
        self.step = step
        self._send(("watch",), ())

    async def close(self) -> None:
        """End it."""
        self._is_closing = True
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)
        await self.ended.wait()
        self._reader.join()
        self._socket.close()


def _how_ended(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (", perhaps for want of memory" if code == -signal.SIGKILL else "")
    return f"was ended by signal {-code}"


class ApartCompactor:
    """Keeps the contract :class:`penstock.spi.lake.LakeCompactor` with an ``IcebergCompactor`` elsewhere."""

    def __init__(self, settings: Settings, services: Services) -> None:
        self._settings = settings
        self._services = services
        assert services.allocator is not None
        self._account = Account(services.allocator, asyncio.get_running_loop().call_later)
        #: What of it the process keeps between calls.
        self._kept_bytes = 0
        self._process: _Process | None = None
        self._starting = anyio.Lock()
        #: Why it couldn't be started, and until when nobody tries again.
        self._failed: tuple[PenstockError, float] | None = None
        self._step: Callable[[str], None] | None = None
        self._location = ""
        self._numbers = itertools.count()

    @classmethod
    @asynccontextmanager
    async def opened(cls, settings: Settings, services: Services) -> AsyncIterator[ApartCompactor]:
        """Start the process. Raises what opening the compactor in it raises."""
        apart = cls(settings, services)
        try:
            await apart.process()
            yield apart
        finally:
            with anyio.CancelScope(shield=True):
                if apart._process is not None:
                    await apart._process.close()
                apart._keeps(0)
                apart._account.settle()

    async def process(self) -> _Process:
        """The process, which is started if there is none."""
        async with self._starting:
            if self._process is not None and self._process.ended.is_set():
                ended, self._process = self._process, None
                await ended.close()
            if self._process is None:
                if self._failed is not None and anyio.current_time() < self._failed[1]:
                    raise again(self._failed[0])
                try:
                    self._process = await self._start()
                except PenstockError as error:
                    self._failed = kept(error), anyio.current_time() + _START_PAUSE_S
                    raise
                self._have_watched()
            return self._process

    async def _start(self) -> _Process:
        try:
            process = _Process(self._keeps)
        except OSError as error:  # of processes, descriptors or memory
            raise UnavailableError(
                f"the process of the lake compactor can't be started: cause={error}"
            ) from None
        try:
            self._location = await process.call("open", self._settings, self._plain_services(), self.memory())
        except BaseException:
            with anyio.CancelScope(shield=True):
                await process.close()
            raise
        process.listen_for(_SILENCE_S)
        return process

    def _plain_services(self) -> dict[str, Any]:
        """What goes through a pickle: no object that is alive here."""
        services = self._services
        return {
            "node_id": services.node_id,
            "epoch": services.epoch,
            "cluster_id": services.cluster_id,
            "data_dir": services.data_dir.absolute(),
            "access": services.access,
            "read_only": services.read_only,
        }

    def memory(self) -> tuple[int, int]:
        """The limit of the broker's memory, and what of it others use."""
        assert self._services.allocator is not None
        used = self._services.allocator.statistics()
        return used.limit_bytes, used.used_bytes - self._account.charged

    @contextmanager
    def handing(self, size: int) -> Iterator[None]:
        """Account for what is on its way to the process, and so is there and here."""
        self._account.add(size)
        try:
            yield
        finally:
            self._account.add(-size)

    def _keeps(self, size: int) -> None:
        """The process keeps so much."""
        more, self._kept_bytes = size - self._kept_bytes, size
        self._account.add(more)

    @property
    def capabilities(self) -> LakeCompactorCapabilities:
        """Maintains tables, which several hosts may share."""
        return CAPABILITIES

    @property
    def location(self) -> str:
        """Catalog and warehouse."""
        return self._location

    def watch(self, step: Callable[[str], None]) -> None:
        """Have ``step(name)`` called after each thing that is done on a medium, while the process waits."""
        self._step = step
        self._have_watched()

    def _have_watched(self) -> None:
        if self._process is not None and self._step is not None:
            self._process.watch(self._step)

    @asynccontextmanager
    async def open_table(self, topic: LakeTopic, epoch: int) -> AsyncIterator[ApartTable]:
        """The table, fenced for whoever has it open with a lower epoch."""
        process, number = await self.process(), next(self._numbers)
        try:
            name = await process.call("open_table", number, topic, epoch, self.memory())
            yield ApartTable(self, process, number, name)
        finally:
            with anyio.move_on_after(_LEAVE_S, shield=True) as scope:
                if not process.ended.is_set():
                    await process.call("leave", number)
            if scope.cancelled_caught:
                with anyio.CancelScope(shield=True):
                    await process.end()
            self._account.settle()

    async def tables(self) -> Sequence[str]:
        """The names of all tables in the namespace."""
        found: Sequence[str] = await (await self.process()).call("tables")
        return found


class ApartTable:
    """Keeps the contract :class:`penstock.spi.lake.LakeTable` with a table that is open elsewhere."""

    def __init__(self, compactor: ApartCompactor, process: _Process, number: int, name: str) -> None:
        self._compactor = compactor
        self._process = process
        self._number = number
        self._name = name

    async def _call(self, name: str, *arguments: Any, buffers: Sequence[Buffer] = ()) -> Any:
        memory = self._compactor.memory()
        return await self._process.call("table", self._number, memory, name, arguments, buffers=buffers)

    @property
    def name(self) -> str:
        """Without the namespace."""
        return self._name

    async def positions(self) -> Mapping[int, int]:
        """Where this opening goes on from."""
        found: Mapping[int, int] = await self._call("positions")
        return found

    async def write(self, records: LakeRecords) -> LakeWritten:
        """Hand records over, and wait until they are taken."""
        numbers, buffers = taken_apart(records)
        with self._compactor.handing(records.nbytes):
            written: LakeWritten = await self._call("write", numbers, buffers=buffers)
        return written

    async def commit(self, positions: Mapping[int, int]) -> LakeCommit:
        """Commit all that was written with the positions."""
        made: LakeCommit = await self._call("commit", dict(positions))
        return made

    async def maintain(self, *, dry_run: bool = False) -> LakeMaintenance:
        """Rewrite small files, merge manifests, expire snapshots, and remove files that nothing needs."""
        done: LakeMaintenance = await self._call("maintain", dry_run)
        return done

    async def describe(self) -> Mapping[str, str]:
        """Words about the newest snapshot."""
        words: Mapping[str, str] = await self._call("describe")
        return words

    async def rows(self) -> AsyncIterator[LakeRecord]:
        """The records of all files, some at a time."""
        found: Sequence[LakeRecord] = await self._call("rows", True)
        while found:
            for record in found:
                yield record
            found = await self._call("rows", False)
