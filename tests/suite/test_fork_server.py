"""A forked broker is a process as one that was executed; only its start is shorter."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests import fork_server, keeper
from tests.fork_server import Forked
from tests.integration.conftest import free_port
from tests.patience import HANG_S

Process = Forked | subprocess.Popen[str]


def executed(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "penstock", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def serve(data_dir: Path, *sets: str) -> list[str]:
    wanted = (
        f"broker.data_dir={data_dir}",
        f"listener.bind=127.0.0.1:{free_port()}",
        "wal.capacity=64MiB",
        *sets,
    )
    return ["serve", *(f"--set={one}" for one in wanted)]


def until_ready(process: Process) -> str:
    """Its lines up to the end of the banner; it is ready."""
    assert process.stdout is not None
    lines = ""
    for line in process.stdout:
        lines += line
        if "metadata_log file:" in line:
            return lines
    raise AssertionError(lines)


def end(process: Process) -> None:
    process.kill()
    process.wait(HANG_S)
    assert process.stdout is not None
    process.stdout.close()


@pytest.fixture(params=[fork_server.start, executed], ids=["forked", "executed"])
def started(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Process]:
    process: Process = request.param(serve(tmp_path / "data"), {**os.environ, "PYTHONUNBUFFERED": "1"})
    yield process
    end(process)


class Surroundings(NamedTuple):
    """What a process has from who started it."""

    descriptors: list[str]
    status: list[str]
    limits: str
    directory: Path
    own_session: bool
    threads: int


#: Rows of /proc/PID/status; with signals blocked, ignored and caught.
_ROWS = ("Umask:", "Uid:", "Gid:", "Groups:", "SigBlk:", "SigIgn:", "SigCgt:", "Seccomp:", "NoNewPrivs:")


def surroundings(process: Process) -> Surroundings:
    entry = Path(f"/proc/{process.pid}")
    names = [os.readlink(path).rsplit("/", 1)[-1] for path in (entry / "fd").iterdir()]
    return Surroundings(
        descriptors=sorted(re.sub(r"[0-9a-f]{16}|\[.*", "", name) for name in names),
        status=[line for line in (entry / "status").read_text().splitlines() if line.startswith(_ROWS)],
        limits=(entry / "limits").read_text(),
        directory=(entry / "cwd").readlink(),
        own_session=os.getsid(process.pid) == process.pid,
        threads=len(list((entry / "task").iterdir())),
    )


def test_a_forked_broker_has_the_surroundings_of_an_executed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptors, signals, limits, directory, mask: not those of the fork server, and not those of other forks."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    first = fork_server.start(serve(tmp_path / "first"), environment)
    processes: list[Process] = [first]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    mask = os.umask(0o027)
    monkeypatch.chdir(tmp_path)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        for start in (fork_server.start, executed):
            processes.append(start(serve(tmp_path / start.__name__), environment))
        for process in processes:
            until_ready(process)
        forked, really = map(surroundings, processes[1:])
        assert forked == really
        assert forked.directory == tmp_path
    finally:
        os.umask(mask)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for process in processes:
            end(process)


def test_a_broker_is_stopped_by_a_signal_and_tells_by_its_exit_code(started: Process) -> None:
    until_ready(started)
    assert started.poll() is None
    started.send_signal(signal.SIGINT)
    assert started.stdout is not None
    assert "stopped" in started.stdout.read()
    assert (started.wait(HANG_S), started.poll()) == (0, 0)


def test_a_killed_broker_tells_by_its_exit_code(started: Process) -> None:
    until_ready(started)
    started.kill()
    assert started.wait(HANG_S) == -signal.SIGKILL
    started.kill()  # it may be gone already


def test_waiting_for_a_broker_that_runs_has_an_end(started: Process) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        started.wait(0.01)
    until_ready(started)


@pytest.mark.parametrize("start", [fork_server.start, executed])
def test_arguments_and_environment_are_its_own(start: object) -> None:
    assert callable(start)
    process = start(["config", "check"], {**os.environ, "PENSTOCK__WAL__CAPACITY": "many"})
    output = process.stdout.read()
    assert "value='many'" in output
    assert output.startswith("penstock: ")
    assert process.wait(HANG_S) == 2
    process.stdout.close()


def test_what_is_read_while_python_starts_or_imports_needs_a_start_of_its_own() -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    assert fork_server.same_start(environment)
    assert fork_server.same_start({**environment, "PENSTOCK__WAL__CAPACITY": "1GiB"})
    assert not fork_server.same_start({**environment, "PENSTOCK_NATIVE": "other"})
    assert not fork_server.same_start({**environment, "PYTHONUNBUFFERED": ""})


def test_the_keeper_finds_forked_brokers(tmp_path: Path) -> None:
    """By the mark in the environment with which the server was executed, whatever a broker's own is."""
    environment = {name: value for name, value in os.environ.items() if name != keeper.MARK}
    process = fork_server.start(serve(tmp_path / "data"), environment)
    assert process.pid in keeper.marked(Path(os.environ[keeper.MARK]))
    end(process)


def test_a_broker_outlives_the_server(tmp_path: Path) -> None:
    """As one that was executed outlives what executed it; the next one has a new server."""
    process = fork_server.start(serve(tmp_path / "data"), dict(os.environ))
    until_ready(process)
    fork_server.close()
    assert process.stdout is not None
    os.kill(process.pid, signal.SIGTERM)
    assert "stopped" in process.stdout.read()
    process.stdout.close()
    with pytest.raises(RuntimeError, match="the fork server has ended"):
        process.wait(HANG_S)
    end(fork_server.start(serve(tmp_path / "data"), dict(os.environ)))
