"""The tutorials, one per kind of plugins, work as they are written: these pages are the source of the test."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conformance.new_packages import results_of, tell_python
from tests.patience import HANG_S

from penstock_tools.cli import main
from penstock_tools.scaffold import KINDS

TUTORIALS = Path(__file__).parents[2] / "docs" / "tutorials"

#: Of the suite that a page runs, what its change is about; all of level 1 is run on what ``plugin new`` writes.
_CLAUSES = {
    "allocator": "pinned or account",
    "object_store": "range or absent",
    "metadata_log": "gaps or entry",
    "wal": "order or trim",
    "log_cache": "run or offset",
    "block_cache": "readahead or loads",
    "partitioner": "range or vectors",
    "lake_compactor": "visible or policy",
}


def page(kind: str) -> str:
    return (TUTORIALS / f"{kind.replace('_', '-')}.md").read_text()


def commands(text: str) -> list[list[str]]:
    blocks = re.findall(r"^```console\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [shlex.split(line[2:]) for block in blocks for line in block.splitlines() if line[:2] == "$ "]


def follow_edits(text: str, folder: Path) -> int:
    """Do the replacements of a page; how many."""
    pairs = re.findall(
        r'^```text title="([^"]+)" replace\n(.*?)^```\n\n```text title="([^"]+)" with\n(.*?)^```',
        text,
        re.DOTALL | re.MULTILINE,
    )
    for file, old, same, new in pairs:
        assert file == same
        code = (folder / file).read_text()
        assert code.count(old.rstrip("\n")) == 1, f"not there once: {old}"
        (folder / file).write_text(code.replace(old.rstrip("\n"), new.rstrip("\n")))
    assert len(pairs) == text.count("replace\n")
    return len(pairs)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What a reader has after the second section of each page."""
    found: dict[str, Path] = {}
    folder, before = tmp_path_factory.mktemp("tutorials"), Path.cwd()
    os.chdir(folder)
    try:
        for kind in KINDS:
            text = page(kind)
            begin = commands(text)[0]
            assert begin[:4] == ["penstock", "plugin", "new", kind]
            assert main(begin[1:]) == 0
            found[kind] = folder / f"penstock-{begin[4].replace('_', '-')}"
            assert follow_edits(text, found[kind]) >= 1
            tell_python(found[kind])
    finally:
        os.chdir(before)
    return found


@pytest.fixture(scope="module")
def own_tests(packages: dict[str, Path]) -> dict[str, str]:
    """What ``pytest`` says in each package, without the suite."""
    return results_of(list(packages.values()), "-k", "not contract")


@pytest.fixture
def installed(packages: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(packages[kind])
    monkeypatch.chdir(packages[kind])
    yield packages[kind]
    for name in [name for name in sys.modules if name.partition(".")[0] == module_of(packages[kind])]:
        del sys.modules[name]


def module_of(package: Path) -> str:
    return package.name.replace("-", "_")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tutorial_works_as_written(
    kind: str, installed: Path, own_tests: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = page(kind)
    new, install, test, prove, check = commands(text)
    assert install == ["pip", "install", "-e", ".[test]"]
    assert test == ["pytest"]
    mine = {name: fault for name, fault in own_tests.items() if name.startswith(f"{installed.name}.")}
    assert [fault for fault in mine.values() if fault] == []
    assert len(mine) >= 1

    if kind == "observer":
        assert main(prove[1:]) == 0
        assert "kind observer" in capsys.readouterr().out
    else:
        narrowed = ["--level", "1", "-k", _CLAUSES[kind], "--deadline", str(HANG_S)]
        assert main([*prove[1:], *narrowed]) == 0, capsys.readouterr().out
        report = json.loads((installed / "report.json").read_text())
        assert report["result"] == "pass"
        assert report["plugin"]["name"] == new[4]
        assert report["plugin"]["origin"] == f"{installed.name} 0.1.0"

    configuration = re.search(r'^```toml title="penstock.toml"\n(.*?)^```', text, re.DOTALL | re.MULTILINE)
    assert configuration is not None
    (installed / "penstock.toml").write_text(configuration[1])
    assert main(check[1:]) == 0, capsys.readouterr().err


def test_every_kind_has_a_tutorial() -> None:
    pages = {path.stem.replace("-", "_") for path in TUTORIALS.glob("*.md")} - {"README"}
    assert pages == set(KINDS)
    for kind in KINDS:
        assert f"]({kind.replace('_', '-')}.md)" in (TUTORIALS / "README.md").read_text()


def test_tutorials_are_short() -> None:
    assert all(len(page(kind).splitlines()) <= 110 for kind in KINDS)
