"""Run the suite without a pytest of one's own."""

from __future__ import annotations

__all__ = ("run", "run_alone")

import gc
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from penstock.errors import ConfigError, PluginError
from penstock.spi.kinds import SERVICES
from penstock_conformance._catalogue import clause_files, clause_places
from penstock_conformance._report import ClauseResult, Report, check_places
from penstock_conformance._target import Target

_FOLDER = Path(__file__).parent


def run(
    target: Target,
    *,
    select: str = "",
    clauses: Sequence[str] = (),
    tracebacks: bool = True,
    report_path: Path | None = None,
    on_clause: Callable[[ClauseResult], None] | None = None,
) -> Report:
    """Put ``target`` through its clauses and return what came out. Blocks; call it from the main thread.

    ``select`` is a pytest ``-k`` expression over clause names. ``clauses`` are whole names of the only ones to try:
    no module without one of them is looked at. Without ``tracebacks`` a failed clause says only what was wrong, since
    finding the source of each frame can take longer than the clause. ``on_clause`` is called after each clause.
    Raises PluginError or ConfigError when the plugin can't be tried at all: unknown, unloadable, wrong settings,
    no clause selected, no place for the report or for data; and KeyError where ``clauses`` has one that the kind
    hasn't.
    """
    from penstock_conformance import plugin  # for others pytest loads it, which may rewrite its assertions

    registry = target.registry()
    target.info(registry)
    target.effective_settings(registry)
    check_places(target, report_path)
    arguments = _arguments(target, select, clauses, report_path)
    listener = _Listener(on_clause, tracebacks)
    # Only what the suite needs: plugins and settings of whatever project this runs in stay out.
    ours = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    with mock.patch.dict(os.environ, ours), _not_collected():
        for name in _TOLD_OF_CI:
            os.environ.pop(name, None)
        code = pytest.ExitCode(pytest.main(arguments, plugins=[plugin, listener]))
    if listener.refusal:
        raise ConfigError(listener.refusal)
    if listener.report is None or code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        reason = "no clause is selected" if code == pytest.ExitCode.NO_TESTS_COLLECTED else code.name
        raise PluginError(f"the conformance suite couldn't run: reason={reason} {listener.error}".rstrip())
    return listener.report


def run_alone(target: Target, clauses: Sequence[str]) -> Sequence[ClauseResult]:
    """What comes out of these clauses without a session of pytest, which takes longer to start than most of them.

    Nothing is left out by level, and a failed assertion says less than in a session. Blocks; call it from the main
    thread. Raises KeyError where the kind hasn't such a clause, and what ``run`` raises of plugins and settings.
    """
    from penstock_conformance import plugin

    places = clause_places(target.kind)
    report = Report(target, target.info(target.registry()))
    with _not_collected():
        return [
            plugin.run_alone(
                getattr(importlib.import_module(f"{__package__}.{places[name].stem}"), f"test_{name}"), report
            )
            for name in clauses
        ]


@contextmanager
def _not_collected() -> Iterator[None]:
    """What is there already isn't looked at: pytest collects garbage five times as it ends, and clauses look, too.

    Where somebody had frozen a heap before, it stays so: it can't be told from what is frozen here.
    """
    is_frozen = gc.get_freeze_count() > 0
    gc.freeze()
    try:
        yield
    finally:
        if not is_frozen:
            gc.unfreeze()


#: Where one of these is set, pytest tells differences in full, and takes minutes to find them in what clauses compare
#: (thousands of keys, megabytes): a clause would miss its deadline instead of failing.
_TOLD_OF_CI = ("CI", "BUILD_NUMBER")


#: Parts of pytest that clauses don't use: in each that is there, every run looks for hooks and fixtures.
_UNUSED = (
    *("cacheprovider", "doctest", "junitxml", "legacypath", "pastebin", "recwarn", "setuponly", "setupplan"),
    *("stepwise", "terminal", "unittest"),
)


def _arguments(target: Target, select: str, clauses: Sequence[str], report_path: Path | None) -> list[str]:
    places = clause_places(target.kind)
    chosen = [f"{places[name]}::test_{name}" for name in clauses] or map(str, clause_files(target.kind))
    arguments = [
        *(
            "-c",
            os.devnull,
            "--rootdir",
            str(_FOLDER),
            "--confcutdir",
            str(_FOLDER),
            "--import-mode=importlib",
        ),
        *(f"-pno:{name}" for name in _UNUSED),
        *chosen,
        f"--penstock-kind={target.kind}",
        f"--penstock-plugin={target.plugin}",
        *([f"--penstock-config={target.config}"] if target.config else ()),
        *(f"--penstock-{kind.replace('_', '-')}={getattr(target, kind)}" for kind in SERVICES),
        f"--penstock-rounds={target.rounds}",
        f"--penstock-seed={target.seed}",
        f"--penstock-deadline={target.deadline_s}",
    ]
    arguments += [f"--penstock-set={key}={value}" for key, value in target.settings.items()]
    arguments += [f"--penstock-plugins-dir={directory}" for directory in target.plugins_dirs]
    arguments += [f"--penstock-module={module}" for module in target.modules]
    arguments += [f"--penstock-level={level}" for level in target.levels]
    if target.work_dir:
        arguments.append(f"--penstock-work-dir={target.work_dir}")
    if report_path is not None:
        arguments.append(f"--penstock-report={report_path}")
    if select or clauses:
        # the report tells it, for whoever repeats the run
        arguments += ["-k", select or " or ".join(f"test_{name}" for name in clauses)]
    return arguments


class _Listener:
    """Picks up the report and passes each clause on."""

    def __init__(self, on_clause: Callable[[ClauseResult], None] | None, tracebacks: bool) -> None:
        self.report: Report | None = None
        self.error = ""
        #: Why the plugin can't be tried at all.
        self.refusal = ""
        self._on_clause = on_clause
        self._tracebacks = tracebacks
        self._told = 0

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        from penstock_conformance.plugin import report_of

        self.report = report_of(config)
        if not self._tracebacks:
            config.option.tbstyle = "no"  # it belongs to the terminal, which isn't here

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.error = str(report.longrepr)[-1000:]

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        if isinstance(excinfo.value, pytest.exit.Exception):
            self.refusal = str(excinfo.value)

    def pytest_internalerror(self, excrepr: object) -> None:
        self.error = str(excrepr)[-2000:]

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if self.report is None or self._on_clause is None:
            return
        for result in self.report.clauses[self._told :]:
            self._told += 1
            self._on_clause(result)
