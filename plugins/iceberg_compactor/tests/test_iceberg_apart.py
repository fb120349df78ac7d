"""The compactor in a process of its own: the same tables, and whatever becomes of the process, each record once."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock, patch

import anyio
import pytest
from penstock_iceberg_compactor import _account, _apart, _frames, _serving
from penstock_iceberg_compactor._apart import ApartCompactor
from penstock_iceberg_compactor._open import open_compactor, watch
from penstock_iceberg_compactor._settings import Settings
from tests.iceberg_place import services, topic
from tests.lake_records import lake_records
from tests.patience import HANG_S

from penstock.errors import ConfigError, FencedError, InvalidRequestError, UnavailableError
from penstock_conformance.reference._allocator import PlainAllocator

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def apart(place: Path, allocator: PlainAllocator, **settings: Any) -> AsyncIterator[ApartCompactor]:
    async with open_compactor(Settings(**settings), services(place, allocator=allocator)) as compactor:
        assert isinstance(compactor, ApartCompactor)
        yield compactor


async def kill(compactor: ApartCompactor, number: int = signal.SIGKILL) -> None:
    os.kill((await compactor.process()).pid, number)


@patch.object(_account, "_KEPT_S", 0.0)
async def test_a_table_that_is_made_elsewhere_has_what_was_written(tmp_path: Path) -> None:
    """Keys, values, headers, nulls and gaps; by a process that gives way, and hears no signals of our terminal."""
    allocator = PlainAllocator(512 * 2**20)
    async with apart(tmp_path, allocator) as compactor:
        async with compactor.open_table(topic(), 1) as table:
            assert await table.positions() == {}
            records = lake_records(
                [b"a", None, b""],
                keys=[None, b"k", b""],
                headers=[[(b"n", b"v"), (b"n", None)], [], []],
                offsets=[0, 4, 9],
                partition=3,
            )
            assert (await table.write(records)).rows == 3
            assert allocator.statistics().used_by_purpose["lake"] > 0
            assert (await table.commit({3: 10})).rows == 3
            with anyio.fail_after(HANG_S):
                while allocator.statistics().used_bytes:  # noqa: ASYNC110 - a timer does it
                    await anyio.sleep(0.001)
            assert [row async for row in table.rows()] == list(records.rows())
            assert await table.positions() == {3: 10}
            assert (await table.maintain()).figures
            assert table.name in (await table.describe())["place"]
        assert await compactor.tables() == ["orders"]
        assert str(tmp_path) in compactor.location
        # nice counts within a session only: Linux divides processors between sessions
        pid = (await compactor.process()).pid
        assert os.getsid(pid) == os.getsid(0)
        assert os.getpgid(pid) == pid
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, ours + _serving._NICE)
    assert not allocator.statistics().used_bytes


_REAL_TIME = """
import os, sys, anyio
from pathlib import Path
from penstock_conformance.reference._allocator import PlainAllocator
from penstock_iceberg_compactor._open import open_compactor
from penstock_iceberg_compactor._settings import Settings
from penstock.spi import Services

async def main():
    services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=Path(sys.argv[1]), clock=lambda: 0.0,
                        allocator=PlainAllocator(2**29))
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
    async with open_compactor(Settings(), services) as compactor:
        pid = (await compactor.process()).pid
        tasks = [int(task) for task in os.listdir(f"/proc/{pid}/task")]
        print({os.sched_getscheduler(task) for task in tasks} == {os.SCHED_OTHER},
              {os.getpriority(os.PRIO_PROCESS, task) for task in tasks}, os.getsid(pid) == pid)

anyio.run(main)
"""


def test_the_process_of_a_real_time_broker_keeps_no_thread_of_the_kernel_waiting(tmp_path: Path) -> None:
    """Those that end a disk's flushes are ordinary ones. Ordinary others don't keep it from its table either."""
    done = subprocess.run(
        [sys.executable, "-c", _REAL_TIME, str(tmp_path)], capture_output=True, text=True, check=False
    )
    if "PermissionError" in done.stderr:
        pytest.skip("the host gives nobody a real-time priority")
    assert done.stdout == "True {-10} True\n", done.stderr


async def test_errors_come_with_their_kind_and_their_words(tmp_path: Path) -> None:
    allocator = PlainAllocator(512 * 2**20)
    with pytest.raises(ConfigError, match="no_such_catalog"):
        async with apart(tmp_path, allocator, catalog={"type": "no_such_catalog"}):
            pass
    async with apart(tmp_path, allocator) as compactor:
        async with compactor.open_table(topic(value_format="json"), 2) as table:
            with pytest.raises(InvalidRequestError, match=r"it is no json.*partition=0 offset=0"):
                await table.write(lake_records([b"{"]))
        with pytest.raises(FencedError, match="somebody else owns the table now"):
            async with compactor.open_table(topic(value_format="json"), 1):
                pass


async def test_a_process_that_is_killed_is_started_again_and_each_record_is_in_the_table_once(
    tmp_path: Path,
) -> None:
    allocator = PlainAllocator(512 * 2**20)
    async with apart(tmp_path, allocator) as compactor:
        for _ in range(2):
            async with compactor.open_table(topic(), 1) as table:
                await table.write(lake_records([b"a", b"b"]))
                await kill(compactor)
                with pytest.raises(
                    UnavailableError, match="process of the lake compactor was ended by SIGKILL"
                ):
                    await table.commit({0: 2})
            assert not allocator.statistics().used_bytes
        async with compactor.open_table(topic(), 1) as table:
            await table.write(lake_records([b"a", b"b"]))
            await table.commit({0: 2})
            assert [row.offset async for row in table.rows()] == [0, 1]


#: What a process may do instead of answering, with its socket ``s``, and what people are told.
_STRANGERS = {
    "s.sendall(struct.pack('<QI', 2**60, 0))": "said what can't be read and was ended",
    "s.sendall(struct.pack('<QI', 9, 2**32 - 1))": "said what can't be read and was ended",
    "s.sendall(struct.pack('<QI', 3, 0) + b'...')": "said what can't be read and was ended",
    "s.sendall(struct.pack('<QI', 12, 0) + pickle.dumps(('hello',)))": "said what can't be read and was ended",
    "s.sendall(struct.pack('<QI', 100, 0) + b'...'); sys.exit(3)": "ended with code 3",
    "os.kill(os.getpid(), signal.SIGSEGV)": "was ended by SIGSEGV",
    "os.kill(os.getpid(), signal.SIGKILL)": "was ended by SIGKILL, perhaps for want of memory",
    "s.close()": "hung up and was ended",
    "": r"said nothing for 0\.\d+ s and was ended",
}


@pytest.mark.parametrize("does", _STRANGERS)
async def test_a_process_that_does_anything_but_answer_is_ended_and_it_is_said_in_a_sentence(
    tmp_path: Path, does: str
) -> None:
    """Nobody waits for an answer that can't come any more."""
    script = "import os, pickle, signal, socket, struct, sys; s = socket.socket(fileno=int(sys.argv[1]))\n"
    words = (
        f"the process of the lake compactor {_STRANGERS[does]}, it is started again with the next try: pid="
    )
    with (
        patch.object(_apart, "_SERVING", ("-S", "-E", "-c", f"{script}{does}\nsignal.pause()")),
        patch.object(_apart, "_START_S", HANG_S if does else 0.2),
        patch.object(_apart, "_END_S", 0.1 if does == "s.close()" else HANG_S),
        pytest.raises(UnavailableError, match=words),
    ):
        async with apart(tmp_path, PlainAllocator(512 * 2**20)):
            pass


async def test_a_process_that_waits_for_a_processor_is_heard_out(tmp_path: Path) -> None:
    """Started again and again, it would never come to an end of its start where others keep the processors."""
    await is_ended_after((0, 1, 1, 2, 2, 2), tmp_path)


async def test_a_process_that_wants_a_processor_all_the_time_is_ended_when_it_had_one_for_long_enough(
    tmp_path: Path,
) -> None:
    """Another one waits as long, and says nothing: it goes round and round."""
    await is_ended_after((0, 0.014, 0.014, 0.028, 0.028, 0.042, 0.042, 0.056), tmp_path)


async def is_ended_after(waited_s: Sequence[float], directory: Path) -> None:
    """A process is ended that says nothing for 0.02 s, once it was looked so often how long it waits."""
    looks = iter(waited_s)
    with (
        patch.object(_apart, "_SERVING", ("-S", "-E", "-c", "import signal; signal.pause()")),
        patch.object(_apart, "_START_S", 0.02),
        patch.object(_apart, "_waited_s", lambda pid: next(looks)),
        pytest.raises(UnavailableError, match=r"said nothing for 0\.02 s"),
    ):
        async with apart(directory, PlainAllocator(512 * 2**20)):
            pass
    assert not list(looks)


async def test_what_goes_up_and_down_is_charged_at_its_highest_of_late() -> None:
    """Nothing is released and charged again meanwhile, which others would pay for."""
    allocator = PlainAllocator(2**20)
    looks: list[Callable[[], None]] = []

    def call_later(delay_s: float, look: Callable[[], None]) -> Mock:
        looks.append(look)
        return Mock()

    account = _account.Account(allocator, call_later)
    for _ in range(3):
        account.add(100)
        account.add(1000)
        account.add(-1100)
    assert allocator.statistics().used_bytes == account.charged == 1100
    account.add(10)
    looks.pop()()
    assert account.charged == 1100, "it was there since the last look"
    account.add(50)
    looks.pop()()
    assert allocator.statistics().used_bytes == account.charged == 60
    assert not looks, "there is nothing to look for"
    account.add(-60)
    account.settle()
    assert not allocator.statistics().used_bytes


async def test_nothing_is_charged_that_is_not_there_while_somebody_waits_for_memory() -> None:
    """Perhaps until nobody else has any."""
    allocator = PlainAllocator(2**20)
    account = _account.Account(allocator, Mock())
    account.add(1000)
    with anyio.fail_after(HANG_S):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(allocator.charge, 2**20 + 1, "network")
            while not allocator.statistics().waiting:
                await anyio.lowlevel.checkpoint()
            account.add(-1000)
    assert not account.charged


def test_how_long_a_process_waited_for_a_processor_is_known_while_it_is_there() -> None:
    assert _apart._waited_s(os.getpid()) > 0 or not Path("/proc/self/schedstat").exists()
    assert _apart._waited_s(2**31 - 1) == 0


async def test_much_memory_is_accounted_for_before_the_call_that_takes_it_ends(tmp_path: Path) -> None:
    charged: list[int] = []
    tell = "s = socket.socket(fileno=int(sys.argv[1])); a = ('charged', 2**20)"
    script = f"import pickle, socket, struct, sys; {tell}; b = pickle.dumps(a)"
    script += "; s.sendall(struct.pack('<QI', len(b), 0) + b)"
    with patch.object(_apart, "_SERVING", ("-S", "-E", "-c", script)), anyio.fail_after(HANG_S):
        process = _apart._Process(charged.append)
        await process.ended.wait()
        await process.close()
    assert charged == [2**20, 0], "and no longer when it has ended"
    sent = _Sent()
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        server = _serving._Server(cast(socket.socket, sent), tasks, stack)
        for size in (2**20 - 1, 2**20):
            server._account.charge_anyway(size, "lake")
    assert sent.frames == [_frames.packed(("charged", 2**21 - 1))]


@pytest.mark.parametrize(("pause_s", "starts"), [(HANG_S, 1), (0.0, 2)])
async def test_a_process_that_cannot_be_started_is_tried_again_after_a_pause(
    tmp_path: Path, pause_s: float, starts: int
) -> None:
    """However many tables want it meanwhile."""
    compactor = ApartCompactor(Settings(), services(tmp_path, allocator=PlainAllocator(512 * 2**20)))
    with (
        patch.object(subprocess, "Popen", side_effect=BlockingIOError(11, "no more processes")) as start,
        patch.object(_apart, "_START_PAUSE_S", pause_s),
    ):
        for _ in range(2):
            with pytest.raises(UnavailableError, match=r"can't be started: cause=.*no more processes"):
                await compactor.process()
    assert start.call_count == starts


async def test_a_process_says_that_it_is_there_and_is_ended_when_it_stands_still(tmp_path: Path) -> None:
    """Whatever holds it: it is seen without a call, and those who wait for an answer hear of it."""
    heard: list[Any] = []

    def receive(connection: _frames.Connection, size_max: int) -> tuple[Any, list[memoryview]]:
        message, buffers = _frames.receive(connection, size_max)
        heard.append(message)
        if len(heard) == 2:
            os.kill(process.pid, signal.SIGSTOP)
            process.listen_for(0.05)
        return message, buffers

    with patch.object(_apart, "_BEAT_S", 0.01):
        process = _apart._Process(lambda charged: None)
    with patch.object(_apart, "receive", receive), anyio.fail_after(HANG_S):
        await process.ended.wait()
        with pytest.raises(UnavailableError, match=r"said nothing for 0\.05 s"):
            await process.call("tables")
        await process.close()
    assert heard == [("here",)] * 2


class _Sent:
    """A connection that keeps what is sent, and on which something else has to be said meanwhile."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def sendall(self, frame: bytes) -> None:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        self.frames.append(frame)


async def test_a_message_can_be_said_in_the_middle_of_another(tmp_path: Path) -> None:
    """As when the garbage collector comes then, and what it finds logs that it wasn't closed."""
    sent = _Sent()
    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        server = _serving._Server(cast(socket.socket, sent), tasks, stack)
        sent.meanwhile = lambda: server.say("second")
        server.say("first")
    assert sent.frames == [_frames.packed(("first",)), _frames.packed(("second",))]


async def test_a_call_that_is_cancelled_before_it_begins_is_cancelled(tmp_path: Path) -> None:
    """Both may be heard at once; otherwise the broker would wait, and end the process of all tables."""
    sent = _Sent()
    with anyio.fail_after(HANG_S):
        async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
            server = _serving._Server(cast(socket.socket, sent), tasks, stack)
            with patch.object(server, "_do_tables", lambda _: anyio.sleep_forever()):
                server._take(("call", 7, "tables", ()), [])
                server._take(("cancel", 7), [])
                while not sent.frames:
                    await anyio.lowlevel.checkpoint()
    assert b"it was cancelled" in sent.frames[0]


async def test_a_call_that_is_cancelled_leaves_the_process_to_others(tmp_path: Path) -> None:
    async with apart(tmp_path, PlainAllocator(512 * 2**20)) as compactor:
        async with compactor.open_table(topic("other"), 1) as other:
            pid = (await compactor.process()).pid
            with anyio.CancelScope() as scope:
                async with compactor.open_table(topic(), 1) as table:
                    scope.cancel()
                    await table.write(lake_records([b"a"]))
            assert scope.cancelled_caught
            await other.write(lake_records([b"a"]))
            await other.commit({0: 1})
            assert (await compactor.process()).pid == pid


async def test_a_process_that_stands_still_is_killed_when_nobody_waits_for_it(tmp_path: Path) -> None:
    """It neither answers nor hears that it is to leave off."""
    with patch.object(_apart, "_GIVE_UP_S", 0.0):
        async with apart(tmp_path, PlainAllocator(512 * 2**20)) as compactor:
            with anyio.CancelScope() as scope, contextlib.suppress(UnavailableError):
                async with compactor.open_table(topic(), 1) as table:
                    await kill(compactor, signal.SIGSTOP)
                    async with anyio.create_task_group() as tasks:
                        # more than the socket takes
                        tasks.start_soon(table.write, lake_records([bytes(8 * 2**20)]))
                        await anyio.wait_all_tasks_blocked()
                        scope.cancel()
            assert await compactor.tables() == ["orders"]  # of the next process


class _Silent:
    """A process that opens tables, and never leaves one."""

    def __init__(self) -> None:
        self.ended = anyio.Event()

    async def call(self, name: str, *arguments: Any) -> str:
        if name == "leave":
            await anyio.sleep_forever()
        return "orders"

    async def end(self) -> None:
        self.ended.set()


async def test_leaving_a_table_ends_though_nothing_answers(tmp_path: Path) -> None:
    """As with a warehouse that is silent: the broker's end, which nothing cuts short, waits for it."""
    process = _Silent()
    compactor = ApartCompactor(Settings(), services(tmp_path, allocator=PlainAllocator(2**20)))
    compactor._process = cast("Any", process)
    with patch.object(_apart, "_LEAVE_S", 0.0):
        async with compactor.open_table(topic(), 1):
            pass
    assert process.ended.is_set()


async def test_what_a_step_raises_here_is_raised_there(tmp_path: Path) -> None:
    seen: list[str] = []

    def lose(step: str) -> None:
        seen.append(step)
        if step == "committed" and seen.count(step) == 1:
            raise UnavailableError("the reply is lost")

    async with apart(tmp_path, PlainAllocator(512 * 2**20)) as compactor:
        watch(compactor, lose)
        async with compactor.open_table(topic(), 1) as table:
            await table.write(lake_records([b"a"]))
            with pytest.raises(UnavailableError, match="the reply is lost"):
                await table.commit({0: 1})
        async with compactor.open_table(topic(), 1) as table:
            assert await table.positions() == {0: 1}
    assert {"table made", "files written", "manifests written", "committed"} <= set(seen)


async def test_what_is_logged_there_is_logged_here(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "penstock.lake")
    catalog = {"type": "sql", "uri": f"sqlite:////{tmp_path}/nowhere/c.db"}
    async with apart(tmp_path, PlainAllocator(512 * 2**20), catalog=catalog):
        pass
    assert [one.name for one in caplog.records if "tables wait for the catalog" in one.getMessage()] == [
        "penstock.lake.iceberg"
    ]


_BROKER = """
import os, sys, anyio
from pathlib import Path
from penstock_conformance.reference._allocator import PlainAllocator
from penstock_iceberg_compactor._open import open_compactor
from penstock_iceberg_compactor._settings import Settings
from penstock.spi import Services

async def main():
    os.mkdir(sys.argv[1] + "/gone")
    os.chdir(sys.argv[1] + "/gone")
    os.rmdir(sys.argv[1] + "/gone")  # as a release that was replaced meanwhile
    services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=Path(sys.argv[1]), clock=lambda: 0.0,
                        allocator=PlainAllocator(2**29))
    async with open_compactor(Settings(), services) as compactor:
        print((await compactor.process()).pid, "pyarrow" in sys.modules, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


def test_the_process_is_gone_when_the_broker_is_and_the_broker_has_none_of_its_libraries(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _BROKER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as broker:
        assert broker.stdout is not None
        pid, has_libraries = broker.stdout.readline().split()
        watched = os.pidfd_open(int(pid))
        os.kill(int(pid), signal.SIGSTOP)  # the hardest case: it doesn't see that its socket is closed
        broker.kill()
    try:
        assert select.select([watched], [], [], HANG_S)[0]  # readable when it has ended
    finally:
        os.close(watched)
    assert has_libraries == "False"
