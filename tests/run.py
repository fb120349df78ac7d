"""What all tests need of the process that runs them; ``keeper.py`` and ``interrupted.py`` say how a run ends."""

from __future__ import annotations

import functools
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.configuration
import hypothesis.database
import pytest
from tests import fork_server
from tests.bytecode import lend_compiled
from tests.fetched import cache_dir
from tests.interrupted import Interruption
from tests.keeper import MARK, Keeper, has_room_in_memory, in_memory, marked, remove_abandoned

#: Python's own helpers (fork server, resource tracker) end with the process that they help.
_HELPERS = "from multiprocessing."
_LEFT_S = 10.0
#: Read by ``tests/depth.py``, which test modules import, in all processes of a run.
_DEPTH = "TESTS_DEPTH"
#: What a run sets in its environment, and gives back.
_SET = (MARK, "TMPDIR", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE", _DEPTH)
_left_out = pytest.StashKey[int]()
#: Tests of what is written past the page cache, synced and locked, of devices, and of what kills leave.
_ON_DISK = (
    "plugins/object_store_fsspec/tests/test_direct_writes.py",
    "plugins/object_store_fsspec/tests/test_fsspec_files.py",
    "plugins/wal_block/",
    "tests/conformance/test_on_devices.py",
    "tests/integration/test_block_device.py",
    "tests/integration/test_crash.py",
    "tests/unit/test_direct_io.py",
)
#: Files of many tests that take no time.
_SMALL = ("tests/unit/", "plugins/")
#: Where some files take seconds all the same: a worker that begins with one at the end would be the last.
_SOME_LONG = (
    "plugins/",
    "tests/unit/log/test_careless_producers.py",
    *(f"tests/unit/server/test_{name}.py" for name in ("portions", "sender", "server")),
    *(f"tests/unit/test_{name}.py" for name in ("distribution", "tidy")),
    *(f"tests/unit/wire/test_{name}.py" for name in ("codec_kio", "native")),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("depth", "how deep the tests of this repository go (tests/depth.py)")
    group.addoption(
        "--full", action="store_true", help="also what takes hours: more seeds, rounds and variants"
    )
    group.addoption("--depth", action="append", default=[], metavar="NAME=NUMBER", help="so many of this")


def pytest_configure(config: pytest.Config) -> None:
    """Prepare the process of the run, and each worker's."""
    interruption = Interruption()
    config.pluginmanager.register(interruption)
    config.add_cleanup(interruption.close)
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # tests go out in the order below
        config.pluginmanager.register(_Scheduler())
    if not hasattr(config, "workerinput"):
        remove_abandoned()
        keeper = Keeper()
        before = {name: os.environ.get(name) for name in _SET}, tempfile.tempdir

        def close() -> None:
            """The root is gone; a process may run tests again, as that of the conformance suite's mutants does."""
            keeper.close()
            environment, tempfile.tempdir = before
            for name, value in environment.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

        config.add_cleanup(close)
        os.environ[_DEPTH] = " ".join(["full"] * config.getoption("full") + config.getoption("depth"))
        is_told_where = "TMPDIR" in os.environ
        os.environ[MARK] = str(keeper.root)
        files = None if is_told_where or not has_room_in_memory() else in_memory()
        os.environ["TMPDIR"] = tempfile.tempdir = str(files or keeper.root)
        if sys.dont_write_bytecode and sys.pycache_prefix is None:
            # hundreds of processes would compile the same modules; the checkout stays as it is
            bytecode = (in_memory() or keeper.root) / "bytecode"
            lend_compiled(bytecode, [place for place in sys.path if Path(place).name == "site-packages"])
            os.environ["PYTHONPYCACHEPREFIX"] = str(bytecode)
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    from tests.depth import examples  # as deep as the options said

    hypothesis.configuration.set_hypothesis_home_dir(cache_dir() / "hypothesis")  # not in the checkout
    hypothesis.settings.register_profile(
        "busy",
        deadline=None,
        max_examples=examples(100),
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
        database=hypothesis.database.DirectoryBasedExampleDatabase(cache_dir() / "hypothesis"),
    )
    hypothesis.settings.load_profile("busy")


@pytest.fixture
def tmp_path(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """In memory, where there is room for all files of a run; but on a disk for tests of what a disk does."""
    memory = in_memory()
    if memory is None or not tmp_path.is_relative_to(memory) or not request.node.nodeid.startswith(_ON_DISK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=os.environ[MARK], ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def anyio_backend() -> str:
    """What runs ``async`` tests, where they say nothing else."""
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is there before the first test stays: the garbage collector needn't look at it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


class _OwnOrder(pytest.Dir):  # type: ignore[misc] # final, but there is no other that can be told its order
    """A folder that each worker goes through in its own order, so that hardly a module is compiled by two at once."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        found = list(super().collect())
        random.Random(f"{_worker(self.config)} {self.path}").shuffle(found)
        return found


@pytest.hookimpl(tryfirst=True)
def pytest_collect_directory(path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if not _worker(parent.config) or (path / "__init__.py").is_file():
        return None
    return _OwnOrder.from_parent(parent, path=path)


def _worker(config: pytest.Config) -> str:
    """Which worker of pytest-xdist this is; empty if it is none."""
    return str(getattr(config, "workerinput", {}).get("workerid", ""))


def pytest_report_header(config: pytest.Config) -> str:
    if config.getoption("full"):
        return "depth: full"
    return "depth: default, which repeats less than --full: fewer seeds, rounds, sizes and versions (tests/depth.py)"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long goes first, so that all workers end together; in a file everything stays as it is.

    But with ``TESTS_ORDER``, a seed: then all tests are shuffled, those of a file among themselves. What has the mark
    ``full`` is left out of the default run.
    """
    if not config.getoption("full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)
        config.stash[_left_out] = len(left_out)
    order = os.environ.get("TESTS_ORDER")
    if order:
        place = {item: random.Random(f"{order} {item.nodeid}").random() for item in items}
        files = {item.path: random.Random(f"{order} {item.path}").random() for item in items}
        items.sort(key=lambda item: (files[item.path], place[item]))
        return
    if _worker(config):
        items.sort(key=lambda item: item.path)  # each worker came upon them in its own order
    slow = {_unit(item) for item in items if item.get_closest_marker("slow")}
    items.sort(
        key=lambda item: (
            _unit(item) not in slow,
            item.nodeid.startswith(_SMALL),
            not item.nodeid.startswith(_SOME_LONG),
            _unit(item) == item.nodeid,  # after those that are one for a whole file
        )
    )


def _unit(item: pytest.Item) -> str:
    return unit_of(item.config.rootpath, item.nodeid)


def unit_of(root: Path, nodeid: str) -> str:
    """What one worker gets: the file, where tests are small or share something for the module; else the test."""
    file = nodeid.partition("::")[0]
    return file if _is_one(root, file) else nodeid


@functools.cache
def _is_one(root: Path, file: str) -> bool:
    path = root / file
    return file.startswith(_SMALL) or (
        path.is_file() and 'scope="module"' in path.read_text(encoding="utf-8")
    )


class _Scheduler:
    """Hands out tests for ``--dist loadfile``, the long ones one by one. Only where pytest-xdist is there."""

    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        if config.getoption("dist") != "loadfile":
            return None
        from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

        class Scheduling(LoadFileScheduling):  # type: ignore[misc]
            def _split_scope(self, nodeid: str) -> str:
                return unit_of(config.rootpath, nodeid)

        return Scheduling(config, log)

    def pytest_testnodedown(self, node: Any) -> None:
        """All workers have found the same tests."""
        node.config.stash[_left_out] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What a run leaves out is told, also by one whose workers have found it."""
    if count := config.stash.get(_left_out, 0):
        terminalreporter.write_line(f"{count} repeats were left out; --full runs them, too")


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """A run that leaves a process behind has failed, although the keeper is going to end it."""
    yield
    fork_server.close()
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_left_out, 0)
    root = os.environ[MARK]
    if session.exitstatus == pytest.ExitCode.INTERRUPTED or hasattr(session.config, "workerinput"):
        return
    deadline = time.monotonic() + _LEFT_S
    while left := [command for command in marked(Path(root)).values() if _HELPERS not in command]:
        if time.monotonic() > deadline:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            reporter = session.config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None:
                reporter.write_line("\nFAILED: the tests left processes behind:", red=True)
                for command in left:
                    reporter.write_line(f"  {command}")
            return
        time.sleep(0.1)
