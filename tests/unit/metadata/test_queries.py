"""What other rooms may ask of the image: its named queries, and nothing that would change it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import penstock
import penstock_tools
from penstock.metadata.table import Table

KERNEL = Path(penstock.__file__).parent
TOOLS = Path(penstock_tools.__file__).parent
TABLES = frozenset({"nodes", "topics", "streams", "objects", "producer_ids"})
#: What changes a table, in the part "for the fold" of its class.
CHANGES = frozenset(
    {
        "put",
        "drop",
        "grown",
        "change",
        "cut",
        "uncut",
        "note_wal_end",
        "give_up",
        "move_wal",
        "add",
        "open",
        "trim",
        "prepare",
    }
    | {"release", "take"}
)


def _uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line, and what is done to a table of an image."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Attribute(value=image, attr=table), attr=used) if table in TABLES:
                if _is_image(image) and (used in CHANGES or used.startswith("_")):
                    yield node.lineno, f".{table}.{used}"
            case ast.Subscript(value=ast.Attribute(value=image, attr=table)) if table in TABLES:
                if _is_image(image):
                    yield node.lineno, f".{table}[...]"
            case ast.ImportFrom(module="penstock.metadata.state" | "penstock.metadata.table", lineno=line):
                yield line, "import of what the fold works with"


def _is_image(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute) and (
        node.id if isinstance(node, ast.Name) else node.attr
    ).endswith("image")


def test_outside_of_its_room_the_image_is_asked_by_named_queries_only() -> None:
    found = []
    for path in sorted([*KERNEL.rglob("*.py"), *TOOLS.rglob("*.py")]):
        if path.parent.name != "commands" and path.parent != KERNEL / "metadata":
            text = path.read_text(encoding="utf-8")
            if "image" in text or "penstock.metadata" in text:  # else there is none to find
                found += [f"{path}:{line} {what}" for line, what in _uses(ast.parse(text))]
    assert found == []


def test_the_check_finds_raw_tables() -> None:
    text = "image.topics[b'']\nself._metadata.image.streams._rows\nmetadata.image.objects.put(1, None)\n"
    assert len(list(_uses(ast.parse(text)))) == 3
    assert not list(_uses(ast.parse("image.topics.get(b'')\nself.streams[1]\n")))


def test_a_table_has_no_other_door() -> None:
    """Rows are looked up by name: a table is no mapping that could be handed on."""
    for door in ("__getitem__", "__setitem__", "__delitem__", "__iter__", "items", "values", "keys"):
        assert not hasattr(Table, door), door
    assert {name for name in vars(Table) if not name.startswith("_")} - CHANGES == {
        "all",
        "ids",
        "is_cut",
        "noun",
        "require",
    }
