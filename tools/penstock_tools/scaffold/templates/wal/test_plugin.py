"""What is particular to a log in a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import FencedError
from penstock.files import ACCESSES
from penstock.wal import Cursor
from penstock_tools.scaffold.templates.wal.plugin import Directory


def test_groups_are_there_whole_and_by_position(tmp_path: Path) -> None:
    medium = Directory(tmp_path, ACCESSES["owner"])
    owner = medium.take_over(1)
    medium.write(owner, 7, [b"sev", b"en"])
    medium.write(owner, 0, [b"zero"])
    (tmp_path / "00000000000000000009.group.unfinished").write_bytes(b"ni")  # a crash came in between
    assert medium.positions() == [0, 7]
    assert medium.read(7) == b"seven"
    medium.close()


def test_a_newer_owner_lets_an_older_one_write_nothing(tmp_path: Path) -> None:
    older, newer = (Directory(tmp_path, ACCESSES["owner"]) for _ in range(2))
    owner = older.take_over(1)
    newer.take_over(2)
    with pytest.raises(FencedError):
        older.write(owner, 0, [b"late"])
    assert newer.positions() == []
    older.close()
    newer.close()


def test_trimming_moves_the_start_before_it_deletes(tmp_path: Path) -> None:
    medium = Directory(tmp_path, ACCESSES["owner"])
    owner = medium.take_over(1)
    medium.write(owner, 0, [b"dropped"])
    medium.write(owner, 7, [b"kept"])
    trimmed = medium.trim(owner, Cursor(7, 1, 99))
    assert Directory.owner(tmp_path) == trimmed
    assert medium.positions() == [7]
    medium.close()
