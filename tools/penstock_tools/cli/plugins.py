"""Show the plugins that are installed."""

from __future__ import annotations

__all__ = ("app",)

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.errors import PluginError
from penstock_tools.cli._app import PluginOption, PluginsDirOption, Setup

if TYPE_CHECKING:
    from penstock.plugins import PluginInfo, PluginRegistry
    from penstock.spi import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.command("list")
def list_plugins(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
) -> None:
    """List all plugins with kind, version, SPI version, capabilities and origin.

    A plugin that can't be loaded is named on stderr; the exit code is 1 then.
    """
    registry = Setup.of(context, plugins_dirs=plugins_dir, modules=plugin).registry()
    errors = registry.load_all()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(info) for info in registry.infos()], indent=2, default=str))
    else:
        _print_table(
            ("NAME", "KIND", "VERSION", "SPI", "CAPABILITIES", "ORIGIN"),
            [
                (
                    info.name,
                    info.kind,
                    info.version,
                    str(info.spi_version),
                    _capabilities_line(info.capabilities),
                    info.origin,
                )
                for info in registry.infos()
            ],
        )
    for name, error in sorted(errors.items()):
        typer.echo(f"penstock: {name} can't be loaded: {error}", err=True)
    if errors:
        raise typer.Exit(1)


@app.command("info")
def show_plugin(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    plugins_dir: PluginsDirOption = None,
    plugin: PluginOption = None,
) -> None:
    """Show one plugin: what it can do, and its configuration keys with types, defaults and help."""
    from penstock.config import key_rows

    registry = Setup.of(context, plugins_dirs=plugins_dir, modules=plugin).registry()
    found = _find(registry, name)
    documents = []
    for info in found:
        model = _model(registry, info)
        rows = key_rows(model) if model is not None else []
        if not as_json:
            _print_info(info, rows)
        keys = [dict(zip(("key", "type", "default", "help"), row, strict=True)) for row in rows]
        documents.append({**dataclasses.asdict(info), "settings": keys})
    if as_json:
        typer.echo(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, default=str))


def _find(registry: PluginRegistry, name: str) -> list[PluginInfo]:
    """The plugins of this name; one name may serve several kinds."""
    from penstock.config import nearest

    errors = registry.load_all()
    infos = registry.infos()
    found = [info for info in infos if info.name == name]
    if not found and name in errors:
        raise errors[name]
    if not found:
        names = sorted({info.name for info in infos})
        near = nearest(name, names)
        advice = f"the nearest is {near}" if near else f"those there are: {', '.join(names)}"
        raise PluginError(f"no plugin has this name, {advice}: name={name}")
    return found


def _model(registry: PluginRegistry, info: PluginInfo) -> type[Settings] | None:
    from penstock.plugins import OBSERVER

    return None if info.kind == OBSERVER else registry.settings_model(info.kind, info.name)


def _print_info(info: PluginInfo, rows: list[tuple[str, str, str, str]]) -> None:
    typer.echo(f"{info.name} - {info.summary}" if info.summary else info.name)
    typer.echo(f"kind {info.kind}, version {info.version or '-'}, SPI {info.spi_version}, from {info.origin}")
    if info.capabilities:
        typer.echo("\ncapabilities:")
        for capability, value in info.capabilities.items():
            typer.echo(f"  {capability} = {_plain(value)}")
    if rows:
        typer.echo(f"\nconfiguration keys, in section [{info.kind}]:")
        for key, kind, default, text in rows:
            typer.echo(
                f"  {key}: {kind} (default {default})"
                if default != "required"
                else f"  {key}: {kind} (required)"
            )
            if text:
                typer.echo(f"      {text}")
    elif info.capabilities:
        typer.echo("\nno configuration keys")


def _plain(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _capabilities_line(capabilities: Any) -> str:
    """What is claimed: flags that are true by name, other values as name=value."""
    claimed = []
    for name, value in capabilities.items():
        if isinstance(value, bool):
            claimed.extend([name] if value else [])
        else:
            claimed.append(f"{name}={value}")
    return ",".join(claimed) or "-"


def _print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Plain columns, so that grep and awk can read them; the last is as long as it likes."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
