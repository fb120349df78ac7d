"""What is made is as private as configured, and what is somebody else's is neither followed nor opened."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penstock.files import ACCESSES, create_file, excess_mode, make_directories, open_own

MODES = {"owner": (0o700, 0o600), "group": (0o750, 0o640), "everybody": (0o755, 0o644)}


@pytest.fixture(params=[0, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("access", ACCESSES)
@pytest.mark.usefixtures("umask")
def test_modes_are_those_of_the_configuration_whatever_the_umask(tmp_path: Path, access: str) -> None:
    made = make_directories(tmp_path / "a/b", ACCESSES[access])
    assert made == [tmp_path / "a", tmp_path / "a/b"]
    os.close(create_file(tmp_path / "a/b/c", os.O_WRONLY, ACCESSES[access]))
    assert (mode(tmp_path / "a"), mode(tmp_path / "a/b"), mode(tmp_path / "a/b/c")) == (
        MODES[access][0],
        *MODES[access],
    )
    assert excess_mode(tmp_path / "a/b", ACCESSES[access]) == ""
    assert excess_mode(tmp_path / "a/b/c", ACCESSES[access]) == ""


def test_directories_that_are_there_keep_their_mode_and_what_is_made_in_them_their_group(
    tmp_path: Path,
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    there.chmod(0o2775)
    assert make_directories(there, ACCESSES["group"]) == []
    assert mode(there) == 0o2775
    assert excess_mode(there, ACCESSES["group"]) == "2775"
    make_directories(there / "new", ACCESSES["group"])
    assert mode(there / "new") == 0o2750


def test_a_file_that_is_there_is_never_created_again(tmp_path: Path) -> None:
    for make in ((tmp_path / "it").touch, lambda: (tmp_path / "it").symlink_to(tmp_path / "nothing")):
        make()  # type: ignore[no-untyped-call]
        with pytest.raises(FileExistsError):
            create_file(tmp_path / "it", os.O_RDWR, ACCESSES["owner"])
        (tmp_path / "it").unlink()
    assert list(tmp_path.iterdir()) == []


def test_neither_links_nor_anything_but_files_are_opened(tmp_path: Path) -> None:
    it = tmp_path / "it"
    (tmp_path / "foreign").write_bytes(b"foreign")
    it.symlink_to(tmp_path / "foreign")
    with pytest.raises(OSError, match="symbolic") as caught:
        open_own(it, os.O_RDWR)
    assert caught.value.errno == errno.ELOOP
    it.unlink()
    os.mkfifo(it)
    with pytest.raises(OSError, match="not a regular file"):
        open_own(it, os.O_RDWR)
    it.unlink()
    with pytest.raises(FileNotFoundError):
        open_own(it, os.O_RDWR)


def test_two_threads_that_make_the_same_directory_both_find_it_made(tmp_path: Path) -> None:
    rounds, threads = 200, 4
    barrier = threading.Barrier(threads)

    def make(_: int) -> None:
        try:
            for number in range(rounds):
                barrier.wait()
                make_directories(tmp_path / str(number) / "inner", ACCESSES["owner"])
        except BaseException:
            barrier.abort()  # the others end, too
            raise

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(make, range(threads)))
    assert all((tmp_path / str(number) / "inner").is_dir() for number in range(rounds))


def test_a_file_in_the_place_of_a_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    for path in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(NotADirectoryError):
            make_directories(path, ACCESSES["owner"])
