"""Look into a write-ahead log without disturbing its owner, or make a device ready for one."""

from __future__ import annotations

__all__ = ("app",)

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import anyio
import typer

from penstock_tools.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup

if TYPE_CHECKING:
    from penstock.metadata.image import Image

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def _group() -> None:
    """Look into a write-ahead log without disturbing its owner, or make a device ready for one."""


@app.command("inspect")
def inspect_wal(
    context: typer.Context,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=0, help="Show at most this many entries.")
    ] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Show whose log it is, where it begins and ends, and its entries by stream; exit code 1 on damage."""
    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    found = _look(lambda: _inspect(setup, limit))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for name, value in found["facts"].items():
            typer.echo(f"{name:<20} {value}")
        typer.echo(f"{'entries':<20} {found['entry_count']} ({found['payload_bytes']} bytes)")
        for entry in found["entries"]:
            typer.echo(
                f"  at {entry['position']}: {entry['stream']} [{entry['base_offset']}, {entry['next_offset']}) "
                f"{entry['size']} bytes{'' if entry['live'] else ' (uploaded or gone)'}"
            )
        if found["entry_count"] > len(found["entries"]):
            typer.echo(f"  ... {found['entry_count'] - len(found['entries'])} more, see --limit")
        typer.echo(f"end of the log: {found['end']}")
    if found["damage"]:
        raise typer.Exit(1)


@app.command("check")
def check_wal(
    context: typer.Context,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Show size, block size, owner, epoch and how full the log is; exit code 1 on damage."""
    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    facts = _look(lambda: _describe(setup))
    _print_facts(facts, as_json)
    if facts.get("error"):
        raise typer.Exit(1)


@app.command("format")
def format_wal(
    context: typer.Context,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    force: Annotated[
        str,
        typer.Option("--force", metavar="WORDS", help="Lose what is there; the refusal says which words."),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Try the device for the log and empty it; refused if it holds anything at all."""
    from penstock_tools.inspection.places import format_wal as format_place

    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    _print_facts(anyio.run(format_place, setup.load_config(), setup.registry(), force), as_json)


def _look(look: Callable[[], Awaitable[T]]) -> T:
    """Damage is what is looked for, also one that leaves nothing to show: exit code 1, not that of a wrong option."""
    from penstock.errors import CorruptError
    from penstock.work.one_error import one_error

    try:
        with one_error():
            return anyio.run(look)
    except CorruptError as error:
        typer.echo(f"penstock: {error}", err=True)
        raise typer.Exit(1) from None


def _print_facts(facts: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=2, default=str))
    else:
        for name, value in facts.items():
            typer.echo(f"{name:<26} {value}")


async def _describe(setup: Setup) -> Mapping[str, object]:
    from penstock.errors import InvalidRequestError
    from penstock_tools.inspection.places import open_places

    async with open_places(setup.load_config(), setup.registry()) as places:
        if places.describe_wal is None:
            raise InvalidRequestError(f"this WAL plugin can't be read from outside: plugin={places.wal_name}")
        return await places.describe_wal()


def _recorded(image: Image, node_id: int) -> str:
    """What metadata says of the node's WAL, with the words that its plugin keeps there."""
    from penstock.metadata.nodes import is_of_wal

    node = image.nodes.get(node_id)
    if node is None or not (node.wal or node.wal_in_use):
        return f"no WAL of node {node_id} in metadata"
    state = "in use, or not stopped cleanly" if node.wal_in_use else "stopped cleanly, nothing in it"
    words = "".join(f", {name} = {word}" for name, word in node.words.items() if is_of_wal(name))
    return f"{node.wal_name} at {node.wal_location or 'an unknown place'}, {state}{words}"


async def _inspect(setup: Setup, limit: int) -> dict[str, Any]:
    from penstock.errors import CorruptError, InvalidRequestError
    from penstock.metadata.service import load_image
    from penstock.stream.entry import HEADER, decode_header
    from penstock.stream.marks import Evidence
    from penstock_tools.inspection.places import open_places
    from penstock_tools.inspection.verify import stream_name

    async with open_places(setup.load_config(), setup.registry()) as places:
        if places.read_wal is None or places.describe_wal is None:
            raise InvalidRequestError(f"this WAL plugin can't be read from outside: plugin={places.wal_name}")
        image = await load_image(places.metadata_log)
        entries: list[dict[str, Any]] = []
        evidence = Evidence()
        count = size = 0
        damage = ""
        try:
            async for entry in places.read_wal():
                if evidence.add(entry) is not None:
                    continue
                count += 1
                size += len(entry.data)
                if len(entries) >= limit:
                    continue
                header = decode_header(entry.data, entry.position)
                stream = image.streams.get(header.stream_id)
                entries.append(
                    {
                        "position": entry.position,
                        "stream": stream_name(image, stream)
                        if stream
                        else f"deleted stream={header.stream_id}",
                        "base_offset": header.base_offset,
                        "next_offset": header.next_offset,
                        "size": len(entry.data) - HEADER.size,
                        "live": stream is not None and header.next_offset > max(stream.end, stream.start),
                    }
                )
        except CorruptError as error:
            damage = str(error)
        return {
            "facts": {
                "plugin": places.wal_name,
                **await places.describe_wal(),
                "recorded": _recorded(image, places.node_id),
                "metadata index": f"{image.index}, and the WAL was written with {evidence.index or 'unknown'}",
            },
            "entry_count": count,
            "payload_bytes": size,
            "entries": entries,
            "damage": damage,
            "end": f"DAMAGED: {damage}" if damage else "clean",
        }
