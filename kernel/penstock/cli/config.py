"""Check, explain and begin a configuration."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli._app import ConfigOption, PluginOption, PluginsDirOption, SetOption, Setup
from penstock.errors import ConfigError

__all__ = ("app",)

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.command()
def check(
    context: typer.Context,
    config: ConfigOption = None,
    sets: SetOption = None,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
) -> None:
    """Check the configuration as `penstock serve` would, plugins' keys and combinations too."""
    setup = Setup.of(context, config, sets, plugins_dir, plugin)
    loaded = setup.load_config()
    selection = setup.registry().select_all(loaded)
    plugins = ", ".join(f"{kind} {name}" for kind, name in selection.names.items())
    typer.echo(f"configuration is valid: {setup.config_path or 'defaults, environment and command line'}")
    typer.echo(f"plugins: {plugins}")


@app.command("explain")
def explain_keys(
    context: typer.Context,
    key: Annotated[str | None, typer.Argument(help="A key or a section; all keys when left out.")] = None,
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
    cloud: Annotated[str, typer.Option("--cloud", help="Where the broker is to run: local.")] = "local",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to create; stdout when left out.")
    ] = None,
) -> None:
    """Write a configuration file that has every key, commented out at its default."""
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
        Path, typer.Option("--update", help="Markdown file whose reference is to be replaced.")
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
