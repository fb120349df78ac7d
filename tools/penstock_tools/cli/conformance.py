"""Hold a plugin against the contract of its kind."""

from __future__ import annotations

__all__ = ("app",)

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.errors import ConfigError, PluginError
from penstock_tools.cli._app import PluginsDirOption, Setup

if TYPE_CHECKING:
    from types import ModuleType

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

_WORDS = {
    "pass": ("pass", "green"),
    "fail": ("FAIL", "bold red"),
    "deadline": ("out of time", "red"),
    "unclaimed": ("not claimed", "dim"),
    "unclaimed_passes": ("not claimed, but passes", "yellow"),
    "not_applicable": ("not applicable", "dim"),
}

_EXIT_CODES = {"fail": 1, "undecided": 3}


@app.command("run")
def run_suite(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="Kind of the plugin: wal, object_store, log_cache...")],
    plugin: Annotated[str, typer.Option("--plugin", metavar="NAME", help="Name of the plugin.")],
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="One setting of the plugin; {dir} stands for the clause's own directory. May be repeated.",
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as JSON.")] = None,
    level: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            max=4,
            help="Only this level: 1 semantics, 2 races, 3 crashes, 4 faults of the medium. May be repeated.",
        ),
    ] = None,
    select: Annotated[
        str, typer.Option("-k", metavar="EXPRESSION", help="Only clauses whose name fits, as in pytest.")
    ] = "",
    rounds: Annotated[int, typer.Option(min=1, help="So many times the races and crashes.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    deadline: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="Per clause; thrice for races, crashes and faults."),
    ] = 20.0,
    object_store: Annotated[
        str,
        typer.Option(metavar="NAME", help="Plugin that serves as object store instead of the suite's own."),
    ] = "",
    object_store_sets: Annotated[
        list[str] | None,
        typer.Option(
            "--object-store-set", metavar="KEY=VALUE", help="One setting of that plugin. May be repeated."
        ),
    ] = None,
    allocator: Annotated[
        str, typer.Option(metavar="NAME", help="Plugin that serves as allocator instead of the suite's own.")
    ] = "",
    work_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Make data directories there: a disk of its kind is the medium."),
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", help="Show the rule of each clause.")] = False,
    plugins_dir: PluginsDirOption = None,
    modules: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="MODULE", help="Load a plugin by name or module; may be repeated."),
    ] = None,
) -> None:
    """Put a plugin through every clause of its kind's contract.

    Exit code 0: all that was tried holds; 1: a clause failed; 3: undecided, since a clause ran out of time.
    """
    from rich.console import Console

    suite = _suite()
    if kind not in suite.KINDS:
        raise PluginError(f"no clauses for this kind, choose from {', '.join(suite.KINDS)}: kind={kind}")
    if object_store_sets and not object_store:
        raise ConfigError("--object-store-set needs --object-store, the plugin that it is a setting of")
    setup = Setup.of(context, plugins_dirs=plugins_dir, modules=modules)
    target = suite.Target(
        kind=kind,
        plugin=plugin,
        settings=_settings(sets or []),
        plugins_dirs=tuple(str(directory.resolve()) for directory in setup.plugins_dirs),
        modules=setup.modules,
        object_store=object_store,
        object_store_settings=_settings(object_store_sets or []),
        allocator=allocator,
        levels=tuple(sorted(set(level))) if level else suite.LEVELS,
        rounds=rounds,
        seed=seed,
        deadline_s=deadline,
        work_dir=str(work_dir.resolve()) if work_dir is not None else "",
    )
    console = Console(highlight=False)
    console.print(f"{kind} {plugin}: levels {', '.join(map(str, target.levels))}, seed {seed}")
    outcome = suite.run(
        target, select=select, report_path=report, on_clause=lambda result: _show(console, result, verbose)
    )
    _summarize(console, outcome, report)
    if not outcome.passed:
        raise typer.Exit(_EXIT_CODES[outcome.result])


@app.command("simulate")
def simulate_histories(
    wal: Annotated[
        str, typer.Option(metavar="NAME", help="The WAL: wal_s3, wal_block, wal_block_shared.")
    ] = "wal_s3",
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Replay this history only, and print what happens in it.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="COUNT", help="So many histories.")] = 100,
    first: Annotated[int, typer.Option(min=0, metavar="N", help="The first of them.")] = 0,
) -> None:
    """Simulate histories of a broker on a WAL: kills, takeovers, faults of the media, in simulated time.

    A seed gives one history, always the same. Exit code 1 if a promise was broken in one; its seed is printed.
    """
    from rich.console import Console

    _suite()
    simulation = importlib.import_module("penstock_conformance.simulation")
    if wal not in simulation.STRATEGIES:
        known = ", ".join(simulation.STRATEGIES)
        raise PluginError(f"this WAL can't be simulated, choose from {known}: wal={wal}")
    console = Console(highlight=False, markup=False)
    failures = 0
    chosen = range(first, first + seeds) if seed is None else [seed]
    for number in chosen:
        outcome = simulation.simulate(wal, number)
        if seed is not None:
            for line in outcome.trace:
                console.print(line, soft_wrap=True)
        if outcome.failure:
            failures += 1
            console.print(outcome.failure, soft_wrap=True)
            console.print(
                f"seed {number} breaks a promise; replay: "
                f"penstock conformance simulate --wal {wal} --seed {number}",
                soft_wrap=True,
            )
    console.print(f"{len(chosen) - failures} of {len(chosen)} histories on {wal} keep every promise")
    if failures:
        raise typer.Exit(1)


#: MiB/s, seconds of simulated time, bytes of an entry.
_COSTS = ((1, 120, 2**14), (10, 30, 2**16), (100, 6, 2**18))


@app.command("cost")
def show_cost() -> None:
    """Show what wal_s3 costs: requests for a GiB at several rates, requests of an idle hour, and what grows.

    In simulated time, on a store whose puts take 60 ms, sometimes far more. Exit code 1 if idling costs requests.
    """
    from rich.console import Console
    from rich.table import Table

    _suite()
    simulation = importlib.import_module("penstock_conformance.simulation")
    table = Table(title="wal_s3")
    for column in (
        "MiB/s",
        "requests per GiB",
        "puts",
        "p50 ms",
        "p99 ms",
        "requests of an idle hour",
        "tasks",
    ):
        table.add_column(column, justify="right")
    idle = 0
    for rate, seconds, entry_bytes in _COSTS:
        cost = simulation.measure_cost(rate, seconds=seconds, entry_bytes=entry_bytes)
        idle += cost.idle_requests
        table.add_row(
            *(str(rate), f"{cost.requests_per_gib:.0f}", str(cost.requests["put_if_absent"])),
            *(f"{cost.latency_ms_p50:.0f}", f"{cost.latency_ms_p99:.0f}"),
            *(str(cost.idle_requests), f"{cost.more_tasks:+d}"),
        )
    Console(highlight=False).print(table)
    if idle:
        raise typer.Exit(1)


def _suite() -> ModuleType:
    try:
        importlib.import_module("pytest")
        return importlib.import_module("penstock_conformance")
    except ModuleNotFoundError as error:
        raise PluginError(
            f"the conformance suite needs a module that isn't installed, pip install 'penstock[conformance]': "
            f"module={error.name}"
        ) from error


def _settings(sets: list[str]) -> dict[str, str]:
    settings = {}
    for item in sets:
        key, separator, value = item.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set takes key=value, a setting of the plugin under test: got={item!r}")
        settings[key.strip()] = value.strip()
    return settings


def _show(console: Any, result: Any, verbose: bool) -> None:
    """One line per clause as it ends; more only for a failure, or where somebody asked."""
    from rich.markup import escape

    word, style = _WORDS[result.outcome]
    duration = f"{result.duration_ms / 1000:.1f} s" if result.duration_ms >= 100 else ""
    name = result.name.replace("_", " ")
    console.print(f"  {result.level}  {name}  [{style}]{word}[/]  [dim]{duration}[/]", soft_wrap=True)
    if verbose or result.outcome in ("fail", "deadline"):
        console.print(f"       [dim]rule:[/] {escape(result.rule)}", soft_wrap=True)
    if result.detail and (verbose or result.outcome in ("fail", "deadline", "unclaimed_passes")):
        console.print(f"       {escape(result.detail)}", soft_wrap=True)


def _summarize(console: Any, outcome: Any, report: Path | None) -> None:
    from rich.table import Table

    info = outcome.info
    table = Table(show_header=True, title=f"{info.kind} {info.name} {info.version}, SPI {info.spi_version}")
    table.add_column("level")
    for word, _ in _WORDS.values():
        table.add_column(word, justify="right")
    for level in outcome.target.levels:
        counts = [
            sum(result.level == level and result.outcome == kind for result in outcome.clauses)
            for kind in _WORDS
        ]
        table.add_row(str(level), *map(str, counts))
    console.print(table)
    claimed = [name for name, value in (outcome.capabilities or {}).items() if value is True]
    console.print(f"claimed: {', '.join(claimed) or 'nothing optional'}; from {info.origin}", soft_wrap=True)
    console.print(f"{outcome.verdict}, {outcome.duration_s:.1f} s", soft_wrap=True)
    if report is not None:
        console.print(f"report: {report}", soft_wrap=True)
