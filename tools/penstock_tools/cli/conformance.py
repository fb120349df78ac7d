"""Hold a plugin against the contract of its kind."""

from __future__ import annotations

__all__ = ("app",)

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from penstock.errors import ConfigError, PluginError
from penstock_tools.cli._app import ConfigOption, PluginOption, PluginsDirOption, Setup

if TYPE_CHECKING:
    from types import ModuleType

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

_WORDS = {
    "pass": ("pass", "green"),
    "fail": ("FAIL", "bold red"),
    "deadline": ("out of time", "red"),
    "undecided": ("undecided", "red"),
    "unclaimed": ("not claimed", "dim"),
    "unclaimed_passes": ("not claimed, but passes", "yellow"),
    "not_applicable": ("not applicable", "dim"),
}

_EXIT_CODES = {"fail": 1, "undecided": 3}


SettingsOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting of the plugin; {dir} stands for the clause's own directory. May be repeated.",
    ),
]
ReportOption: TypeAlias = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write the report as JSON.")
]
LevelOption: TypeAlias = Annotated[
    list[int] | None,
    typer.Option(
        "--level",
        metavar="LEVEL",
        min=1,
        max=5,
        help="Only this level: 1 semantics, 2 races, 3 crashes, 4 faults of the medium, 5 cost. May be repeated.",
    ),
]
SelectOption: TypeAlias = Annotated[
    str, typer.Option("-k", metavar="EXPRESSION", help="Only clauses whose name fits, as in pytest.")
]
RoundsOption: TypeAlias = Annotated[
    int, typer.Option("--rounds", metavar="N", min=1, help="So many times the races and crashes.")
]
SeedOption: TypeAlias = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")]
DeadlineOption: TypeAlias = Annotated[
    float,
    typer.Option(
        "--deadline", min=0.1, metavar="SECONDS", help="Per clause; thrice for races, crashes and faults."
    ),
]
WorkDirOption: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--work-dir", metavar="DIR", help="Make data directories there: a disk of its kind is the medium."
    ),
]
VerboseOption: TypeAlias = Annotated[bool, typer.Option("-v", help="Show the rule of each clause.")]


@app.command("run")
def run_suite(
    context: typer.Context,
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="Kind of the plugin: wal, object_store, log_cache...")
    ],
    plugin: Annotated[str, typer.Option("--plugin", metavar="NAME", help="Name of the plugin.")],
    sets: SettingsOption = None,
    report: ReportOption = None,
    level: LevelOption = None,
    select: SelectOption = "",
    rounds: RoundsOption = 1,
    seed: SeedOption = 0,
    deadline: DeadlineOption = 20.0,
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
    work_dir: WorkDirOption = None,
    verbose: VerboseOption = False,
    plugins_dir: PluginsDirOption = None,
    modules: Annotated[
        list[str] | None,
        typer.Option("-p", metavar="MODULE", help="Load a plugin by name or module; may be repeated."),
    ] = None,
) -> None:
    """Put a plugin through every clause of its kind's contract.

    Exit code 0: all that was tried holds; 1: a clause failed; 2: it can't be tried as it is asked for;
    3: undecided, since a clause ran out of time.
    """
    suite = _suite()
    if kind not in suite.KINDS:
        advice = f"choose from {', '.join(suite.KINDS)}"
        if kind == suite.STRATEGY:
            advice = "see penstock conformance strategy"
        raise PluginError(f"no clauses for this kind, {advice}: kind={kind}")
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
    _end(_run(target, select, report, verbose))


@app.command("strategy")
def run_strategy(
    context: typer.Context,
    config: ConfigOption = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Set one configuration key; {dir} stands for the clause's own directory. May be repeated.",
        ),
    ] = None,
    report: ReportOption = None,
    level: LevelOption = None,
    select: SelectOption = "",
    rounds: RoundsOption = 1,
    seed: SeedOption = 0,
    deadline: DeadlineOption = 60.0,
    work_dir: WorkDirOption = None,
    verbose: VerboseOption = False,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
) -> None:
    """Put a whole broker, on the plugins that a configuration selects, through what its clients rely on.

    A real client produces, fetches and commits; brokers are killed, stopped, and have their object store taken away.
    Each clause has a data directory and keys of its own. Exit codes as those of run.
    """
    suite = _suite("confluent_kafka")
    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    path = setup.config_path
    target = suite.Target(
        kind=suite.STRATEGY,
        plugin=path.stem if path is not None else "default",
        config=str(path.resolve()) if path is not None else "",
        settings=_settings(list(setup.sets)),
        plugins_dirs=tuple(str(directory.resolve()) for directory in setup.plugins_dirs),
        modules=setup.modules,
        levels=tuple(sorted(set(level))) if level else suite.LEVELS,
        rounds=rounds,
        seed=seed,
        deadline_s=deadline,
        work_dir=str(work_dir.resolve()) if work_dir is not None else "",
    )
    _end(_run(target, select, report, verbose))


@app.command("repeat")
def repeat_run(
    path: Annotated[Path, typer.Argument(metavar="REPORT", help="A report that was written with --report.")],
    sets: SettingsOption = None,
    report: ReportOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Do again what a report says was done, and compare what comes out.

    Settings that the report masks, since they are secret, are given again with --set. Exit code 0: it conforms, and
    every clause ended as in the report; 1: not; 3: undecided, since a clause ran out of time.
    """
    suite = _suite()
    document = _read_report(path)
    told = document["target"]
    told["settings"] |= _settings(sets or [])
    settings = told["settings"] | told.get("object_store_settings", {})
    masked = sorted(key for key, value in settings.items() if "***" in value)
    if masked:
        raise ConfigError(
            f"the report doesn't tell secrets, give these again with --set: keys={', '.join(masked)} path={path}"
        )
    outcome = _run(suite.Target.from_json(json.dumps(told)), document["selection"]["select"], report, verbose)
    differences = _differences(document, json.loads(outcome.to_json()))
    for difference in differences:
        typer.echo(f"not as reported: {difference}")
    if outcome.passed and _outcomes(document) != _outcomes(json.loads(outcome.to_json())):
        raise typer.Exit(1)
    _end(outcome)


def _read_report(path: Path) -> Any:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"the report can't be read: path={path} reason={error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("target"), dict):
        raise ConfigError(f"this isn't a report that can be repeated, write one with --report: path={path}")
    return document


def _outcomes(report: Any) -> dict[str, str]:
    return {clause["name"]: clause["outcome"] for clause in report["clauses"]}


def _differences(before: Any, now: Any) -> list[str]:
    """What is otherwise than in the report: first what might explain it, then the outcomes."""
    found = []
    for name in ("plugin", "versions", "machine", "effective_settings"):
        for key in sorted({*before.get(name, {}), *now[name]}):
            then, today = before.get(name, {}).get(key), now[name].get(key)
            if then != today:
                found.append(f"{name} {key}: {then} then, {today} now")
    outcomes = _outcomes(before), _outcomes(now)
    for clause in sorted({*outcomes[0], *outcomes[1]}):
        then, today = (each.get(clause, "not tried") for each in outcomes)
        if then != today:
            found.append(f"{clause}: {then} then, {today} now")
    return found


def _run(target: Any, select: str, report: Path | None, verbose: bool) -> Any:
    from rich.console import Console

    console = Console(highlight=False)
    levels = ", ".join(map(str, target.levels))
    console.print(f"{target.kind} {target.plugin}: levels {levels}, seed {target.seed}")
    outcome = _suite().run(
        target, select=select, report_path=report, on_clause=lambda result: _show(console, result, verbose)
    )
    _summarize(console, outcome, report)
    return outcome


def _end(outcome: Any) -> None:
    if not outcome.passed:
        raise typer.Exit(_EXIT_CODES[outcome.result])


@app.command("simulate")
def simulate_histories(
    wal: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The WAL: wal_s3, wal_block, wal_block_shared, wal_s3express_replicated."
        ),
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


def _suite(*modules: str) -> ModuleType:
    try:
        for module in ("pytest", *modules):
            importlib.import_module(module)
        return importlib.import_module("penstock_conformance")
    except ModuleNotFoundError as error:
        extras = "conformance,bench" if modules else "conformance"
        raise PluginError(
            f"the conformance suite needs a module that isn't installed, pip install 'penstock[{extras}]': "
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
    if verbose or result.outcome in ("fail", "deadline", "undecided"):
        console.print(f"       [dim]rule:[/] {escape(result.rule)}", soft_wrap=True)
    if result.detail and (verbose or result.outcome in ("fail", "deadline", "undecided", "unclaimed_passes")):
        console.print(f"       {escape(result.detail)}", soft_wrap=True)


def _summarize(console: Any, outcome: Any, report: Path | None) -> None:
    from rich.markup import escape
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
        if any(counts):  # not every kind has clauses of every level
            table.add_row(str(level), *map(str, counts))
    console.print(table)
    idle: Counter[str] = Counter(
        result.detail for result in outcome.clauses if result.outcome == "not_applicable" and not result.moot
    )
    for reason, count in idle.most_common():
        noun = "clause" if count == 1 else "clauses"
        console.print(f"{count} {noun} not applicable: {escape(reason)}", soft_wrap=True)
    claimed = [name for name, value in (outcome.capabilities or {}).items() if value is True]
    console.print(f"claimed: {', '.join(claimed) or 'nothing optional'}; from {info.origin}", soft_wrap=True)
    console.print(f"{outcome.verdict}, {outcome.duration_s:.1f} s", soft_wrap=True)
    if report is not None:
        console.print(f"report: {report}", soft_wrap=True)
