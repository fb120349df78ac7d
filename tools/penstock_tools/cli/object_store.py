"""Find out what an object store really does."""

from __future__ import annotations

__all__ = ("app",)

import dataclasses
import json
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from penstock.errors import ConfigError, UnavailableError
from penstock.units import format_size
from penstock_tools.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup
from penstock_tools.cli._format import print_table

if TYPE_CHECKING:
    from penstock_tools.probe.report import Report

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def _group() -> None:
    """Keep ``probe`` a subcommand though it is the only one."""


@app.command("probe")
def probe_store(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL", help="The store, as in object_store.url; the configuration's when left out."
        ),
    ] = None,
    writers: Annotated[
        int, typer.Option(metavar="N", min=2, max=64, help="Processes that race for each object.")
    ] = 8,
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="Races of each kind.")] = 50,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Race writers against an object store, and tell what it keeps, what that is good for, and how to start.

    It writes below penstock-probe/ in the store, some hundred MiB by default, and removes that at the end, also when
    it is interrupted. Exit code 0: the store carries a broker; 1: it doesn't, or it broke a promise; 2: it can't be
    used as it is named.
    """
    chosen = (*(sets or ()), *([f"object_store.url={url}"] if url else ()))
    setup = Setup.of(context, config, chosen, plugins_dir, plugin)
    report = anyio.run(_probe, setup, writers, rounds)
    if isinstance(report, int):
        raise typer.Exit(128 + report)
    if as_json:
        document = {**dataclasses.asdict(report), "carries_a_broker": report.carries_a_broker}
        typer.echo(json.dumps(document, indent=2))
    else:
        _print(report)
    if not report.carries_a_broker:
        raise typer.Exit(1)


async def _probe(setup: Setup, writers: int, rounds: int) -> Report | int:
    """The report, or the signal that ended the probe; what it wrote is gone either way."""
    from penstock.work.one_error import one_error
    from penstock_tools.probe.run import probe

    config = setup.load_config()
    registry = setup.registry()
    registry.load_all()
    options = {
        "config_path": None if setup.config_path is None else str(setup.config_path.resolve()),
        "sets": setup.sets,
        "plugins_dirs": [str(directory.resolve()) for directory in setup.plugins_dirs],
        "modules": setup.modules,
    }
    outcome: Report | int = signal.SIGTERM
    ended = False

    async def end_by_signal() -> None:
        nonlocal outcome, ended
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                if not ended:
                    outcome, ended = int(number), True
                    tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_by_signal)
        try:
            with one_error():
                outcome = await probe(
                    options,
                    config.plugin_settings("object_store"),
                    registry,
                    plugin=config.plugin_name("object_store"),
                    wal=config.plugin_name("wal"),
                    writers=writers,
                    rounds=rounds,
                    tell=_tell,
                )
        except UnavailableError as error:
            # exit code 1 would say that the store broke a promise, and it wasn't even heard
            raise ConfigError(str(error)) from error
        tasks.cancel_scope.cancel()
    return outcome


def _tell(what: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[Kprobing: {what}" if what else "\r\x1b[K")
        sys.stderr.flush()


def _print(report: Report) -> None:
    _tell("")
    typer.echo(f"object store: {report.location}\n")
    print_table(
        ("QUESTION", "ANSWER", "DETAIL"),
        [
            (each.name, each.verdict.upper() if each.verdict == "broken" else each.verdict, each.detail)
            for each in report.findings
        ],
    )
    typer.echo()
    print_table(
        ("REQUEST", "SIZE", "SAMPLES", "P50 MS", "P90 MS", "P99 MS", "MAX MS"),
        [
            (
                each.request,
                format_size(each.size_bytes) if each.size_bytes else "-",
                str(each.samples),
                *(f"{value:.1f}" for value in (each.p50_ms, each.p90_ms, each.p99_ms, each.max_ms)),
            )
            for each in report.latencies
        ],
    )
    typer.echo()
    print_table(
        ("KIND", "PLUGIN", "SUPPORTED", "LACKS"),
        [
            (each.kind, each.name, "yes" if each.supported else "no", ", ".join(each.lacks) or "-")
            for each in report.plugins
        ],
    )
    if report.carries_a_broker:
        typer.echo(f"\nstart with this configuration:\n\n{report.config}", nl=False)
    else:
        typer.echo(f"\n{report.why_no_broker}")
