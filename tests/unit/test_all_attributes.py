"""Every public module says what it offers."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
ROOTS = [REPOSITORY / "kernel", REPOSITORY / "conformance", *sorted((REPOSITORY / "plugins").glob("*"))]
#: Generated, one class per message version; the registry next to them is the interface.
GENERATED = "wire/messages/"
#: What pytest reads: nobody imports from it.
PYTEST_FILES = re.compile(r"test_\w+\.py|conftest\.py|pytest_plugin\.py")


def public_modules() -> dict[str, list[ast.stmt]]:
    """By path, what is in modules whose path has no private part and which define anything."""
    found = {}
    for root in ROOTS:
        for path in sorted(root.glob("penstock*/**/*.py")):
            relative = path.relative_to(root)
            private = any(part.startswith("_") and part != "__init__.py" for part in relative.parts)
            if not private and not PYTEST_FILES.fullmatch(path.name) and GENERATED not in relative.as_posix():
                body = ast.parse(path.read_text()).body
                if _defines(body):
                    found[path.relative_to(REPOSITORY).as_posix()] = body
    return found


def _defines(body: list[ast.stmt]) -> bool:
    """Whether there is more than a docstring and ``from __future__``."""
    return any(
        not (isinstance(node, ast.Expr) or (isinstance(node, ast.ImportFrom) and node.module == "__future__"))
        for node in body
    )


def names_bound(nodes: list[ast.stmt]) -> set[str]:
    """Names that the statements bind, also inside ``if`` and ``try``."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                names.update(item.id for item in ast.walk(target) if isinstance(item, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            handlers = node.handlers if isinstance(node, ast.Try) else []
            names |= names_bound(
                [*node.body, *node.orelse, *(inner for handler in handlers for inner in handler.body)]
            )
    return names


def test_all_is_a_tuple_of_names_that_are_there() -> None:
    modules = public_modules()
    assert "kernel/penstock/errors.py" in modules
    assert "plugins/allocator_sequential/penstock_allocator_sequential/__init__.py" in modules
    for module, body in modules.items():
        found = [
            node.value
            for node in body
            if isinstance(node, ast.Assign)
            and [ast.unparse(target) for target in node.targets] == ["__all__"]
        ]
        assert len(found) == 1, f"{module}: a public module has one __all__"
        assert isinstance(found[0], ast.Tuple), module
        names = ast.literal_eval(found[0])
        assert len(set(names)) == len(names), module
        assert set(names) <= names_bound(body), module
        assert not [name for name in names if name.startswith("_") and name != "__version__"], module
