"""Check, explain and begin a configuration."""

from __future__ import annotations

__all__ = ("app",)

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.errors import ConfigError
from penstock_tools.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from penstock.config import Config
    from penstock.plugins import Selection
    from penstock.spi.object_store import ObjectInfo, ObjectStore

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.command()
def check(
    context: typer.Context,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    connect: Annotated[
        bool,
        typer.Option("--connect", help="Connect to the object store, too: address, credentials, rights."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Check the configuration as `penstock serve` would, plugins' keys and combinations too.

    With --connect the object store is tried as well, and those that plugins open for themselves: a small object is
    written and deleted (not on local files), and the store is listed. Nothing else is made or changed. The exit code
    is 2 when anything is wrong.
    """
    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    loaded = setup.load_config()
    from penstock.wire.native_code import status
    from penstock_tools.cli._logging import check_log_file

    check_log_file(loaded)
    code = status()  # raises what a start would, if PENSTOCK_NATIVE can't be met
    selection = setup.registry().select_all(loaded)
    from penstock.lake.configs import topic_config_table
    from penstock.spi.kinds import LAKE_COMPACTOR
    from penstock.spi.lake import LakeCompactorSpec

    compactor = selection.specs.get(LAKE_COMPACTOR.name)
    assert compactor is None or isinstance(compactor, LakeCompactorSpec)
    topic_config_table(compactor, loaded.tree.lake.defaults, {})  # raises what a start would
    if not as_json:
        plugins = ", ".join(f"{kind} {name}" for kind, name in selection.names.items())
        typer.echo(f"configuration is valid: {setup.config_path or 'defaults, environment and command line'}")
        typer.echo(f"plugins: {plugins}")
        typer.echo(f"records are checked in {code}")
    stores = {}
    if connect:
        import anyio

        stores = anyio.run(_connect, loaded, selection)
    if as_json:
        told = {
            "path": None if setup.config_path is None else str(setup.config_path),
            "plugins": dict(selection.names),
            "records_checked_in": code,
            "object_stores": stores,
        }
        typer.echo(json.dumps(told, indent=2))
        return
    for name, answer in stores.items():
        typer.echo(f"{name}: {answer}")


async def _connect(config: Config, selection: Selection) -> dict[str, str]:
    """Open the object stores and list them; what each answers. Raises ConfigError for whatever goes wrong."""
    from penstock.errors import PenstockError
    from penstock_tools.inspection.places import open_nested_store, open_store

    try:
        async with open_store(config, selection) as store:
            missing = sorted(
                {
                    f"{kind} needs {capability}"
                    for kind, spec in selection.specs.items()
                    for capability in spec.requires
                    if not getattr(store.capabilities, capability, False)
                }
            )
            if missing:
                raise ConfigError(
                    f"the object store answers but can't do what is needed ({', '.join(missing)}), choose another: "
                    f"location={store.location}"
                )
            told = {"object store": await _answer_of(store)}
        for nested in selection.nested:
            if nested.store is None:
                continue
            async with open_nested_store(config, nested) as store:
                nested.check_store(store.capabilities, store.location)
                told[f"object store of {nested.key}"] = await _answer_of(store)
        return told
    except PenstockError as error:
        # also what might pass at another time: this check has failed
        raise error if isinstance(error, ConfigError) else ConfigError(str(error)) from error


async def _answer_of(store: ObjectStore) -> str:
    keys = [info.key async for info in _first(store.list(""))]
    state = f"it holds objects, the first is {keys[0]}" if keys else "it is empty"
    claims = "yes" if store.capabilities.put_if_absent else "no"
    return f"{store.location} answers, put-if-absent: {claims}; {state}"


async def _first(items: AsyncIterator[ObjectInfo]) -> AsyncIterator[ObjectInfo]:
    async for item in items:
        yield item
        return


@app.command("explain")
def explain_keys(
    context: typer.Context,
    key: Annotated[
        str | None, typer.Argument(metavar="KEY", help="A key or a section; all keys when left out.")
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """Show each key's value, where the value came from, and what the key means. Secrets are masked."""
    from penstock.config import explain

    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    rows = explain(setup.load_config(), setup.registry(), key)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    for row in rows:
        typer.echo(f"{row.key} = {row.value}  ({row.origin})")
        if row.description:
            typer.echo(f"    {row.description}")


@app.command("init")
def write_template(
    context: typer.Context,
    cloud: Annotated[
        str,
        typer.Option(
            "--cloud",
            metavar="NAME",
            help="Where objects are kept: local, aws, aws-express, minio, r2, gcp, azure, alibaba.",
        ),
    ] = "local",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to create; stdout when left out."),
    ] = None,
) -> None:
    """Write a configuration file that has every key, those at their default commented out."""
    from penstock.config import init_template

    text = init_template(cloud, Setup.of(context).registry())
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"file is there already, it is left as it is: path={output}") from error
    except OSError as error:
        raise ConfigError(f"file can't be written, {error.strerror}: path={output}") from error
    typer.echo(f"wrote {output}; check it with: penstock config check -c {output}")


@app.command("reference", hidden=True)
def write_reference(
    update: Annotated[
        Path,
        typer.Option(
            "--update",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Markdown file whose reference is to be replaced.",
        ),
    ],
) -> None:
    """Bring the tables between the reference marks of a Markdown file up to date."""
    from penstock.config import reference_markdown

    begin, end = "<!-- reference: begin -->\n", "<!-- reference: end -->\n"
    text = update.read_text()
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found_begin or not found_end:
        raise ConfigError(f"file has no reference marks: path={update}")
    update.write_text(f"{head}{begin}\n{reference_markdown()}\n{end}{tail}")
