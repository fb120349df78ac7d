"""Every error code that this broker answers stands in docs/error-codes.md, with what each client makes of it."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import aiokafka.errors
import pytest

from penstock.api.errors import OPERATING_ERRORS, error_code_of
from penstock.errors import CorruptError, InvariantError, PenstockError
from penstock.log.errors import KafkaError
from penstock.wire.error_codes import ErrorCode
from penstock.wire.records import BatchError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # kafka-python uses what newer Pythons will drop
    import kafka.errors

ROOT = Path(__file__).resolve().parents[3]
KERNEL = ROOT / "kernel/penstock"
PAGE = ROOT / "docs/error-codes.md"
#: Who answers. The in-process client and the tools read codes instead.
ROOMS = ("api", "coordinator", "log", "server", "stream", "wire")
CLIENTS = ("librdkafka", "Java", "KafkaJS", "kafka-python", "aiokafka", "franz-go")
WORDS = {"again", "acts", "final", "-"}


def answered() -> Iterator[tuple[str, str]]:
    """(code, module) wherever a code is named, by its enumeration or as a constant of that name."""
    for room in ROOMS:
        for path in sorted((KERNEL / room).rglob("*.py")):
            if path.name == "error_codes.py" or "messages" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = ""
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    name = node.attr if node.value.id == "ErrorCode" else ""
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    name = node.target.id
                elif isinstance(node, ast.Name):
                    name = node.id
                if name in ErrorCode.__members__ and name != "NONE":
                    yield name, path.name


def rows() -> dict[str, list[str]]:
    """The cells of each code's row."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        match = re.match(r"\| `([A-Z_]+)` (-?\d+) \|(.*)\|$", line)
        if match is not None:
            assert match[1] not in found, f"{match[1]} is there twice"
            assert int(match[2]) == ErrorCode[match[1]], match[1]
            found[match[1]] = [cell.strip().replace("\\*", "*") for cell in match[3].split("|")]
    return found


def test_the_number_of_a_code_stands_in_one_table() -> None:
    """``NAME = 3`` of a code anywhere else, as a constant or in an enumeration, is a second table of codes."""
    second = []
    for path in sorted(KERNEL.rglob("*.py")):
        if path.name == "error_codes.py" or "messages" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            is_number = isinstance(node.value, ast.Constant) and type(node.value.value) is int
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            if is_number and names & (set(ErrorCode.__members__) - {"NONE"}):
                second.append(f"{path.relative_to(KERNEL)}:{node.lineno}")
    assert second == [], "use penstock.wire.error_codes"


def test_every_code_that_is_answered_is_in_the_table() -> None:
    codes = dict(answered())
    assert len(codes) > 50
    missing = {code: module for code, module in codes.items() if code not in rows()}
    assert not missing, f"say in {PAGE.name} what each client does with them"


def test_the_table_says_something_of_every_client() -> None:
    header = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if "librdkafka |" in line)
    assert tuple(cell.strip() for cell in header.strip("|").split("|"))[1:-1] == CLIENTS
    for code, cells in rows().items():
        assert len(cells) == len(CLIENTS) + 1, code
        assert all(cell.rstrip("*") in WORDS for cell in cells[:-1]), code
        assert cells[-1], f"where and why? {code}"
        assert any("*" in cell for cell in cells[:-1]) <= ("*" in cells[-1]), f"explain the star: {code}"


@pytest.mark.parametrize(
    ("client", "module"), [("kafka-python", kafka.errors), ("aiokafka", aiokafka.errors)]
)
def test_the_table_agrees_with_the_clients_that_are_installed(client: str, module: ModuleType) -> None:
    """What isn't marked with a star is what the client's own table of errors says of a code."""
    retriable = {
        getattr(kind, "errno", None): bool(getattr(kind, "retriable", False))
        for kind in vars(module).values()
        if isinstance(kind, type)
    }
    for code, cells in rows().items():
        word = cells[CLIENTS.index(client)]
        if word == "again":
            assert retriable.get(int(ErrorCode[code])), f"{client} doesn't retry {code}"
        elif word == "final":
            assert not retriable.get(int(ErrorCode[code])), f"{client} retries {code}"


def test_an_operating_error_is_one_with_a_code_of_its_own_and_any_other_is_a_bug() -> None:
    for kind in OPERATING_ERRORS:
        assert kind in {KafkaError, BatchError} or error_code_of(kind("x")) != ErrorCode.UNKNOWN_SERVER_ERROR
    for bug in (CorruptError("x"), InvariantError("x"), PenstockError("x"), ValueError("x")):
        assert not isinstance(bug, OPERATING_ERRORS)
        assert error_code_of(bug) == ErrorCode.UNKNOWN_SERVER_ERROR
