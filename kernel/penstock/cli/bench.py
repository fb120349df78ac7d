"""Run workloads in the style of the OpenMessaging Benchmark against a broker, compare runs, measure the budgets."""

from __future__ import annotations

import importlib.util
import json
import re
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from penstock.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup
from penstock.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from penstock.bench.workload import Workload

__all__ = ("app",)

_DEFAULT = "run"


class _WorkloadsOrCommand(TyperGroup):
    """``penstock bench FILE...`` is short for ``penstock bench run FILE...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h"):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, cls=_WorkloadsOrCommand)

_OutDir = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Write JSON and HTML into this directory.")
]
_WorkDir = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="Directory for the broker's data; default: a temporary one."),
]
_JsonPath = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures here.")]


@app.callback()
def _group() -> None:
    """Run workloads in the style of the OpenMessaging Benchmark, compare runs, measure the budgets.

    penstock bench WORKLOAD.yaml... is short for penstock bench run WORKLOAD.yaml...
    """


@app.command(_DEFAULT)
def run_workloads(
    context: typer.Context,
    workloads: Annotated[list[Path], typer.Argument(metavar="WORKLOAD.yaml...", show_default=False)],
    bootstrap_server: Annotated[
        str | None,
        typer.Option("--bootstrap-server", metavar="HOST:PORT", help="Use this broker; default: start one."),
    ] = None,
    driver: Annotated[
        Path | None,
        typer.Option("--driver", metavar="FILE", help="Driver file in place of the workload's own."),
    ] = None,
    duration: Annotated[
        str | None, typer.Option("--duration", help="In place of testDurationMinutes, like 30s or 5m.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="LABEL", help="What to call this run.")
    ] = None,
    out: _OutDir = Path("bench-results"),
    directory: _WorkDir = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
) -> None:
    """Run workloads one after the other; write a JSON file for each and one HTML page.

    The clients are librdkafka in processes of their own. Without --bootstrap-server, and without bootstrap.servers in
    the driver, each workload gets a new broker with the configuration of -c and --set and its data in a temporary
    directory. Exit code 1 when an acknowledged message was lost.
    """
    _need_extra()
    from penstock.bench.page import page
    from penstock.bench.workload import load_driver, load_workload

    loaded = [load_workload(path) for path in workloads]
    if driver is not None:
        loaded = [replace(workload, driver=load_driver(driver)) for workload in loaded]
    if duration is not None:
        loaded = [workload.lasting(_seconds(duration)) for workload in loaded]
    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    began = datetime.now(UTC)
    out.mkdir(parents=True, exist_ok=True)
    results = []
    for workload in loaded:
        result = _run_one(workload, bootstrap_server, setup, name, directory)
        path = _new_path(out, f"{name or workload.name}-{began:%Y%m%d-%H%M%S}", ".json")
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        typer.echo(f"{_summary(result)}\nwrote {path}")
        results.append(result)
    title = name or ", ".join(dict.fromkeys(workload.name for workload in loaded))
    html = _new_path(out, f"{title}-{began:%Y%m%d-%H%M%S}", ".html")
    html.write_text(page(results, title), encoding="utf-8")
    typer.echo(f"wrote {html}")
    if any(result["account"]["lost"] for result in results):
        typer.echo("acknowledged messages were lost, see account in the JSON file", err=True)
        raise typer.Exit(1)


def _run_one(
    workload: Workload, bootstrap_server: str | None, setup: Setup, label: str | None, directory: Path | None
) -> dict[str, Any]:
    from rich.console import Console

    from penstock.bench.progress import Progress
    from penstock.bench.run import Run
    from penstock.bench.server import BrokerProcess, machine_facts

    with ExitStack() as stack:
        place = bootstrap_server or workload.driver.commonConfig.get("bootstrap.servers")
        broker = None
        facts: dict[str, Any] = {"label": label}
        if place is None:
            data = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-bench-", dir=directory))
            )
            broker = stack.enter_context(
                BrokerProcess(data, setup.sets, setup.config_path, _plugin_arguments(setup))
            )
            place = broker.bootstrap_servers
            facts |= {
                "machine": machine_facts(data),
                "broker": {"started": list(setup.sets), "says": broker.banner},
            }
        else:
            facts |= {"machine": machine_facts(), "broker": {"bootstrapServers": place}}
        progress = stack.enter_context(Progress(workload.name, Console(stderr=True)))
        run = Run(workload, place, broker=broker, on_sample=progress.sample, on_phase=progress.phase)
        return run.run(facts)


def _plugin_arguments(setup: Setup) -> list[str]:
    found: list[str] = []
    for folder in setup.plugins_dirs:
        found += ["--plugins-dir", str(folder)]
    for module in setup.modules:
        found += ["--plugin", module]
    return found


def _summary(result: dict[str, Any]) -> str:
    def mean(key: str) -> float:
        values = [value for value in result[key] if value is not None]
        return sum(values) / len(values) if values else 0.0

    lines = [f"{result['workload']}"]
    lines.append(f"  published    {mean('publishRate'):,.0f} messages/s, {mean('publishMB'):,.1f} MB/s")
    lines.append(f"  consumed     {mean('consumeRate'):,.0f} messages/s, {mean('consumeMB'):,.1f} MB/s")
    for label, key in (("publish", "PublishLatency"), ("end to end", "EndToEndLatency")):
        figures = [
            f"{shown} {result[f'aggregated{key}{suffix}']:.2f}"
            for shown, suffix in (("p50", "50pct"), ("p99", "99pct"), ("p99.9", "999pct"), ("max", "Max"))
        ]
        lines.append(f"  {label:<12} {', '.join(figures)} ms")
    if result["broker"].get("cpuSeconds") is not None:
        lines.append(
            f"  broker       {mean('brokerCpu'):.2f} processors busy, "
            f"{result['broker']['residentMaxMB']:.0f} MB resident at most"
        )
    if drained := result.get("backlogPhase"):
        lines.append(
            f"  backlog      {drained['messages']:,} messages built in {drained['buildSeconds']} s, "
            f"drained in {drained['drainSeconds']} s at {drained['drainMB']:,.0f} MB/s"
        )
    lines.append(
        "  account      " + ", ".join(f"{key} {count:,}" for key, count in result["account"].items())
    )
    return "\n".join(lines)


@app.command("compare")
def compare_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN.json...", show_default=False)],
    out: Annotated[Path, typer.Option("--output", "-o", metavar="PAGE.html", help="The page to write.")],
    title: Annotated[str, typer.Option("--title", help="Its title.")] = "Runs side by side",
) -> None:
    """Lay runs side by side on one HTML page; results of the OpenMessaging Benchmark may be among them."""
    from penstock.bench.page import page
    from penstock.bench.results import load_result

    out.write_text(page([load_result(path) for path in runs], title), encoding="utf-8")
    typer.echo(f"wrote {out}")


def _need_extra() -> None:
    for module in ("confluent_kafka", "yaml"):
        if importlib.util.find_spec(module) is None:
            raise PluginError(
                f"the benchmark's clients aren't installed: pip install 'penstock[bench]', missing={module}"
            )


def _seconds(text: str) -> float:
    from penstock.units import parse_duration_ms

    try:
        seconds = parse_duration_ms(text) / 1000
    except ValueError as error:
        raise ConfigError(f"--duration: {error}") from error
    if seconds <= 0:
        raise ConfigError(f"--duration must be more than nothing: value={text!r}")
    return seconds


def _new_path(directory: Path, name: str, suffix: str) -> Path:
    """A file that isn't there yet, its name made of ``name``."""
    stem = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "run"
    path = directory / f"{stem}{suffix}"
    number = 1
    while path.exists():
        number += 1
        path = directory / f"{stem}-{number}{suffix}"
    return path
