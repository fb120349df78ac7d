"""Real ``penstock serve`` processes for the tests in here; ``tests/fork_server.py`` says how they are started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import pytest
from tests import fork_server
from tests.fork_server import Forked
from tests.patience import HANG_S

READY_S = HANG_S
#: The log of brokers of which a test says nothing about it: ``TESTS_WAL=wal_s3 pytest ...`` tries another one.
WAL = os.environ.get("TESTS_WAL", "wal_block")
ON_WAL_BLOCK = pytest.mark.skipif(WAL != "wal_block", reason="about the file of wal_block")


class ServeProcess:
    """A ``penstock serve`` with a data directory; it can be killed and started again on the same port."""

    def __init__(self, data_dir: Path, sets: tuple[str, ...] = (), arguments: tuple[str, ...] = ()) -> None:
        self.data_dir = data_dir
        self.port = free_port()
        self.sets = sets
        self.arguments = arguments
        self._output = ""
        #: How much was printed before the run that is going on, or the last one.
        self.printed_before = 0
        self._printed = threading.Condition()
        self._process: subprocess.Popen[str] | Forked | None = None
        self._reader: threading.Thread | None = None

    @property
    def bootstrap_servers(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """Everything that all runs printed, stdout and stderr; only while none is running.

        What a broker prints comes later than what it answers, so with one that runs it is a matter of luck what is
        there: ``wait_for_output`` waits.
        """
        assert self._process is None, "the broker hasn't ended: use wait_for_output"
        return self._output

    @property
    def output_so_far(self) -> str:
        """What has come of the output, for messages and for marks from which on something has to be printed."""
        return self._output

    def start(self) -> None:
        """Start, and return when it accepts clients. Fails with what it printed when it doesn't."""
        ready = self.launch()
        assert ready.wait(READY_S), f"not ready in {READY_S} s:\n{self._output}"
        assert self.running, f"ended at once:\n{self._output}"

    def launch(self) -> threading.Event:
        """Start, and return at once; the event is set when it accepts clients, or ended."""
        arguments = ["serve", *self.arguments]
        others = [setting for setting in self.sets if setting.startswith("wal.")]
        default_wal = ["wal.capacity=64MiB"]
        if WAL != "wal_block" and not others:
            default_wal = [f"wal.plugin={WAL}"]
        elif any(setting.startswith("wal.plugin=") for setting in others):
            default_wal = []
        for setting in (
            f"broker.data_dir={self.data_dir}",
            f"listener.bind=127.0.0.1:{self.port}",
            *default_wal,
            # Many tests write records of years ago, which retention drops as soon as it looks.
            "stream.retention_interval=1h",
            *self.sets,
        ):
            arguments += ["--set", setting]
        self.printed_before = len(self._output)
        process = self._process = _started(arguments, {**os.environ, "PYTHONUNBUFFERED": "1"})
        ready = threading.Event()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                with self._printed:
                    self._output += line
                    self._printed.notify_all()
                if "is ready in" in line:
                    ready.set()
            ready.set()

        self._reader = threading.Thread(target=read, daemon=True)
        self._reader.start()
        return ready

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, nothing is said."""
        assert self._process is not None
        self._process.kill()
        self._reap(10)

    def terminate(self, timeout_s: float = HANG_S) -> int:
        """SIGTERM, and wait until it has drained; its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._reap(timeout_s)

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends by itself; its exit code."""
        return self._reap(timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def _reap(self, timeout_s: float) -> int:
        assert self._process is not None
        assert self._reader is not None
        code = self._process.wait(timeout_s)
        self._reader.join(timeout_s)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return code

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.poll() is None

    def wait_for_output(self, *texts: str, after: int = 0, timeout_s: float = HANG_S) -> str:
        """Wait until one of ``texts`` was printed, behind the first ``after`` characters; the line that has it."""

        def line() -> str | None:
            lines = self._output[after:].splitlines()
            return next((each for each in lines if any(text in each for text in texts)), None)

        with self._printed:
            found = self._printed.wait_for(line, timeout_s)
        assert found, f"never printed any of {texts}:\n{self._output[after:]}"
        return found

    def resident_bytes(self) -> int:
        """What the process holds in memory now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _started(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str] | Forked:
    if fork_server.same_start(environment):
        return fork_server.start(arguments, environment)
    return subprocess.Popen(
        [sys.executable, "-m", "penstock", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def penstock(
    *arguments: str,
    text: bytes = b"",
    merged: bool = False,
    more: Mapping[str, str] | None = None,
    timeout_s: float = HANG_S,
) -> subprocess.CompletedProcess[str]:
    """``penstock ARGUMENTS`` to its end, with ``text`` on stdin; see ``fork_server.run``."""
    done = fork_server.run(arguments, text=text, merged=merged, more=more, timeout_s=timeout_s)
    stdout, stderr = (each.decode(errors="surrogateescape") for each in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(arguments, done.returncode, stdout, stderr)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert isinstance(port, int)
        return port


ServeFactory = Callable[..., ServeProcess]


_PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    """Have fixtures know whether the test failed or was interrupted."""
    yield
    item.stash[_PASSED] = True


@pytest.fixture
def serve(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ServeFactory]:
    """Starts brokers: ``serve(*settings)``. At the end they are stopped, and none may have shown a traceback.

    After a failure or an interruption they are killed: what they would drain to may be full or gone.
    """
    started: list[ServeProcess] = []

    def start(*sets: str, data_dir: Path | None = None, arguments: tuple[str, ...] = ()) -> ServeProcess:
        broker = ServeProcess(data_dir or tmp_path / f"data-{len(started)}", sets, arguments)
        started.append(broker)
        broker.start()
        return broker

    yield start
    for broker in started:
        if broker.running:
            if request.node.stash.get(_PASSED, False):
                broker.terminate()
            else:
                broker.kill()
        assert "Traceback" not in broker.output, broker.output
        assert "never awaited" not in broker.output, broker.output


@pytest.fixture
def broker(serve: ServeFactory) -> ServeProcess:
    """One broker with the embedded default."""
    return serve()


@pytest.fixture(scope="session")
def log_lines() -> list[str]:
    """Real text: the lines of Python's own standard library, a few thousand of them."""
    lines: list[str] = []
    for name in ("argparse.py", "asyncio/base_events.py", "tarfile.py", "subprocess.py"):
        text = Path(os.__file__).with_name(name.split("/")[0])
        path = text if "/" not in name else text / name.split("/")[1]
        lines += [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) > 3000
    return lines
