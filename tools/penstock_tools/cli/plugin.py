"""Begin a plugin of your own."""

from __future__ import annotations

__all__ = ("app",)

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def _group() -> None:
    """Keep ``new`` a subcommand though it is the only one."""


@app.command("new")
def new_plugin(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND",
            help="What it is: allocator, object_store, metadata_log, wal, log_cache, block_cache, "
            "lake_compactor, partitioner, or observer.",
        ),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What configurations will call it.")],
    directory: Annotated[
        Path | None,
        typer.Option(
            "--dir",
            metavar="DIR",
            help="Where to write it; penstock-NAME here if left out.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a package with a plugin that works: code, tests, a README and a CI file.

    It passes the first level of conformance as it is; make it yours from there.
    """
    from penstock.plugins import OBSERVER
    from penstock_tools.scaffold import write_package

    kind = kind.replace("-", "_")
    place = directory or Path(f"penstock-{name.replace('_', '-')}")
    for file in write_package(kind, name, place):
        typer.echo(file)
    proof = f"conformance run {kind} --plugin {name}" if kind != OBSERVER else f"plugins info {name}"
    typer.echo(f"\nnext: cd {place} && pip install -e '.[test]' && pytest && penstock {proof}")
