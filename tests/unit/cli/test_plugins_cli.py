"""``penstock plugins``, the root command, and how errors end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import penstock
from penstock.errors import FullError, InvariantError, NotFoundError
from penstock.wire.native_code import status
from penstock_tools.cli import main

VERSION_LINES = f"penstock {penstock.__version__}\nrecords are checked in {status()}\n"

PLUGIN = '''
"""An object store made by a test."""
from pydantic import Field
from penstock.hookspecs import hookimpl
from penstock.spi import Duration, Settings
from penstock.spi.object_store import ObjectStoreCapabilities, ObjectStoreSpec

class MySettings(Settings):
    """Settings."""
    bucket: str = Field(description="Name of the bucket.")
    patience: Duration = Field(default=1500, description="How long to wait.")

@hookimpl
def penstock_register_object_store():
    return ObjectStoreSpec(
        name="{name}", summary="keeps objects nowhere", settings=MySettings, version="3.1",
        capabilities=ObjectStoreCapabilities(put_if_absent=True), open=lambda settings, services: None,
    )
'''


@pytest.fixture(autouse=True)
def _no_installed_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about the command, not about what is installed."""
    monkeypatch.setenv("PENSTOCK_LOAD_PLUGINS", "")


@pytest.fixture
def plugins_dir(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory with one plugin, whose name nobody else in this process uses."""
    directory = tmp_path / "plugins"
    directory.mkdir()
    name = f"store_{request.node.name}"
    (directory / f"{name}.py").write_text(PLUGIN.format(name=name))
    yield directory
    sys.modules.pop(name, None)


def test_list_shows_every_column(plugins_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "list", "--plugins-dir", str(plugins_dir)]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "KIND", "VERSION", "SPI", "CAPABILITIES", "ORIGIN"]
    assert row.split() == [
        "store_test_list_shows_every_column",
        "object_store",
        "3.1",
        "2",
        "put_if_absent,ordered_listing,durable,durability_domain=host,requests_max=64",
        str(plugins_dir / "store_test_list_shows_every_column.py"),
    ]


def test_list_as_json(plugins_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugins-dir", str(plugins_dir), "plugins", "list", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "store_test_list_as_json"
    assert row["spi_version"] == 2
    assert row["capabilities"]["put_if_absent"] is True
    assert set(row) == {"name", "kind", "version", "spi_version", "capabilities", "origin", "summary"}


def test_info_shows_keys_with_type_default_and_help(
    plugins_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "store_test_info_shows_keys_with_type_default_and_help"
    assert main(["plugins", "info", name, "--plugins-dir", str(plugins_dir)]) == 0
    out = capsys.readouterr().out
    assert f"{name} - keeps objects nowhere" in out
    assert "compare_and_swap = no" in out
    assert "bucket: a string (required)" in out
    assert "patience: a duration like 250ms, 30s or 7d (default 1500ms)" in out
    assert "How long to wait." in out


def test_info_as_json(plugins_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["plugins", "info", "store_test_info_as_json", "--json", "--plugins-dir", str(plugins_dir)]) == 0
    )
    document = json.loads(capsys.readouterr().out)
    assert document["settings"][0] == {
        "key": "bucket",
        "type": "a string",
        "default": "required",
        "help": "Name of the bucket.",
    }


def test_info_of_an_unknown_plugin_names_the_nearest(
    plugins_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugins", "info", "store_test_info_of_an_unknwn", "--plugins-dir", str(plugins_dir)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(
        "penstock: no plugin has this name, the nearest is store_test_info_of_an_unknown_plugin"
    )
    assert captured.err.count("\n") == 1


def test_list_names_what_cannot_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PENSTOCK_LOAD_PLUGINS", "broken_for_test")
    (tmp_path / "broken_for_test.py").write_text("import no_such_module_anywhere")
    monkeypatch.syspath_prepend(tmp_path)
    info = tmp_path / "broken_for_test-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-for-test\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[penstock.plugins]\nbroken_for_test = broken_for_test\n")
    assert main(["plugins", "list"]) == 1
    assert (
        "broken_for_test can't be loaded: plugin needs a module that isn't installed"
        in capsys.readouterr().err
    )


def test_missing_plugins_directory_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--plugins-dir", "/nowhere", "plugins", "list"]) == 2
    assert capsys.readouterr().err == "penstock: plugins directory not found: path=/nowhere\n"


# The root command


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == VERSION_LINES


def test_help_lists_the_commands_without_importing_them() -> None:
    program = (
        "import sys; from penstock_tools.cli import main; main(['--help']); "
        "heavy = {'penstock.broker', 'penstock_tools.cli.plugins', 'penstock_tools.cli.config', 'pydantic'}; "
        "heavy &= set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Show the plugins that are installed." in result.stdout


def test_every_command_has_a_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    from penstock_tools.cli import _app

    names = _app._Commands(name="penstock").list_commands(None)
    assert {"plugins", "config"} <= set(names)
    for name in names:
        assert _app._first_line(name).endswith("."), name
        assert main([name, "--help"]) == 0, name
    capsys.readouterr()


def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugns"]) == 2
    assert "plugins" in capsys.readouterr().err


def test_module_runs_as_a_program() -> None:
    result = subprocess.run([sys.executable, "-m", "penstock", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, VERSION_LINES)


def test_ctrl_c_while_the_command_is_imported_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "penstock_tools.cli._app", Interrupted("penstock_tools.cli._app"))
    assert main([]) == 130


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFoundError("topic not found: topic=t"), 2),
        (FullError("disk is full: path=/x"), 1),
        (ExceptionGroup("tasks", [ExceptionGroup("inner", [NotFoundError("topic not found: topic=t")])]), 2),
        (KeyboardInterrupt(), 130),
        (BaseExceptionGroup("tasks", [KeyboardInterrupt()]), 130),
    ],
)
def test_error_ends_in_one_sentence_and_its_code(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> int:
        raise error

    monkeypatch.setattr("penstock_tools.cli._app.run", fail)
    assert main([]) == code
    err = capsys.readouterr().err
    assert err.count("\n") == (0 if code == 130 else 1)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "error",
    [
        InvariantError("broken"),
        ZeroDivisionError(),
        ExceptionGroup("x", [NotFoundError("n"), ValueError("bug")]),
    ],
)
def test_bug_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object) -> int:
        raise error

    monkeypatch.setattr("penstock_tools.cli._app.run", fail)
    with pytest.raises(type(error)):
        main([])
