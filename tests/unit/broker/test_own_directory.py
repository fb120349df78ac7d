"""The lock of the data directory: ours is taken over, what somebody else put there stays as it is."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from penstock.broker import DirectoryInUseError
from penstock.broker._process import own_directory
from penstock.errors import ConfigError
from penstock.files import ACCESSES
from penstock_tools.cli import lake, main

OWNER = ACCESSES["owner"]


def test_the_directory_and_its_lock_are_private_and_name_the_process(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with own_directory(tmp_path / "data", OWNER):
            lock = tmp_path / "data/penstock.lock"
            assert lock.read_bytes() == b"%d" % os.getpid()
            assert stat.S_IMODE(lock.stat().st_mode) == 0o600
            assert stat.S_IMODE(lock.parent.stat().st_mode) == 0o700
            with (
                pytest.raises(ConfigError, match=f"another broker runs .*pid={os.getpid()}"),
                own_directory(tmp_path / "data", OWNER),
            ):
                pass
    finally:
        os.umask(before)


@pytest.mark.parametrize("content", [b"", b"4194304", b"17\n", bytes(5), b"41\0\0"])
def test_the_lock_of_a_dead_broker_is_taken(tmp_path: Path, content: bytes) -> None:
    """Also after a power failure, when a file system may have its size and zeros in place of what was written."""
    lock = tmp_path / "penstock.lock"
    lock.write_bytes(content)
    with own_directory(tmp_path, OWNER):
        assert lock.read_bytes() == b"%d" % os.getpid()


@pytest.mark.parametrize("foreign", [b"a user's notes", b"12 monkeys", b"1" * 4096])
@pytest.mark.parametrize("way", ["itself", "symbolic link"])
def test_a_file_that_is_no_lock_is_never_truncated(tmp_path: Path, foreign: bytes, way: str) -> None:
    (tmp_path / "notes").write_bytes(foreign)
    lock = tmp_path / "penstock.lock"
    if way == "itself":
        (tmp_path / "notes").rename(lock)
    else:
        lock.symlink_to(tmp_path / "notes")
    with (
        pytest.raises(ConfigError, match=f"left as it is; move it away: path={lock}"),
        own_directory(tmp_path, OWNER),
    ):
        pass
    assert lock.read_bytes() == foreign


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_can_be_no_lock_is_one_clear_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "penstock.lock")
    with pytest.raises(ConfigError, match="no regular file"), own_directory(tmp_path, OWNER):
        pass


def test_a_directory_that_cant_be_made_is_a_mistake_in_the_configuration(tmp_path: Path) -> None:
    """A restart wouldn't cure it."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConfigError, match=r"can't be used.*Not a directory"),
        own_directory(tmp_path / "file/x", OWNER),
    ):
        pass


def test_where_nothing_can_be_locked_a_broker_starts_and_what_is_only_done_without_one_isnt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maintenance as the table's last owner would fence the broker that runs; so that one is asked."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with own_directory(tmp_path, OWNER):
        pass
    (tmp_path / "penstock.lock").write_bytes(b"17")
    with (
        pytest.raises(DirectoryInUseError, match=f"another broker may run .*: path={tmp_path}"),
        own_directory(tmp_path, OWNER, alone=True),
    ):
        pass
    assert (tmp_path / "penstock.lock").read_bytes() == b"17"
    asked: list[object] = []

    def ask(_: object) -> SimpleNamespace:
        asked.append(_)
        return SimpleNamespace(figures={}, dry_run=False, saved_bytes=0)

    monkeypatch.setattr(lake, "run", ask)
    elsewhere = tmp_path / "none"  # as on another host, with the broker's configuration
    assert main(["lake", "maintain", "orders", "--set", f"broker.data_dir={elsewhere}"]) == 0
    assert not elsewhere.exists()
    assert main(["lake", "maintain", "orders", "--set", f"broker.data_dir={tmp_path}"]) == 0
    assert len(asked) == 2
