"""``penstock config``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.config import load_config


def test_check_of_the_defaults_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check"]) == 0
    out = capsys.readouterr().out
    assert "configuration is valid: defaults, environment and command line" in out
    assert "wal wal_block" in out


def test_check_refuses_a_wrong_key_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text("[broker]\nnode = 1\n")
    assert main(["config", "check", "-c", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"penstock: {path}:2: broker.node is no configuration key, the nearest key is broker.node_id: value=1\n"
    )


def test_check_looks_into_plugins_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "--set", "object_store.ulr=memory://"]) == 2
    assert (
        "object_store.ulr is no configuration key, the nearest key is object_store.url"
        in capsys.readouterr().err
    )
    assert main(["config", "check", "--set", "wal.plugin=wal_blok"]) == 2
    assert "the nearest is wal_block" in capsys.readouterr().err


def test_options_work_before_and_after_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text("[broker]\nnode_id = 7\n")
    for arguments in (
        ["-c", str(path), "--set", "topics.partitions=3", "config", "explain", "--json", "broker.node_id"],
        ["config", "explain", "-c", str(path), "--json", "broker.node_id"],
    ):
        assert main(arguments) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["key"], row["value"], row["origin"]) == ("broker.node_id", "7", f"{path}:2")


def test_variable_of_the_environment_acts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PENSTOCK__MEMORY__LIMIT", "1GiB")
    assert main(["config", "explain", "memory.limit"]) == 0
    assert capsys.readouterr().out.startswith(
        "memory.limit = 1GiB  (PENSTOCK__MEMORY__LIMIT)\n    Resident memory"
    )


def test_explain_without_a_key_shows_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain"]) == 0
    out = capsys.readouterr().out
    assert "listener.bind = 127.0.0.1:9092  (default)" in out
    assert "object_store.url = " in out
    assert "allocator.limit = 352MiB  (memory.limit - memory.reserve)" in out


def test_explain_of_an_unknown_key_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", "listener.bindd"]) == 2
    assert capsys.readouterr().err == (
        "penstock: there is no such configuration key, the nearest is listener.bind: key=listener.bindd\n"
    )


def test_explain_masks_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "explain", "object_store", "--set", "object_store.options.secret=hunter2"]) == 0
    out = capsys.readouterr().out
    assert "***" in out
    assert "hunter2" not in out


def test_init_writes_a_file_that_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "penstock.toml"
    assert main(["config", "init", "--cloud", "local", "-o", str(path)]) == 0
    assert load_config(path).tree == load_config().tree
    assert "# url = " in path.read_text()
    assert main(["config", "check", "-c", str(path)]) == 0
    capsys.readouterr()


def test_init_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "init"]) == 0
    assert "\n[listener]\n" in capsys.readouterr().out


def test_init_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text("mine")
    assert main(["config", "init", "-o", str(path)]) == 2
    assert "file is there already" in capsys.readouterr().err
    assert path.read_text() == "mine"


def test_init_for_another_cloud_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "init", "--cloud", "aws"]) == 2
    assert "those there are: local: cloud='aws'" in capsys.readouterr().err


def test_reference_is_replaced_between_its_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "doc.md"
    path.write_text("before\n<!-- reference: begin -->\nstale\n<!-- reference: end -->\nafter\n")
    assert main(["config", "reference", "--update", str(path)]) == 0
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| `bind` |" in text
    assert "stale" not in text
    path.write_text("no marks")
    assert main(["config", "reference", "--update", str(path)]) == 2
    assert "no reference marks" in capsys.readouterr().err
