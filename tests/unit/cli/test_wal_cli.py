"""``penstock wal`` where nothing is left to show."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock_tools.cli import main


@pytest.mark.parametrize("command", ["check", "inspect"])
def test_a_log_without_a_valid_header_is_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Exit code 1, as of any other damage: 2 would say that the command was wrong."""
    wal = tmp_path / "wal" / "penstock.wal"
    wal.parent.mkdir()
    wal.write_bytes(b"x" * 2**16)
    assert main(["wal", command, "--set", f"broker.data_dir={tmp_path}"]) == 1
    told = capsys.readouterr()
    assert told.err.startswith("penstock: neither header slot is valid")
    assert told.err.count("\n") == 1
