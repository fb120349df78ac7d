"""``penstock plugin new``: names, places, and what is in the files."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from penstock.errors import PluginError
from penstock_tools.cli import main
from penstock_tools.scaffold import KINDS, check_name, package_files, write_package

KERNEL_FOR_PLUGINS = {"spi", "hookspecs", "errors", "wal", "files", "threads"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_package_of_the_same_form(kind: str) -> None:
    files = package_files(kind, "tape")
    expected = {"pyproject.toml", "README.md", ".gitignore", ".github/workflows/ci.yml"}
    expected |= {"penstock_tape/__init__.py", "penstock_tape/py.typed", "tests/test_tape.py"}
    assert set(files) == expected | ({"tests/test_conformance.py"} if kind != "observer" else set())
    project = tomllib.loads(files["pyproject.toml"])
    assert project["project"]["name"] == "penstock-tape"
    assert project["project"]["entry-points"] == {"penstock.plugins": {"tape": "penstock_tape"}}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_template_is_left_in_a_package(kind: str) -> None:
    for path, text in package_files(kind, "tape").items():
        assert not re.search(r'template|"reference"|reference\._|penstock_tools', text), path


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_imports_only_what_a_plugin_may(kind: str) -> None:
    tree = ast.parse(package_files(kind, "tape")["penstock_tape/__init__.py"])
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    rooms = {name.split(".")[1] for name in names if name.startswith("penstock.")}
    assert rooms <= KERNEL_FOR_PLUGINS
    assert not any(name.startswith("penstock_") for name in names)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("My-WAL", "for instance my_wal"),
        ("9lives", "for instance lives"),
        ("", "lowercase letters"),
        ("a__b", "for instance a_b"),
        ("wal_", "for instance wal"),
        ("../up", "for instance up"),
        ("import", "lowercase letters"),
        ("x" * 51, "up to 50"),
        ("wal_block", "is installed"),
        ("tools", "is installed"),
    ],
)
def test_a_bad_name_is_told_in_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence) as raised:
        check_name(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("present", ["file", "full directory"])
def test_what_is_there_is_left_alone(present: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    if present == "file":
        place.write_text("mine")
    else:
        place.mkdir()
        (place / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PluginError, match="is there already, choose another with --dir"):
        write_package("wal", "tape", place)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_is_taken(tmp_path: Path) -> None:
    written = write_package("wal", "tape", tmp_path)
    assert tmp_path / "pyproject.toml" in written


def test_the_command_tells_the_files_and_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugin", "new", "block-cache", "big_cache"]) == 0
    shown = capsys.readouterr().out
    assert "penstock-big-cache/penstock_big_cache/__init__.py\n" in shown
    assert "penstock conformance run block_cache --plugin big_cache\n" in shown
    assert (tmp_path / "penstock-big-cache" / "README.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tape_drive", "tape"], "there is no such kind of plugins, choose from allocator"),
        (["wal", "No Name"], "for instance no_name"),
        (["wal", "tape", "--dir", "/proc/nowhere/tape"], "the package can't be written"),
    ],
)
def test_a_command_that_cant_be_done_says_so_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugin", "new", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("penstock: ")
    assert error.count("\n") == 1
