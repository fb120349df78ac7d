"""Tables of topics: how they are, what they are, maintenance, replays."""

from __future__ import annotations

__all__ = ("app",)

import dataclasses
import json
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import anyio
import msgspec
import typer

from penstock.errors import UnavailableError
from penstock.units import format_size
from penstock.work.retry import Backoff, doubling
from penstock_tools.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup
from penstock_tools.cli._client import DEFAULT_BOOTSTRAP, connect, run
from penstock_tools.cli._format import count_text, print_table

if TYPE_CHECKING:
    from penstock.config import Tree
    from penstock.metadata.topics import LakeMaintained
    from penstock.spi.lake import LakeMaintenance
    from penstock_tools.inspection.lake import Lake, TopicTable

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

#: Where somebody who listens everywhere is reached.
_ANY_HOST = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - compared, not bound

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

    async def look() -> list[TopicTable]:
        async with open_lake(setup.load_config(), setup.registry()) as lake:
            return await topic_tables(lake, topic)

    found = anyio.run(look)
    if as_json:
        typer.echo(json.dumps([msgspec.to_builtins(one, str_keys=True) for one in found], indent=2))
    else:
        print_table(
            ("TOPIC", "TABLE", "STATE", "SINCE", "LAG", "MAINTAINED", "REASON"),
            [
                (
                    one.topic,
                    one.table or "-",
                    one.state,
                    _ago(one.since_ms),
                    "?" if one.lag_records is None else str(sum(one.lag_records.values())),
                    _maintained(one.maintained),
                    one.reason or one.fault or "-",
                )
                for one in found
            ],
        )
    if any(one.state in ("failed", "gap") for one in found):
        raise typer.Exit(1)


def _maintained(maintained: LakeMaintained | None) -> str:
    if maintained is None:
        return "-"
    return ("failed " if maintained.reason else "") + _ago(maintained.ended_ms)


def _ago(since_ms: int | None) -> str:
    from penstock.units import format_duration

    if since_ms is None:
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
    as_json: JsonOption = False,
) -> None:
    """List all tables that there are, those of deleted topics and of replays too."""
    from penstock_tools.inspection.lake import open_lake

    setup = Setup.of(context, config, sets, plugins_dir, plugin)

    async def look() -> list[str]:
        async with open_lake(setup.load_config(), setup.registry()) as lake:
            return list(await lake.compactor.tables())

    names = anyio.run(look)
    if as_json:
        typer.echo(json.dumps(names, indent=2))
        return
    for name in names:
        typer.echo(name)


@app.command()
def describe(
    context: typer.Context,
    topic: TopicArgument,
    table: Annotated[
        str, typer.Option("--table", metavar="NAME", help="Another table of it, of a replay.")
    ] = "",
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
    bootstrap_server: Annotated[
        str | None,
        typer.Option(
            "--bootstrap-server",
            "-b",
            metavar="HOST:PORT",
            help="A broker; more, with commas between; where the configuration has it listen if left out.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a topic's table into good shape: small files together, what nothing needs any more removed.

    The broker that owns the table does it on a schedule (lake.maintenance_interval). While a broker runs on the data
    directory, this command asks that one (--bootstrap-server) to do it now, and waits for the outcome; so it does if
    another node owns the table, and where the directory can't be locked, or no broker has run on it. Otherwise it is
    done here, with the directory locked.
    """
    from pathlib import Path

    from penstock.broker import DirectoryInUseError, own_directory
    from penstock.files import ACCESSES
    from penstock_tools.inspection.lake import open_lake

    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    loaded = setup.load_config()
    broker = loaded.tree.broker

    async def work() -> LakeMaintenance | None:
        async with open_lake(loaded, setup.registry(), read_only=dry_run) as lake:
            state, wanted = lake.topic(topic)
            if not dry_run and state.lake is not None and state.lake.node_id != broker.node_id:
                return None  # the lock is on another directory than its owner's, which may be at work
            # as the last owner, of whom the lock says that it is gone: the next claim has a higher epoch
            epoch = 0 if dry_run or state.lake is None else state.lake.epoch
            async with lake.compactor.open_table(wanted, epoch) as table:
                return await table.maintain(dry_run=dry_run or not epoch)

    async def ask() -> LakeMaintenance:
        async with open_lake(loaded, setup.registry()) as lake:
            return await _ask_owner(lake, topic, bootstrap_server or address_of(loaded.tree))

    done: LakeMaintenance | None = None
    if dry_run:
        done = anyio.run(work)
    else:
        with suppress(DirectoryInUseError):
            directory = Path(broker.data_dir).expanduser()
            with own_directory(directory, ACCESSES[broker.data_access], alone=True):
                done = anyio.run(work)
    if done is None:
        done = run(ask)
    if as_json:
        figures = {
            "dry_run": done.dry_run,
            "saved_bytes": done.saved_bytes,
            "figures": dict(done.figures),
        }
        typer.echo(json.dumps(figures, indent=2))
        return
    for name, value in done.figures.items():
        typer.echo(f"{name}: {value}")
    typer.echo(savings_of(done))


def savings_of(done: LakeMaintenance) -> str:
    """What maintenance saves, in a sentence; while old snapshots keep what was rewritten, a table takes more."""
    verb = "would take" if done.dry_run else "takes"
    change = "less" if done.saved_bytes >= 0 else "more"
    return f"the table {verb} {format_size(abs(done.saved_bytes))} {change}"


def address_of(tree: Tree) -> str:
    """Where a broker with this configuration is reached from its own host."""
    listener = tree.listener
    host, _, port = (listener.advertised or listener.bind).rpartition(":")
    if port == "0":
        return DEFAULT_BOOTSTRAP
    return f"{_ANY_HOST.get(host, host)}:{port}"


async def _ask_owner(lake: Lake, topic: str, bootstrap_server: str) -> LakeMaintenance:
    """Have the broker that owns the table maintain it, and wait for how that ends."""
    from penstock.lake.configs import MAINTENANCE_REQUEST
    from penstock.spi.lake import LakeMaintenance
    from penstock_tools.client import Admin
    from penstock_tools.inspection.lake import maintained_since, next_request

    request = next_request(lake, topic)
    async with connect(bootstrap_server) as cluster:
        admin = Admin(cluster)
        await admin.alter_topic_configs(topic, set_to={MAINTENANCE_REQUEST: str(request)})
        typer.echo(f"asked the broker that owns the table to maintain it: topic={topic}", err=True)
        pauses = Backoff(doubling(0.1, 2.0))
        while (done := await maintained_since(lake, topic, request)) is None:
            # the outcome is in metadata, and whoever only reads them isn't told of news; the answer shows that the
            # broker is still there
            await admin.topic_configs(topic)
            await anyio.sleep(pauses.failed())
    if done.reason:
        raise UnavailableError(
            f"maintenance failed, the table is as good as before: topic={topic} {done.reason}"
        )
    return LakeMaintenance(figures=done.figures, saved_bytes=done.saved_bytes, dry_run=False)


@app.command()
def replay(
    context: typer.Context,
    topic: TopicArgument,
    start: Annotated[
        int, typer.Option("--from", metavar="OFFSET", help="The first offset, of each partition.")
    ],
    table: Annotated[
        str, typer.Option("--table", metavar="NAME", help="The new table; TOPIC_replay_OFFSET if left out.")
    ] = "",
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    as_json: JsonOption = False,
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
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(done), indent=2))
        return
    rejected = f", {done.rejected} rejected" if done.rejected else ""
    typer.echo(f"{count_text(done.records, 'row')} in table {done.table}{rejected}")
