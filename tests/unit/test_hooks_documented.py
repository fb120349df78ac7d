"""docs/hooks.md and the hooks say the same, and each hook has a test of its own."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from penstock import hookspecs
from penstock.spi import events
from penstock.spi.plugin import PluginSpec

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "hooks.md").read_text()
HOOKS: dict[str, Any] = {
    name: hook for name, hook in vars(hookspecs).items() if name.startswith(f"{hookspecs.HOOK_NAMESPACE}_")
}

_ROW = re.compile(r"^\| `(\w+)` \| `([^`]+)` \| (.*) \|$", re.MULTILINE)


def signature(name: str) -> str:
    """The hook as its source spells it."""
    return f"{name}{inspect.signature(HOOKS[name])}".replace("'", "")


def rows(section: str) -> list[tuple[str, str]]:
    """(name, type) of each row of the section's table that explains itself."""
    return [(name, kind) for name, kind, text in _ROW.findall(section) if text.strip()]


def fields(model: Any) -> list[tuple[str, str]]:
    """(name, type) of each field of a dataclass."""
    return [(item.name, str(item.type)) for item in dataclasses.fields(model)]


def problems(document: str) -> Iterator[str]:
    """What the document and the hooks disagree about."""
    sections = {}
    for section in re.split(r"^### ", document, flags=re.MULTILINE)[1:]:
        head, _, body = section.partition("\n")
        sections[head.strip("` ")] = re.split(r"^## ", body, flags=re.MULTILINE)[0]
    expected = {signature(name): name for name in HOOKS}
    yield from (f"documented, but no hook: {head}" for head in sections.keys() - expected.keys())
    for head, name in expected.items():
        if head not in sections:
            yield f"hook is not documented under its signature: {head}"
            continue
        if (inspect.getdoc(HOOKS[name]) or "?") not in sections[head]:
            yield f"the hook's own sentence is missing: {name}"
        arguments = inspect.signature(HOOKS[name]).parameters.values()
        wanted = [
            field for argument in arguments for field in fields(getattr(events, str(argument.annotation)))
        ]
        if rows(sections[head]) != wanted:
            yield f"fields differ: {name}: documented={rows(sections[head])} declared={wanted}"
    common = document.partition("## Hooks that register a plugin")[2].partition("\n### ")[0]
    if rows(common) != fields(PluginSpec):
        yield f"fields of a spec differ: documented={rows(common)} declared={fields(PluginSpec)}"


def test_every_hook_argument_and_field_is_documented() -> None:
    assert list(problems(DOCUMENT)) == []


def test_each_documented_line_is_missed_when_it_is_gone() -> None:
    """The comparison itself works: no heading and no row can be dropped or renamed unseen."""
    lines = [line for line in DOCUMENT.splitlines() if line.startswith("### ") or _ROW.match(line)]
    assert len(lines) > len(HOOKS)
    for line in lines:
        head, _, tail = DOCUMENT.rpartition(line + "\n")
        assert next(problems(head + tail), None), line
        assert next(problems(head + line.replace("`", "`x_", 1) + "\n" + tail), None), line


def test_every_hook_has_one_sentence_of_its_own() -> None:
    for name, hook in HOOKS.items():
        assert re.fullmatch(r"[A-Z][^\n]*\.", inspect.getdoc(hook) or ""), name


def test_every_hook_has_a_test() -> None:
    tree = ast.parse((REPOSITORY / "tests" / "unit" / "test_plugins.py").read_text())
    tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert {f"test_hook_{name}" for name in HOOKS} <= tests
    assert {name for name in tests if name.startswith("test_hook_penstock")} <= {
        f"test_hook_{name}" for name in HOOKS
    }


def test_every_event_belongs_to_a_hook() -> None:
    announced = {
        str(argument.annotation)
        for hook in HOOKS.values()
        for argument in inspect.signature(hook).parameters.values()
    }
    assert announced == set(events.__all__)


def test_names_of_hooks_follow_the_pattern() -> None:
    for name in HOOKS:
        assert re.fullmatch(r"penstock_(register_[a-z_]+|on_[a-z_]+(ed|ing))", name), name
