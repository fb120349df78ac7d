"""Tables of topics: how they are, what they are, maintenance, replays."""

from __future__ import annotations

__all__ = ("app",)

import dataclasses
import json
import time
from typing import Annotated

import anyio
import typer

from penstock_tools.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup
from penstock_tools.cli._format import count_text, print_table

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

TopicArgument = Annotated[str, typer.Argument(metavar="TOPIC", help="The topic.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def _group() -> None:
    """Tables of topics: how they are, what they are, maintenance, replays."""


@app.command()
def status(
    context: typer.Context,
    topic: Annotated[str | None, typer.Argument(metavar="TOPIC", help="Only this topic.")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """How each topic's table is: state, records that it hasn't yet, and why it stands if it does.

    The state is what the owner last wrote into metadata; the lag is that of the table itself against what the object
    store has, so it is right whether a broker runs or not. Exit code 1 if a table stands.
    """
    from penstock_tools.inspection.lake import open_lake, topic_tables

    setup = Setup.of(context, config, sets, plugins_dir, plugin)

    async def look() -> list[dict[str, object]]:
        async with open_lake(setup.load_config(), setup.registry()) as lake:
            return [dataclasses.asdict(found) for found in await topic_tables(lake, topic)]

    found = anyio.run(look)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        print_table(
            ("TOPIC", "TABLE", "STATE", "SINCE", "LAG", "REASON"),
            [
                (
                    str(one["topic"]),
                    str(one["table"] or "-"),
                    str(one["state"]),
                    _ago(one["since_ms"]),
                    _lag(one["lag_records"]),
                    str(one["reason"] or one["fault"] or "-"),
                )
                for one in found
            ],
        )
    if any(one["state"] in ("failed", "gap") for one in found):
        raise typer.Exit(1)


def _lag(lag: object) -> str:
    return str(sum(lag.values())) if isinstance(lag, dict) else "?"


def _ago(since_ms: object) -> str:
    from penstock.units import format_duration

    if not isinstance(since_ms, int):
        return "-"
    passed = max(0, time.time_ns() // 1_000_000 - since_ms)
    return format_duration(passed // 1000 * 1000)


@app.command()
def tables(
    context: typer.Context,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
) -> None:
    """List all tables that there are, those of deleted topics and of replays too."""
    from penstock_tools.inspection.lake import open_lake

    setup = Setup.of(context, config, sets, plugins_dir, plugin)

    async def look() -> list[str]:
        async with open_lake(setup.load_config(), setup.registry()) as lake:
            return list(await lake.compactor.tables())

    for name in anyio.run(look):
        typer.echo(name)


@app.command()
def describe(
    context: typer.Context,
    topic: TopicArgument,
    table: Annotated[str, typer.Option("--table", help="Another table of it, of a replay.")] = "",
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a topic's table: place, schema, files, size, newest commit, positions."""
    from penstock_tools.inspection.lake import open_lake

    setup = Setup.of(context, config, sets, plugins_dir, plugin)

    async def look() -> dict[str, object]:
        async with open_lake(setup.load_config(), setup.registry()) as lake:
            async with lake.compactor.open_table(lake.topic(topic, table)[1], 0) as opened:
                positions = {str(each): offset for each, offset in sorted((await opened.positions()).items())}
                return {"table": opened.name, **await opened.describe(), "positions": positions}

    found = anyio.run(look)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        shown = value
        if isinstance(value, dict):
            shown = ", ".join(f"{each}: {offset}" for each, offset in value.items()) or "none"
        typer.echo(f"{name}: {shown}")


@app.command()
def maintain(
    context: typer.Context,
    topic: TopicArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
) -> None:
    """Bring a topic's table into good shape: small files together, what nothing needs any more removed.

    The broker that owns the table does it on a schedule (lake.maintenance_interval). By this command it is done here,
    while no broker runs: the data directory is locked meanwhile. With --dry-run a broker may run.
    """
    from pathlib import Path

    from penstock.broker import own_directory
    from penstock.files import ACCESSES
    from penstock.spi.lake import LakeMaintenance
    from penstock.units import format_size
    from penstock_tools.inspection.lake import open_lake

    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    loaded = setup.load_config()

    async def work() -> LakeMaintenance:
        async with open_lake(loaded, setup.registry(), read_only=dry_run) as lake:
            state, wanted = lake.topic(topic)
            # as the last owner, of whom the lock says that it is gone: the next claim has a higher epoch
            epoch = 0 if dry_run or state.lake is None else state.lake.epoch
            async with lake.compactor.open_table(wanted, epoch) as table:
                return await table.maintain(dry_run=dry_run or not epoch)

    if dry_run:
        done = anyio.run(work)
    else:
        broker = loaded.tree.broker
        with own_directory(Path(broker.data_dir).expanduser(), ACCESSES[broker.data_access]):
            done = anyio.run(work)
    for name, value in done.figures.items():
        typer.echo(f"{name}: {value}")
    verb = "would take" if done.dry_run else "takes"
    typer.echo(f"the table {verb} {format_size(done.saved_bytes)} less")


@app.command()
def replay(
    context: typer.Context,
    topic: TopicArgument,
    start: Annotated[
        int, typer.Option("--from", metavar="OFFSET", help="The first offset, of each partition.")
    ],
    table: Annotated[str, typer.Option("--table", metavar="NAME", help="The new table.")] = "",
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
) -> None:
    """Write a topic's records into a new table, with the topic's configs as they are now; a broker may run.

    It reads what the object store has. The topic's own table isn't touched. Begun again, it goes on.
    """
    from penstock_tools.inspection.lake import Replayed, open_lake
    from penstock_tools.inspection.lake import replay as run

    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    name = table or f"{topic}_replay_{start}"

    async def work() -> Replayed:
        async with open_lake(setup.load_config(), setup.registry(), read_only=False) as lake:
            return await run(lake, topic, start, name)

    done = anyio.run(work)
    rejected = f", {done.rejected} rejected" if done.rejected else ""
    typer.echo(f"{count_text(done.records, 'row')} in table {done.table}{rejected}")
