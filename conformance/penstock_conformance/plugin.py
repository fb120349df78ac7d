"""The pytest side: options, one clause = one bounded coroutine, and the report.

Loaded on demand with ``-p penstock_conformance.plugin``; it isn't registered for every pytest run.
"""

from __future__ import annotations

__all__ = ("env",)

import functools
import inspect
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest

from penstock.errors import ConfigError, FullError, InvalidRequestError, PenstockError, UnavailableError
from penstock.spi.kinds import OBJECT_STORE, SERVICES
from penstock_conformance._catalogue import LEVELS
from penstock_conformance._clause import Clause, MissedDeadline, NotApplicable, Undecided, clause_of
from penstock_conformance._env import Env
from penstock_conformance._report import DEADLINE, UNDECIDED, ClauseResult, Report, check_places
from penstock_conformance._target import KINDS, STRATEGY, Target

if TYPE_CHECKING:
    from penstock_conformance._strategy import StrategyEnv

_TARGET = pytest.StashKey[Target]()
_REPORT = pytest.StashKey[Report]()
_RESULT = pytest.StashKey[ClauseResult]()

#: An unclaimed capability is only tried out, so it gets a part of the time.
_PROBE_SHARE = 0.1
#: A plugin that blocks the event loop, or shields itself, is interrupted this long after its deadline.
_GRACE_S = 3.0
#: The first opening may import libraries, and what is interrupted in that stays half imported: so much longer.
_IMPORT_S = 60.0
#: A smaller log may be full of what a clause appends at once, and one that takes smaller entries refuse it.
_CAPACITY_BYTES_MIN = 2**20
_ENTRY_BYTES_MIN = 2**14
#: In clauses of this level the suite lets media fail; others are begun so often where one fails by itself.
_FAULTS, _ATTEMPTS = 4, 3
#: How a clause begins to say what a process of the suite's has met.
_IN_A_PROCESS = "the child process failed: "
#: How a process of the suite's tells of that.
_MET_A_LIMIT = re.compile(r"^penstock\.errors\.(FullError|InvalidRequestError): ", re.MULTILINE)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("penstock", "Penstock plugin conformance")
    add = group.addoption
    add("--penstock-kind", choices=(*KINDS, STRATEGY), help="Kind of the plugin under test.")
    add("--penstock-plugin", metavar="NAME", help="Name of the plugin under test.")
    add(
        "--penstock-set", action="append", default=[], metavar="KEY=VALUE", help="One setting of that plugin."
    )
    add("--penstock-config", metavar="FILE", help="The configuration of a strategy.")
    add("--penstock-plugins-dir", action="append", default=[], metavar="DIR", help="Load all plugins in DIR.")
    add("--penstock-module", action="append", default=[], metavar="MODULE", help="Load a plugin module.")
    add("--penstock-level", action="append", type=int, choices=tuple(LEVELS), help="Only these levels.")
    for kind in SERVICES:
        words = kind.replace("_", " ")
        add(_option(kind), default="", metavar="NAME", help=f"Plugin that serves it as {words}.")
    add("--penstock-rounds", type=int, default=1, metavar="N", help="N times the races and crashes.")
    add("--penstock-seed", type=int, default=0, metavar="N", help="Seed of everything random.")
    add(
        "--penstock-deadline",
        type=float,
        default=20.0,
        metavar="S",
        help="Seconds per clause; thrice for races, crashes and faults.",
    )
    add("--penstock-report", metavar="FILE", help="Write the JSON report.")
    add("--penstock-work-dir", metavar="DIR", help="Where data directories are made.")


def _option(kind: str) -> str:
    return f"--penstock-{kind.replace('_', '-')}"


def parse_settings(items: list[str]) -> dict[str, str]:
    """``key=value`` texts as a mapping. Raises ValueError."""
    settings = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise ValueError(f"a setting is written key=value: got={item!r}")
        settings[key.strip()] = value.strip()
    return settings


def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    if not option.penstock_kind or not option.penstock_plugin:
        raise pytest.UsageError("say what to test: --penstock-kind=KIND --penstock-plugin=NAME")
    try:
        target = Target(
            kind=option.penstock_kind,
            plugin=option.penstock_plugin,
            config=option.penstock_config or "",
            settings=parse_settings(option.penstock_set),
            plugins_dirs=tuple(option.penstock_plugins_dir),
            modules=tuple(option.penstock_module),
            **{kind: config.getoption(_option(kind)) for kind in SERVICES},
            levels=tuple(sorted(set(option.penstock_level or LEVELS))),
            rounds=max(1, option.penstock_rounds),
            seed=option.penstock_seed,
            deadline_s=option.penstock_deadline,
            work_dir=option.penstock_work_dir or "",
        )
        registry = target.registry()
        info = target.info(registry)
        settings = target.effective_settings(registry)
        secrets = target.secrets(registry)
        check_places(target, Path(option.penstock_report) if option.penstock_report else None)
    except (PenstockError, ValueError) as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[_TARGET] = target
    config.stash[_REPORT] = Report(
        target, info, select=str(option.keyword or ""), settings=settings, secrets=secrets
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the clauses of the kind and the levels; tests that aren't the suite's are left alone."""
    target = config.stash[_TARGET]
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        kind = _kind(item)
        function = getattr(item, "function", None)
        unwanted = kind and (kind != target.kind or clause_of(function).level not in target.levels)
        (dropped if unwanted else kept).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


def _kind(item: pytest.Item) -> str:
    """The plugin kind that an item is a clause of; empty for foreign tests."""
    module = getattr(item, "module", None)
    if module is None or not str(module.__name__).rpartition(".")[2].startswith("test_"):
        return ""
    kind = getattr(module, "KIND", "")
    return kind if kind in (*KINDS, STRATEGY) else ""


@pytest.fixture
def env(request: pytest.FixtureRequest) -> Iterator[Env | StrategyEnv]:
    """The surroundings of one clause."""
    with _entered(request.config.stash[_TARGET], request.node.name) as surroundings:
        yield surroundings


@contextmanager
def _entered(target: Target, name: str) -> Iterator[Env | StrategyEnv]:
    """The surroundings of the clause ``name``, cleaned at the end."""
    with tempfile.TemporaryDirectory(
        prefix="penstock-conformance-", dir=target.work_dir or None, ignore_cleanup_errors=True
    ) as directory:
        surroundings = _surroundings(target, Path(directory), name)
        yield surroundings
        _run(surroundings.clean, target.deadline_s)


def _surroundings(target: Target, directory: Path, name: str) -> Env | StrategyEnv:
    if target.kind == STRATEGY:
        from penstock_conformance._strategy import StrategyEnv  # a whole broker: others do without

        return StrategyEnv(target, directory, name)
    return Env(target, directory, name)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object | None:
    if not _kind(pyfuncitem) or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    clause = clause_of(pyfuncitem.function)
    result = _new_result(pyfuncitem.name, pyfuncitem.function)
    pyfuncitem.stash[_RESULT] = result
    surroundings = cast("Env | StrategyEnv", pyfuncitem.funcargs["env"])
    started = time.monotonic()
    try:
        _run_clause(pyfuncitem.obj, surroundings, clause, result, pyfuncitem.config.stash[_REPORT])
    finally:
        result.duration_ms = round((time.monotonic() - started) * 1000, 1)
    if result.outcome not in ("pass", "unclaimed_passes"):
        pytest.skip(f"{result.outcome}: {result.detail}")
    return True


def run_alone(function: Any, report: Report) -> ClauseResult:
    """What comes out of a clause without a session of pytest, whose start takes longer than most clauses.

    Without one, nobody has rewritten its assertions: one without words of its own says only where it is.
    """
    result = _new_result(function.__name__, function)
    try:
        with _entered(report.target, function.__name__) as surroundings:
            _run_clause(function, surroundings, clause_of(function), result, report)
    except (KeyboardInterrupt, pytest.exit.Exception):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a broken plugin raises fails the clause
        result.outcome, result.detail = "fail", _said(error)
    return result


def _run_clause(
    function: Any, surroundings: Env | StrategyEnv, clause: Clause, result: ClauseResult, report: Report
) -> None:
    """Run one clause and say in ``result`` what came out; a broken clause raises."""
    deadline_s = result.deadline_s = surroundings.target.deadline_of(clause.level)
    try:
        capabilities = report.capabilities
        if capabilities is None:
            try:
                capabilities, report.location = _run(surroundings.look, deadline_s, grace_s=_IMPORT_S)
            except ConfigError as error:  # no clause could be tried
                pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)
            report.capabilities = capabilities
            report.capacity_bytes = getattr(surroundings, "capacity_bytes", 0)
        if clause.refuses and capabilities.get(clause.refuses):
            result.outcome, result.detail = "not_applicable", f"{clause.refuses} is claimed"
        elif clause.claims and not capabilities.get(clause.claims):
            _probe(function, surroundings, clause, result)
        else:
            _run_anew_after_outages(function, surroundings, clause, deadline_s)
            result.outcome = "pass"
    except NotApplicable as reason:
        result.outcome, result.detail = "not_applicable", str(reason)
    except (
        FullError,
        InvalidRequestError,
        AssertionError,
    ) as error:  # clauses keep within any log that isn't tiny
        if clause.claims == "bounded" or not _is_tiny(report) or not _met_a_limit(error):
            raise
        result.outcome = "not_applicable"
        result.detail = (
            "the log is too small for what is appended here, set a capacity of at least 1MiB, 16KiB an entry"
        )
    except Undecided as reason:
        result.outcome, result.detail = UNDECIDED, str(reason)
    except MissedDeadline as reason:
        step = surroundings.steps.last()
        result.outcome, result.detail = DEADLINE, f"{reason}{step and f'; the last step: {step}'}"


def _run_anew_after_outages(
    function: Any, surroundings: Env | StrategyEnv, clause: Clause, deadline_s: float
) -> None:
    """Run a clause. Every call of an object store may fail for now: a clause that breaks off by that is begun anew. A
    store that fails at the same request again means it.

    Raises Undecided if each attempt broke off, in another place each time.
    """
    may_fail = isinstance(surroundings, Env) and surroundings.target.kind == OBJECT_STORE.name
    if not may_fail or clause.level == _FAULTS:  # there the suite itself has it fail
        _run(functools.partial(function, surroundings), deadline_s)
        return
    assert isinstance(surroundings, Env)
    broken_off: set[int] = set()
    for number in range(_ATTEMPTS):
        place = surroundings.anew(number) if number else surroundings
        try:
            _run(functools.partial(function, place), deadline_s)
        except Exception as error:
            if not _is_outage(error) or place.requests in broken_off:
                raise
            if _IN_A_PROCESS not in str(error):  # of which nobody knows how far it came
                broken_off.add(place.requests)
            why = _first_line(error)
        else:
            return
        finally:
            if number:
                _run(place.clean, surroundings.target.deadline_s)
    raise Undecided(
        f"the store failed in each of {_ATTEMPTS} attempts, as it may, so nothing is known: {why}"
    )


def _is_outage(error: BaseException) -> bool:
    """Whether it is a store that fails for now, or a clause that says that it did."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_outage, error.exceptions))
    if isinstance(error, AssertionError):
        return "UnavailableError" in str(error)
    return isinstance(error, UnavailableError)


def _is_tiny(report: Report) -> bool:
    entry_bytes_max = (report.capabilities or {}).get("entry_bytes_max", _ENTRY_BYTES_MIN)
    return 0 < report.capacity_bytes < _CAPACITY_BYTES_MIN or entry_bytes_max < _ENTRY_BYTES_MIN


def _met_a_limit(error: Exception) -> bool:
    return not isinstance(error, AssertionError) or _MET_A_LIMIT.search(str(error)) is not None


def _probe(function: Any, surroundings: Env | StrategyEnv, clause: Clause, result: ClauseResult) -> None:
    """Try what isn't claimed: not having it is fine, having it is worth telling."""
    try:
        _run(functools.partial(function, surroundings), _PROBE_SHARE * surroundings.target.deadline_s)
    except NotApplicable:
        raise
    except Exception as error:  # noqa: BLE001 # whatever an unclaimed capability does is its own affair
        result.outcome = "unclaimed"
        result.detail = f"{clause.claims} isn't claimed ({_first_line(error)})"
    else:
        result.outcome = "unclaimed_passes"
        result.detail = f"{clause.claims} isn't claimed, but this clause passes"


def _run(function: Any, deadline_s: float, grace_s: float = _GRACE_S) -> Any:
    """Run a coroutine function with the deadline inside it, so that a plugin that hangs holds nobody up.

    Raises MissedDeadline.
    """

    async def bounded() -> Any:
        try:
            with anyio.fail_after(deadline_s):
                return await function()
        except TimeoutError as error:
            raise MissedDeadline(f"it didn't end within {deadline_s:g} s; more with --deadline") from error

    try:
        with _watchdog(deadline_s + grace_s):
            return anyio.run(bounded)
    except BaseExceptionGroup as group:
        error = _single(group)
        if isinstance(error, TimeoutError):
            raise MissedDeadline(f"a step of it didn't end within {deadline_s:g} s") from group
        raise error from group
    except _Stuck:
        raise MissedDeadline(
            f"it blocked the event loop, or couldn't be cancelled, for more than {deadline_s:g} s"
        ) from None


def _single(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error in a group that some task group made around it; a broken clause goes before its consequences."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(error)
    for kind in (NotApplicable, AssertionError, Undecided, TimeoutError):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0] if len(leaves) == 1 else group


class _Stuck(BaseException):
    """Raised by a signal in whatever the main thread is doing."""


@contextmanager
def _watchdog(limit_s: float) -> Iterator[None]:
    """Interrupt the main thread after ``limit_s`` and, should it get stuck again while it ends, every few seconds."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    main = threading.get_ident()
    over = threading.Event()

    def watch() -> None:
        timeout = limit_s
        while not over.wait(timeout):
            signal.pthread_kill(main, signal.SIGUSR2)
            timeout = _GRACE_S

    def interrupt(*_: object) -> None:
        if not over.is_set():
            raise _Stuck

    previous = signal.signal(signal.SIGUSR2, interrupt)
    thread = threading.Thread(target=watch, name="conformance-watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        signal.signal(signal.SIGUSR2, previous)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    outcome = yield
    if not _kind(item):
        return outcome
    result = item.stash.get(_RESULT, None)
    if outcome.failed:
        if result is None:
            result = item.stash[_RESULT] = _new_result(item.name, getattr(item, "function", None))
        result.outcome = "fail"
        result.detail = _said(call.excinfo.value) if call.excinfo is not None else ""
        result.traceback = outcome.longreprtext
    if outcome.when == "teardown" and result is not None:
        item.config.stash[_REPORT].add(result)
    return outcome


def _new_result(name: str, function: Any) -> ClauseResult:
    clause = clause_of(function)
    return ClauseResult(
        name=name.removeprefix("test_"),
        rule=" ".join((inspect.getdoc(function) or "").split()),
        level=clause.level,
        capability=clause.claims or clause.refuses,
    )


def _said(error: BaseException) -> str:
    """What was wrong; for an assertion without words, what it expected, as the clause says it."""
    if isinstance(error, BaseExceptionGroup):
        error = _single(error)
    text = _first_line(error)
    if not isinstance(error, AssertionError) or (str(error) and not text.startswith("assert ")):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    asserted = [frame.line for frame in frames if frame.line and frame.line.startswith("assert ")]
    if not asserted:
        return text
    return f"expected {asserted[-1].removeprefix('assert ')}, got {text.removeprefix('assert ')}"


def _first_line(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        error = _single(error)
    text = str(error).strip().partition("\n")[0]
    if isinstance(error, AssertionError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    report = session.config.stash.get(_REPORT, None)
    if report is None:
        return
    report.finish()
    path = session.config.option.penstock_report
    if path:
        try:
            Path(path).write_text(report.to_json())
        except OSError as error:
            raise pytest.exit.Exception(
                f"the report can't be written, {error.strerror}: path={path}", 2
            ) from error


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What pytest's own summary doesn't say: capabilities that could be claimed."""
    unclaimed = [result for result in config.stash[_REPORT].clauses if result.outcome == "unclaimed_passes"]
    if unclaimed:
        terminalreporter.section("unclaimed, but passes")
        for result in unclaimed:
            terminalreporter.line(f"{result.name}: {result.capability}")


def report_of(config: pytest.Config) -> Report | None:
    """The report of a session, for :func:`penstock_conformance.run`."""
    return config.stash.get(_REPORT, None)
