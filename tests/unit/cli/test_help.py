"""What ``--help`` of all commands has in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from penstock_tools.cli._app import app


def parameters(command: Any, context: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield from ((path, each) for each in command.params if not getattr(each, "hidden", False))
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from parameters(command.get_command(context, name), context, f"{path} {name}")


def test_each_value_has_a_name_and_more_of_them_are_no_part_of_it() -> None:
    """Without one the help shows a parameter's own name, ``{kind}`` beside ``{TOPIC}``, or its type in Python."""
    root = get_command(app)
    context = root.make_context("penstock", ["--help"], resilient_parsing=True)
    wrong = [
        f"{path} {each.name}: {each.metavar}"
        for path, each in parameters(root, context, "penstock")
        if not getattr(each, "is_flag", False)
        if not each.metavar or each.metavar.endswith("...")
    ]
    assert wrong == []
