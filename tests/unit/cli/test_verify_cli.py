"""``penstock verify`` where no broker's data are."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock_tools.cli import main


def test_a_directory_that_is_not_there_is_broken_and_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typing error in the directory must not read as an intact backup."""
    place = tmp_path / "no-such-backup"
    assert main(["verify", "--set", f"broker.data_dir={place}"]) == 1
    output = capsys.readouterr().out
    assert "there is no metadata log" in output
    assert "not intact" in output
    assert not place.exists()
