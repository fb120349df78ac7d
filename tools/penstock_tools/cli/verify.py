"""Prove what can be proven of a data directory from outside, stopped or live."""

from __future__ import annotations

__all__ = ("app",)

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from penstock_tools.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup

if TYPE_CHECKING:
    from penstock_tools.inspection.verify import Report

app = typer.Typer(add_completion=False)


@app.command()
def verify(
    context: typer.Context,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Don't read the data blocks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Check tiling, checksums, offsets, orphans and the WAL's continuation; exit code 1 if something is broken.

    Reads only, fences nobody: a broker may be running on the same data.
    """
    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    report = anyio.run(_verify, setup, quick)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        _print(report)
    if report.problems:
        raise typer.Exit(1)


async def _verify(setup: Setup, quick: bool) -> Report:
    from penstock_tools.inspection.places import open_places
    from penstock_tools.inspection.verify import verify as run

    config = setup.load_config()
    async with open_places(config, setup.registry()) as places:
        return await run(
            places,
            now_ms=time.time_ns() // 1_000_000,
            delete_delay_ms=config.tree.stream.delete_delay,
            quick=quick,
        )


def _print(report: Report) -> None:
    wal = "not checked" if report.wal_entries is None else f"{report.wal_entries} entries"
    if report.wal_identity is not None:
        wal += f", identity {report.wal_identity}"
    if report.wal_metadata_index:
        wal += f", written with metadata to index {report.wal_metadata_index}"
    typer.echo(
        f"metadata to index {report.metadata_index}: {report.topics} topics, {report.streams} streams\n"
        f"objects: {report.objects} committed, {report.blocks} blocks, {report.bytes} bytes read\n"
        f"record batches: {report.batches}\n"
        f"WAL: {wal}"
    )
    for note in report.notes:
        typer.echo(f"note: {note}")
    for problem in report.problems:
        typer.echo(f"BROKEN {problem.invariant} at {problem.place}: {problem.message}")
    typer.echo("everything that can be proven from outside holds" if not report.problems else "not intact")
