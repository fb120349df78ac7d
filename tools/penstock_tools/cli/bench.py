"""Run workloads in the style of the OpenMessaging Benchmark against a broker, compare runs, measure the budgets."""

from __future__ import annotations

__all__ = ("app",)

import importlib.util
import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from penstock.errors import ConfigError, PluginError
from penstock_tools.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup

if TYPE_CHECKING:
    from penstock_tools.bench.workload import Workload

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


def _must_be_new(path: Path | None) -> Path | None:
    """Asked before anything is measured."""
    if path is not None:
        if os.path.lexists(path):
            raise ConfigError(f"file is there already, it is left as it is: path={path}")
        if not path.parent.is_dir():
            raise ConfigError(f"file can't be written, there is no such directory: path={path.parent}")
    return path


_JsonPath = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the figures here, a new file.", callback=_must_be_new),
]


@app.callback()
def _group() -> None:
    """Run workloads in the style of the OpenMessaging Benchmark, compare runs, measure the budgets.

    penstock bench WORKLOAD.yaml... is short for penstock bench run WORKLOAD.yaml...
    """


@app.command(_DEFAULT)
def run_workloads(
    context: typer.Context,
    workloads: Annotated[list[Path], typer.Argument(metavar="WORKLOAD.yaml", show_default=False)],
    bootstrap_server: Annotated[
        str | None,
        typer.Option("--bootstrap-server", metavar="HOST:PORT", help="Use this broker; default: start one."),
    ] = None,
    driver: Annotated[
        Path | None,
        typer.Option("--driver", metavar="FILE", help="Driver file in place of the workload's own."),
    ] = None,
    duration: Annotated[
        str | None,
        typer.Option(
            "--duration", metavar="DURATION", help="In place of testDurationMinutes, like 30s or 5m."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="LABEL", help="What to call this run.")
    ] = None,
    out: _OutDir = Path("bench/results"),
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
    from penstock_tools.bench.page import page
    from penstock_tools.bench.results import summary
    from penstock_tools.bench.workload import load_driver, load_workload

    loaded = [load_workload(path) for path in workloads]
    if driver is not None:
        loaded = [replace(workload, driver=load_driver(driver)) for workload in loaded]
    if duration is not None:
        loaded = [workload.lasting(_seconds(duration)) for workload in loaded]
    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    began = datetime.now(UTC)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out can't be made, {error.strerror}: path={out}") from error
    results = []
    for workload in loaded:
        result = _run_one(workload, bootstrap_server, setup, name, directory)
        path = _new_path(out, f"{name or workload.name}-{began:%Y%m%d-%H%M%S}", ".json")
        _write_new(path, json.dumps(result, indent=1) + "\n")
        typer.echo(f"{summary(result)}\nwrote {path}")
        results.append(result)
    title = name or ", ".join(dict.fromkeys(workload.name for workload in loaded))
    stem = name or (loaded[0].name if len(loaded) == 1 else f"{len(loaded)}-workloads")
    html = _new_path(out, f"{stem}-{began:%Y%m%d-%H%M%S}", ".html")
    _write_new(html, page(results, title))
    typer.echo(f"wrote {html}")
    if any(result["account"]["lost"] for result in results):
        typer.echo("acknowledged messages were lost, see account in the JSON file", err=True)
        raise typer.Exit(1)


def _run_one(
    workload: Workload, bootstrap_server: str | None, setup: Setup, label: str | None, directory: Path | None
) -> dict[str, Any]:
    from rich.console import Console

    from penstock_tools.bench.progress import Progress
    from penstock_tools.bench.run import Run
    from penstock_tools.bench.server import BrokerProcess, machine_facts

    with _stoppable(), ExitStack() as stack:
        place = bootstrap_server or workload.driver.commonConfig.get("bootstrap.servers")
        broker = None
        facts: dict[str, Any] = {"label": label}
        if place is None:
            data = stack.enter_context(_data_directory("bench", directory))
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


@app.command("compare")
def compare_runs(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN.json", show_default=False)],
    out: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PAGE.html", help="The page to write.", callback=_must_be_new),
    ],
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="Its title.")] = "Runs side by side",
) -> None:
    """Lay runs side by side on one HTML page; results of the OpenMessaging Benchmark may be among them."""
    from penstock_tools.bench.page import page
    from penstock_tools.bench.results import load_result

    _write_new(out, page([load_result(path) for path in runs], title))
    typer.echo(f"wrote {out}")


@app.command("floor")
def compare_with_floor(
    context: typer.Context,
    seconds: Annotated[float, typer.Option("--seconds", metavar="SECONDS", help="Length of one run.")] = 4.0,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Runs of each server and case.")
    ] = 3,
    only: Annotated[
        str | None, typer.Option("--only", metavar="TEXT", help="Only cases whose name has this.")
    ] = None,
    directory: _WorkDir = None,
    json_path: _JsonPath = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
) -> None:
    """Print Penstock / floor for requests of 200 KiB, 16 KiB and 1 KiB, and p50 and p99 at depth 1.

    The floor is a bare server that only receives, checks the CRC and syncs to the same disk; a second one writes
    objects beside it too, as a broker with objects in files must. All take turns.

    A log in an object store is measured on one that isn't the limit by -p penstock_tools.bench.stub_store --set
    wal.plugin=wal_s3 --set object_store.plugin=stub.
    """
    from penstock_tools.bench.budgets import of_floor
    from penstock_tools.bench.floor import compare

    settings, setup = _sets(context, sets), Setup.of(context, None, sets, plugins_dir, plugin)
    with _scratch("floor", directory) as folder:
        rows = compare(folder, seconds, rounds, settings, only, _plugin_arguments(setup))
        if verdicts := of_floor(rows):
            typer.echo(verdicts)
        _write_json(json_path, {"machine": _machine(folder), "rows": rows})


@app.command("start")
def start_times(
    context: typer.Context,
    rounds: Annotated[
        int, typer.Option("--rounds", metavar="N", min=1, help="Starts of each kind; the median counts.")
    ] = 5,
    directory: _WorkDir = None,
    json_path: _JsonPath = None,
    sets: SetOption = None,
) -> None:
    """Measure import, start and first acknowledgement of a broker in a fresh process, on new and on old data."""
    from penstock_tools.bench.start import measure_starts, report

    with _scratch("start", directory) as folder:
        found = measure_starts(folder, rounds, _sets(context, sets))
        typer.echo(report(found))
        plain = {kind: [asdict(start) for start in starts] for kind, starts in found.items()}
        _write_json(json_path, {"machine": _machine(folder), **plain})


@app.command("cold-reads")
def cold_reads(
    context: typer.Context,
    size: Annotated[str, typer.Option("--bytes", metavar="SIZE", help="How much old data.")] = "1GiB",
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="SECONDS", help="Length of one window.")
    ] = 3.0,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Windows of each kind.")] = 5,
    rate: Annotated[float, typer.Option("--rate", metavar="N", help="Messages of 1 KiB a second.")] = 1000.0,
    read_rate: Annotated[
        str, typer.Option("--read-rate", metavar="SIZE", help="Bytes a second of the reader; 0: all it can.")
    ] = "150MiB",
    realtime: Annotated[
        bool, typer.Option("--realtime", help="All at real-time priority, the reader last; root may do that.")
    ] = False,
    directory: _WorkDir = None,
    json_path: _JsonPath = None,
    sets: SetOption = None,
) -> None:
    """Measure p50 and p99 of producing with and without a consumer that catches up on old data, in turn, in one run.

    A bare server takes turns with the broker: what the reader does to its latency is the floor.
    """
    _need_extra()
    from penstock_tools.bench.cold_reads import measure_cold_reads, report

    settings = _sets(context, sets)
    with _scratch("cold", directory) as folder:
        found = measure_cold_reads(
            folder,
            old_bytes=_bytes(size),
            seconds=seconds,
            rounds=rounds,
            rate=rate,
            read_bytes_per_s=_bytes(read_rate),
            realtime=realtime,
            sets=settings,
        )
        typer.echo(report(found))
        _write_json(json_path, {"machine": _machine(folder), **asdict(found), "ratio": found.ratio})


@app.command("wal-latency")
def wal_latency(
    context: typer.Context,
    wal: Annotated[
        str, typer.Option("--wal", metavar="PLUGIN", help="wal_s3, or wal_s3express_replicated.")
    ] = "wal_s3",
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="SECONDS", help="Length of each load.")
    ] = 10.0,
    idle_s: Annotated[
        float, typer.Option("--idle", metavar="SECONDS", help="Seconds without appends behind each load.")
    ] = 2.0,
    p50_ms: Annotated[
        float, typer.Option("--put-p50-ms", metavar="MS", help="Median of the store's puts.")
    ] = 60.0,
    p99_ms: Annotated[
        float, typer.Option("--put-p99-ms", metavar="MS", help="p99 of the store's puts.")
    ] = 200.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Of the delays.")] = 1,
    proxy_to: Annotated[
        str | None,
        typer.Option(
            "--proxy-to", metavar="URL", help="An S3 server: a proxy in front of it delays, not this process."
        ),
    ] = None,
    directory: _WorkDir = None,
    json_path: _JsonPath = None,
    plot_path: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Write an SVG here, a new file.", callback=_must_be_new),
    ] = None,
    sets: SetOption = None,
) -> None:
    """Measure how soon a log in the object store acknowledges, and its requests for a GiB, if the store answers late.

    Each put takes as long as a cloud's would. The store behind is memory, or that of --set object_store.url=...
    """
    import anyio

    from penstock_tools.bench.wal_latency import LOADS, REPLICATED_OVER_MS, measure_wal, plot, report

    settings = _sets(context, sets)
    with _scratch("wal-latency", directory) as folder:

        async def measure() -> Any:
            return await measure_wal(
                folder,
                wal=wal,
                seconds=seconds,
                idle_s=idle_s,
                p50_ms=p50_ms,
                p99_ms=p99_ms,
                seed=seed,
                sets=settings,
                proxy_to=proxy_to,
                told=lambda one: typer.echo(f"{one.load.name} measured", err=True),
            )

        found = anyio.run(measure)
        alone = {LOADS[0].name: REPLICATED_OVER_MS} if wal == "wal_s3express_replicated" else None
        typer.echo(report(found, alone))
        if plot_path is not None:
            _write_new(plot_path, plot(found, f"{wal}: acknowledgements and puts"))
        rows = [
            {
                "load": one.load.name,
                "ack_ms_p50": one.ack(0.5),
                "ack_ms_p99": one.ack(0.99),
                "over_ms": one.over_ms,
                "requests_per_gib": one.requests_per_gib,
                "idle_requests": one.idle_requests,
                "misses": one.misses((alone or {}).get(one.load.name)),
            }
            for one in found
        ]
        _write_json(json_path, {"machine": _machine(folder), "wal": wal, "rows": rows})


@app.command("uploads")
def uploads(
    context: typer.Context,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="SECONDS", help="Length of one window.")
    ] = 6.0,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Windows of each kind.")] = 5,
    rate: Annotated[
        float, typer.Option("--rate", metavar="N", help="Messages of 1 KiB a second.")
    ] = 20_000.0,
    upload_bytes: Annotated[
        str, typer.Option("--upload-bytes", metavar="SIZE", help="Size of a block that is uploaded.")
    ] = "64MiB",
    directory: _WorkDir = None,
    json_path: _JsonPath = None,
    sets: SetOption = None,
) -> None:
    """Measure what uploads do to the latency of producing: two brokers take turns, one of which uploads nothing."""
    _need_extra()
    from penstock_tools.bench.uploads import measure_uploads, report

    settings = _sets(context, sets)
    with _scratch("uploads", directory) as folder:
        found = measure_uploads(
            folder,
            seconds=seconds,
            rounds=rounds,
            rate=rate,
            upload_bytes=_bytes(upload_bytes),
            sets=settings,
        )
        typer.echo(report(found))
        _write_json(json_path, {"machine": _machine(folder), **asdict(found), "ratio": found.ratio})


@app.command("lake")
def lake(
    context: typer.Context,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="SECONDS", help="Length of one window.")
    ] = 8.0,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Windows of each kind.")] = 5,
    rate: Annotated[
        float, typer.Option("--rate", metavar="N", help="Messages of 1 KiB a second.")
    ] = 20_000.0,
    interval_s: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, help="Seconds between commits.")
    ] = 2.0,
    json_values: Annotated[
        bool, typer.Option("--json-values", help="Produce JSON, and make columns of it.")
    ] = False,
    directory: _WorkDir = None,
    json_path: _JsonPath = None,
    sets: SetOption = None,
) -> None:
    """Measure what a table costs its topic's producers, in turn with a topic without one, and how late rows are.

    Beside it stands what a process costs them that takes as much of the machine and knows nothing of the broker.
    """
    _need_extra()
    from penstock_tools.bench.lake import measure_lake, report

    settings = _sets(context, sets)
    with _scratch("lake", directory) as folder:
        found = measure_lake(
            folder,
            seconds=seconds,
            rounds=rounds,
            rate=rate,
            interval_s=interval_s,
            json_values=json_values,
            sets=settings,
        )
        typer.echo(report(found))
        _write_json(json_path, {"machine": _machine(folder), **asdict(found), "ratio": found.ratio})


@app.command("budgets")
def budgets(
    context: typer.Context,
    directory: _WorkDir = None,
    sets: SetOption = None,
) -> None:
    """Measure and print the budgets of one broker: floor, start and cold-reads in a row, about four minutes."""
    compare_with_floor(context, directory=directory, sets=sets)
    typer.echo()
    start_times(context, directory=directory, sets=sets)
    typer.echo()
    cold_reads(context, directory=directory, sets=sets)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends a measurement like Ctrl-C: the broker and the clients end, and the data go."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _scratch(name: str, directory: Path | None) -> Iterator[Path]:
    with _stoppable(), _data_directory(name, directory) as folder:
        yield folder


@contextmanager
def _data_directory(name: str, directory: Path | None) -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix=f"penstock-{name}-", dir=directory)
    except OSError as error:
        place = directory or tempfile.gettempdir()
        raise ConfigError(f"no directory for data can be made, {error.strerror}: path={place}") from error
    with folder as path:
        yield Path(path)


def _sets(context: typer.Context, sets: list[str] | None) -> list[str]:
    """Settings for a broker that is started without a configuration file."""
    setup = Setup.of(context, None, sets)
    if setup.config_path is not None:
        raise ConfigError("this measures with --set only, leave out the configuration file")
    return list(setup.sets)


def _machine(folder: Path) -> dict[str, Any]:
    from penstock_tools.bench.server import machine_facts

    return machine_facts(folder)


def _write_json(path: Path | None, value: dict[str, Any]) -> None:
    if path is not None:
        _write_new(path, json.dumps(value, indent=2) + "\n")
        typer.echo(f"wrote {path}")


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"file can't be written, {error.strerror}: path={path}") from error


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


def _bytes(text: str) -> int:
    from penstock.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise ConfigError(f"--bytes: {error}") from error


def _new_path(directory: Path, name: str, suffix: str) -> Path:
    """A file that isn't there yet, its name made of ``name``."""
    stem = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "run"
    path = directory / f"{stem}{suffix}"
    number = 1
    while path.exists():
        number += 1
        path = directory / f"{stem}-{number}{suffix}"
    return path
