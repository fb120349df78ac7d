"""List the objects in the store, and look into one."""

from __future__ import annotations

__all__ = ("app",)

import dataclasses
import json
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Annotated, Any

import anyio
import typer

from penstock.units import format_size
from penstock_tools.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup
from penstock_tools.cli._format import count_text, print_table

if TYPE_CHECKING:
    from penstock.metadata.image import Image
    from penstock_tools.inspection.places import Places

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def _group() -> None:
    """List the objects in the store, and look into one."""


@app.command("list")
def list_objects(
    context: typer.Context,
    topic: Annotated[
        str | None,
        typer.Option("--topic", metavar="NAME", help="Only objects that hold records of this topic."),
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """List the objects that metadata knows: state, size, how much of it is still wanted, and by which topics.

    An object goes when nothing in it is wanted any more. Until then what was deleted in it takes up space: records of
    deleted topics, and what retention dropped.
    """
    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    rows = anyio.run(_list, setup, topic)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    print_table(
        ("OBJECT", "STATE", "SIZE", "LIVE", "TOPICS"),
        [
            (
                str(row.object_id),
                row.state,
                format_size(row.size_bytes),
                format_size(row.live_bytes),
                ", ".join(row.topics) or "-",
            )
            for row in rows
        ],
    )
    committed = [row for row in rows if row.state == "committed"]
    size_bytes = sum(row.size_bytes for row in committed)
    live_bytes = sum(row.live_bytes for row in committed)
    typer.echo(
        f"\n{count_text(len(committed), 'object')} in use, {format_size(size_bytes)}, of which "
        f"{format_size(max(0, size_bytes - live_bytes))} were deleted or are indexes"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListedObject:
    """One object; ``live_bytes`` are payload that a topic still has, at most ``size_bytes``."""

    object_id: int
    key: str
    state: str
    size_bytes: int
    live_bytes: int
    topics: list[str]


async def _list(setup: Setup, topic: str | None) -> list[ListedObject]:
    from penstock.errors import NotFoundError, shown
    from penstock.stream.object_format import object_key
    from penstock_tools.inspection.places import open_places

    async with open_places(setup.load_config(), setup.registry()) as places:
        image = await _load_image(places)
    if topic is not None and image.topics.named(topic) is None:
        raise NotFoundError(f"metadata knows no topic of this name: topic={shown(topic)}")
    live: Counter[int] = Counter()
    holders: defaultdict[int, set[str]] = defaultdict(set)
    for stream in image.streams.all():
        for found in stream.ranges:
            live[found.object_id] += found.size
            holders[found.object_id].add(image.topics.require(stream.topic_id).name)
    return [
        ListedObject(
            object_id=held.object_id,
            key=object_key(held.object_id),
            state=held.state,
            size_bytes=held.size,
            live_bytes=live[held.object_id],
            topics=sorted(holders[held.object_id]),
        )
        for held in sorted(image.objects.all(), key=lambda held: held.object_id)
        if topic is None or topic in holders[held.object_id]
    ]


async def _load_image(places: Places) -> Image:
    """What metadata knows. Raises NotFoundError where no broker ever ran: an empty answer would be a false one."""
    from penstock.errors import NotFoundError
    from penstock.metadata.service import load_image

    image = await load_image(places.metadata_log)
    if not image.index:
        raise NotFoundError(
            "there is no metadata log, check broker.data_dir and object_store.url: "
            f"location={places.metadata_log.location}"
        )
    return image


@app.command("inspect")
def inspect_object(
    context: typer.Context,
    object_name: Annotated[str, typer.Argument(metavar="OBJECT", help="An object id, or an object's key.")],
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    entries: Annotated[bool, typer.Option("--entries", help="Show every entry of every block.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Show what an object holds; its checksums are verified on the way."""
    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    found = anyio.run(_inspect, setup, object_name, entries)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(
        f"object {found['object_id']} at {found['key']}: {found['size']} bytes, {len(found['blocks'])} blocks"
    )
    for block in found["blocks"]:
        typer.echo(
            f"  {block['stream']:<40} [{block['start']}, {block['end']})  at {block['position']}, "
            f"{block['size']} bytes, newest timestamp {block['time_ms']}"
        )
        for entry in block.get("entries", ()):
            typer.echo(f"    [{entry['base_offset']}, {entry['next_offset']})  {entry['size']} bytes")


async def _inspect(setup: Setup, object_name: str, with_entries: bool) -> dict[str, Any]:
    from penstock.errors import InvalidRequestError
    from penstock.stream.object_format import decode_block, object_key, verify_block
    from penstock_tools.inspection.places import open_places
    from penstock_tools.inspection.verify import read_index, stream_name

    async with open_places(setup.load_config(), setup.registry()) as places:
        image = await _load_image(places)
        by_key = {object_key(object_id): object_id for object_id in image.objects.ids()}
        object_id = int(object_name) if object_name.isdecimal() else by_key.get(object_name)
        if object_id is None:
            raise InvalidRequestError(f"metadata knows no object of this key: key={object_name}")
        key = object_key(object_id)
        size = (await places.object_store.head(key)).size
        index = await read_index(places, object_id, size)
        blocks = []
        for row in index.rows:
            stream = image.streams.get(row.stream_id)
            block: dict[str, Any] = row._asdict()
            block["stream"] = (
                stream_name(image, stream) if stream is not None else f"deleted stream={row.stream_id}"
            )
            data = await places.object_store.get(key, row.position, row.position + row.size)
            verify_block(data, object_id, row.position)
            if with_entries:
                block["entries"] = [
                    {"base_offset": e.base_offset, "next_offset": e.next_offset, "size": len(e.data)}
                    for e in decode_block(data, row.stream_id)
                ]
            blocks.append(block)
        state = (
            image.objects.require(object_id).state if object_id in image.objects else "unknown to metadata"
        )
        return {"object_id": object_id, "key": key, "state": state, "size": size, "blocks": blocks}
