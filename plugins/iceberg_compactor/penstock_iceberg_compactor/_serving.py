"""The compactor's process: ``python -m penstock_iceberg_compactor._serving DESCRIPTOR``, started by ``_apart``.

It does what the broker at the other end of the socket says, and is gone at once when that end is closed: whatever it
was doing is then as if it had been killed.
"""

from __future__ import annotations

__all__ = ("main",)

import asyncio
import contextlib
import ctypes
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskGroup

from penstock.spi import Services
from penstock.spi.allocator import AllocatorStatistics
from penstock.spi.lake import LakeCompactor, LakeRecord, LakeTable, LakeTopic
from penstock_iceberg_compactor._frames import Failed, error_of, failed_of, packed, receive, records_of
from penstock_iceberg_compactor._open import open_here, watch
from penstock_iceberg_compactor._settings import Settings

#: How far the broker is preferred where processors are scarce; and how far this process is preferred to ordinary
#: others beside a broker of a real-time priority, which goes before everything on the host.
_NICE = 5
_NICE_BESIDE_REAL_TIME = -10
#: How much sooner than the broker the kernel ends this process where memory is scarce.
_OOM_SCORE = 300
_PR_SET_PDEATHSIG = 1
#: A charge of so much is told before the answer.
_TOLD_BYTES = 2**20
#: Rows that checks get in one answer.
_ROWS = 1000


class _Account:
    """Stands for the broker's allocator: what is charged here is told with each answer, and accounted for there.

    Much is told at once: a call may take long.
    """

    def __init__(self, tell: Callable[[int], None]) -> None:
        self._tell = tell
        self.limit_bytes = self.others_bytes = self.own_bytes = 0

    def charge_anyway(self, size: int, purpose: str) -> _Charge:
        self.own_bytes += size
        if size >= _TOLD_BYTES:
            self._tell(self.own_bytes)
        return _Charge(self, size)

    def statistics(self) -> AllocatorStatistics:
        used = self.others_bytes + self.own_bytes
        return AllocatorStatistics(
            limit_bytes=self.limit_bytes, used_bytes=used, used_by_purpose={}, waiting=0, peak_bytes=used
        )


class _Charge:
    def __init__(self, account: _Account, size: int) -> None:
        self._account = account
        self.size = size

    def release(self) -> None:
        self._account.own_bytes -= self.size


class _Server:
    def __init__(self, connection: socket.socket, tasks: TaskGroup, stack: AsyncExitStack) -> None:
        self._connection = connection
        self._tasks = tasks
        self._stack = stack
        self._loop = asyncio.get_running_loop()
        self._outbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._scopes: dict[int, anyio.CancelScope] = {}
        self._account = _Account(lambda size: self.say("charged", size))
        self._compactor: LakeCompactor
        #: Contexts are left by another task than the one that entered them; no scope of a task lives in them.
        self._tables: dict[int, tuple[AbstractAsyncContextManager[LakeTable], LakeTable]] = {}
        self._rows: dict[int, AsyncIterator[LakeRecord]] = {}
        self._stepped: queue.SimpleQueue[Failed | None] = queue.SimpleQueue()
        self._stepping = threading.Lock()

    def say(self, *message: object) -> None:
        """Send a message, after those before it; whoever can't isn't heard any more.

        If another call is sending, it sends this one, too. That call may be this very thread's: the garbage collector
        runs in the middle of whatever there is, and what it collects may log.
        """
        self._outbox.put(packed(message))
        while not self._outbox.empty() and self._sending.acquire(blocking=False):
            try:
                while not self._outbox.empty():
                    self._connection.sendall(self._outbox.get())
            except OSError:
                os._exit(0)
            finally:
                self._sending.release()

    def read(self) -> None:
        """In a thread of its own: what the broker says, until it is gone."""
        try:
            while True:
                message, buffers = receive(self._connection)
                if message[0] == "stepped":
                    self._stepped.put(message[1])
                else:
                    self._loop.call_soon_threadsafe(self._take, message, buffers)
        except BaseException:  # noqa: BLE001 - nothing more can be heard
            os._exit(0)

    def _take(self, message: Any, buffers: list[memoryview]) -> None:
        match message:
            case ("call", number, name, arguments):
                self._scopes[number] = anyio.CancelScope()  # it may be cancelled before the task begins
                self._tasks.start_soon(self._answer, number, name, arguments, buffers)
            case ("cancel", number) if number in self._scopes:
                self._scopes[number].cancel()
            case ("watch",):
                watch(self._compactor, self._step)

    def _step(self, name: str) -> None:
        with self._stepping:
            self.say("step", name)
            failed = self._stepped.get()
        if failed is not None:
            raise error_of(failed)

    async def _answer(self, number: int, name: str, arguments: Any, buffers: list[memoryview]) -> None:
        answer: object = Failed("", "it was cancelled")
        with self._scopes[number]:
            try:
                answer = (await getattr(self, f"_do_{name}")(*arguments, buffers),)
            except Exception as error:  # noqa: BLE001 - raised again in the broker
                answer = failed_of(error)
        del self._scopes[number]
        self.say("answer", number, self._account.own_bytes, answer)

    async def _do_open(
        self, settings: Settings, services: Mapping[str, Any], memory: tuple[int, int], _: object
    ) -> str:
        self._remember(memory)
        account: Any = self._account
        wanted = Services(**services, clock=time.monotonic, allocator=account)
        self._compactor = await self._stack.enter_async_context(open_here(settings, wanted))
        _give_way()  # not before: the broker waits for this
        return self._compactor.location

    def _remember(self, memory: tuple[int, int]) -> None:
        self._account.limit_bytes, self._account.others_bytes = memory

    async def _do_tables(self, _: object) -> Sequence[str]:
        return await self._compactor.tables()

    async def _do_open_table(
        self, number: int, topic: LakeTopic, epoch: int, memory: tuple[int, int], _: object
    ) -> str:
        self._remember(memory)
        context = self._compactor.open_table(topic, epoch)
        table = await context.__aenter__()
        self._tables[number] = context, table
        return table.name

    async def _do_leave(self, number: int, _: object) -> None:
        self._rows.pop(number, None)
        context, _ = self._tables.pop(number, (None, None))
        if context is not None:
            await context.__aexit__(None, None, None)

    async def _do_table(
        self, number: int, memory: tuple[int, int], name: str, arguments: Any, buffers: list[memoryview]
    ) -> Any:
        self._remember(memory)
        _, table = self._tables[number]
        match name:
            case "write":
                return await table.write(records_of(arguments[0], buffers))
            case "maintain":
                return await table.maintain(dry_run=arguments[0])
            case "rows":
                return await self._next_rows(number, table, is_first=arguments[0])
        return await getattr(table, name)(*arguments)

    async def _next_rows(self, number: int, table: LakeTable, *, is_first: bool) -> list[LakeRecord]:
        if is_first:
            self._rows[number] = table.rows()
        found: list[LakeRecord] = []
        async for row in self._rows[number]:
            found.append(row)
            if len(found) == _ROWS:
                break
        return found


class _Handler(logging.Handler):
    """Has the broker log what is logged here."""

    def __init__(self, say: Callable[..., None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say("log", record.name, record.levelno, self.format(record))


async def _serve(connection: socket.socket, level: int, beat_s: float) -> None:
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        server = _Server(connection, tasks, stack)
        logging.basicConfig(handlers=[_Handler(server.say)], level=level, format="%(message)s", force=True)
        threading.Thread(target=server.read, name="penstock-lake-broker", daemon=True).start()
        while True:  # from here, as what keeps this loop keeps everything
            server.say("here")
            await anyio.sleep(beat_s)


def _give_way() -> None:
    """Let the broker have the processors that it wants: all threads so far, of which later ones inherit it."""
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # a thread that has ended, or a host that forbids it
            _give_way_of(int(task))
    if os.getsid(0) == os.getpid() and os.getpriority(os.PRIO_PROCESS, 0) < 0:
        with contextlib.suppress(OSError):  # a host that doesn't divide processors between sessions
            Path("/proc/self/autogroup").write_text(str(_NICE_BESIDE_REAL_TIME))


def _give_way_of(task: int) -> None:
    if os.sched_getscheduler(task) in (os.SCHED_FIFO, os.SCHED_RR):
        # Any real-time priority is above that of the kernel's threads that end a disk's flushes: with the lowest one
        # this process would keep them, and so the broker's log, waiting for a processor.
        os.sched_setscheduler(task, os.SCHED_OTHER, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, task, _NICE_BESIDE_REAL_TIME)
    else:
        nice = os.getpriority(os.PRIO_PROCESS, task)  # the broker's, which needn't be 0
        os.setpriority(os.PRIO_PROCESS, task, nice + _NICE)


def _go_first() -> None:
    """Be ended with the broker, also while standing still, and before it where memory is scarce."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):  # it was as high already
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text()) + _OOM_SCORE)))


def main(descriptor: int, level: int, beat_s: float) -> None:
    """Serve the broker at the other end of the socket ``descriptor``; logs below ``level`` stay here."""
    _go_first()
    try:
        os.getcwd()
    except FileNotFoundError:  # whose files have no names then, also those with absolute ones
        os.chdir("/")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(
            number, signal.SIG_IGN
        )  # whoever stops all of a service stops the broker, which commits
    anyio.run(_serve, socket.socket(fileno=descriptor), level, beat_s)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
