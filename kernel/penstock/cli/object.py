"""Look into an object: footer, index, data blocks, entries."""

from __future__ import annotations

import json
from typing import Annotated, Any

import anyio
import typer

from penstock.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup

__all__ = ("app",)

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def _group() -> None:
    """Look into an object: footer, index, data blocks, entries."""


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
    from penstock.metadata.service import load_image
    from penstock.stream.object_format import decode_block, object_key, verify_block
    from penstock.tools.places import open_places
    from penstock.tools.verify import read_index, stream_name

    async with open_places(setup.load_config(), setup.registry()) as places:
        image = await load_image(places.metadata_log)
        by_key = {object_key(object_id): object_id for object_id in image.objects}
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
        state = image.objects[object_id].state if object_id in image.objects else "unknown to metadata"
        return {"object_id": object_id, "key": key, "state": state, "size": size, "blocks": blocks}
