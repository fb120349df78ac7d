"""A run of the tests leaves no process and no file behind, however it ends."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis.configuration import storage_directory
from tests import keeper
from tests.depth import in_full
from tests.fetched import cache_dir
from tests.patience import HANG_S

REPOSITORY = Path(__file__).parents[2]
#: Brokers, clients, a loop device, a mount, conformance in processes of its own.
PART = (
    "tests/integration/test_crash.py::test_large_batches_survive_kills",
    "tests/integration/test_faults.py::test_disk_full",
    "tests/integration/test_faults.py::test_store_down",
    "tests/conformance/test_on_devices.py",
)


def eventually(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.05)


def processes(temporary: Path) -> list[str]:
    """The command lines of all that was started with this directory for temporary files, or below it."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            if any(one.startswith(f"TMPDIR={temporary}".encode()) for one in environment):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # no process, or it ended
    return found


def files(directory: Path) -> set[Path]:
    """All that is below it, but for what Python compiles."""
    return {path for path in directory.rglob("*") if "__pycache__" not in path.parts}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what a run reads and might write to; somebody may be at work in the repository itself."""
    copy = tmp_path / "repository"
    for name in ("tests", "plugins"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", copy)
    return copy


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "t"
    directory.mkdir()
    yield directory
    assert processes(directory) == []


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        (signal.SIGINT, 2),
        *in_full(
            (signal.SIGKILL, 0),
            (signal.SIGINT, 0),
            (signal.SIGKILL, 2),
            (signal.SIGTERM, 2),
            (signal.SIGTERM, 0),
        ),
    ],
)
def test_an_interrupted_run_leaves_nothing(
    temporary: Path, repository: Path, number: signal.Signals, workers: int
) -> None:
    """At a random moment, to the process of the run alone; its keeper ends and removes the rest."""
    before = files(repository)
    command = [sys.executable, "-m", "pytest", "-q", "-x", f"-n{workers}", "--dist=loadfile", *PART]
    run = subprocess.Popen(
        command,
        cwd=repository,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        # os.walk passes over what is removed while it is looked at
        eventually(
            lambda: any("penstock.wal" in names for _, _, names in os.walk(temporary)), "a first broker"
        )
        time.sleep(random.uniform(0, 3))
        assert run.poll() is None, "the part of the suite is too short to be interrupted"
        run.send_signal(number)
        output, _ = run.communicate(timeout=HANG_S)
    finally:
        run.kill()
        run.wait()
        assert run.stdout is not None
        run.stdout.close()
    assert run.returncode == (2 if number == signal.SIGINT else -number), output
    eventually(lambda: processes(temporary) == [], "the end of every process")
    assert list(temporary.iterdir()) == []
    assert not [
        point for point in Path("/proc/self/mountinfo").read_text().split() if str(temporary) in point
    ]
    backing = Path("/sys/block").glob("loop*/loop/backing_file")
    assert not [path for path in backing if path.read_text().startswith(str(temporary))]
    assert files(repository) == before


def run_of(part: Path, temporary: Path) -> subprocess.Popen[str]:
    """A run of tests that aren't the repository's, as one of those that are."""
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "-c", str(REPOSITORY / "pyproject.toml")]
    return subprocess.Popen(
        [*command, f"--confcutdir={REPOSITORY}", "--rootdir", str(REPOSITORY), "-p", "tests.run", str(part)],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_an_interrupted_run_that_waits_is_ended_and_tells_for_what(temporary: Path, tmp_path: Path) -> None:
    part = tmp_path / "test_waits.py"
    part.write_text(
        "import pathlib, threading, time\n"
        "def a_client_that_flushes():\n"
        "    time.sleep(100_000)\n"
        "def test_waits():\n"
        "    thread = threading.Thread(target=a_client_that_flushes)\n"
        "    thread.start()\n"
        "    try:\n"
        f"        pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "        time.sleep(100_000)\n"
        "    finally:\n"
        "        thread.join()\n"
    )
    with run_of(part, temporary) as run:
        try:
            eventually((tmp_path / "begun").exists, "the test")
            run.send_signal(signal.SIGINT)
            output, _ = run.communicate(timeout=HANG_S)
        finally:
            run.kill()
    assert run.returncode == 2, output
    assert "interrupted 15 s ago, and still here" in output
    assert "in a_client_that_flushes" in output
    assert "in test_waits" in output
    eventually(lambda: list(temporary.iterdir()) == [], "the keeper's work")


def test_no_test_begins_after_one_that_was_interrupted_and_failed_of_it(
    temporary: Path, tmp_path: Path
) -> None:
    """As those in task groups do, whose error is a group."""
    part = tmp_path / "test_two.py"
    part.write_text(
        "import os, signal, time\n"
        "def test_one():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(100_000)\n"
        "    except KeyboardInterrupt as error:\n"
        "        raise BaseExceptionGroup('', [error]) from None\n"
        "def test_two():\n"
        "    pass\n"
    )
    with run_of(part, temporary) as run:
        output, _ = run.communicate(timeout=HANG_S)
    assert run.returncode == 2, output
    assert "1 failed in" in output


def test_what_hypothesis_remembers_is_not_in_the_checkout() -> None:
    assert storage_directory("constants").path.is_relative_to(cache_dir())


def test_a_process_is_known_by_its_mark_from_its_start_on(tmp_path: Path) -> None:
    """For some milliseconds the system doesn't tell its environment; a run that ended then left it behind."""
    for _ in range(500):
        with subprocess.Popen(["/bin/sleep", "1234"], env={keeper.MARK: str(tmp_path)}) as child:
            try:
                found = keeper.environment_of(Path("/proc", str(child.pid)))
                assert found == f"{keeper.MARK}={tmp_path}\0".encode()
            finally:
                child.kill()


def test_a_run_that_leaves_a_process_fails_and_names_it(temporary: Path) -> None:
    """The keeper ends it all the same."""
    part = temporary / "test_leaves.py"
    part.write_text(
        "import subprocess\n"
        "from tests import run\n"
        "run._LEFT_S = 0.1\n"  # for nothing that is about to end is there
        "def test_leaves():\n"
        "    subprocess.Popen(['sleep', '1234.5'], start_new_session=True)\n"
    )
    with run_of(part, temporary) as run:
        output, _ = run.communicate(timeout=HANG_S)
    assert run.returncode == 1, output
    assert "FAILED: the tests left processes behind" in output
    assert "sleep 1234.5" in output
    assert "1 passed" in output
    assert processes(temporary) == []
    assert [path.name for path in temporary.iterdir() if path.name != "__pycache__"] == [part.name]


def test_the_root_of_a_run_that_lost_its_keeper_is_removed_by_the_next_one(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not while its run is there, nor when it is somebody else's."""
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    running = keeper.Keeper()
    try:
        (running.root / "file").touch()
        abandoned = Path(tempfile.mkdtemp(prefix="penstock-tests-"))
        (abandoned / "folder").mkdir()
        (abandoned / "folder" / "file").touch()
        (abandoned / "folder").chmod(0)
        monkeypatch.setenv(keeper.MARK, str(abandoned))
        in_memory = keeper.in_memory()
        if in_memory is not None:
            (in_memory / "file").touch()
        another = Path(tempfile.mkdtemp(prefix="another-"))
        link = temporary / "penstock-tests-link"
        link.symlink_to(another)
        for path in (running.root, abandoned, another):
            os.utime(path, (0, 0))
        child = subprocess.Popen(["sleep", "1234"], env={keeper.MARK: str(abandoned)})
        try:
            keeper.remove_abandoned()
            assert child.wait(HANG_S) == -signal.SIGKILL
        finally:
            child.kill()
            child.wait()
        assert not abandoned.exists()
        assert in_memory is None or not in_memory.exists()
        assert another.is_dir()
        assert (running.root / "file").exists()
    finally:
        running.close()
    assert not running.root.exists()
