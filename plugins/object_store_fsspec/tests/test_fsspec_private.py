"""What others put into the store's directory stays, nobody else reads the objects, and what is removed heals."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from penstock_object_store_fsspec._files import FileTree

from penstock.errors import ConfigError, UnavailableError
from penstock.files import ACCESSES

TEMPORARY = ".penstock-tmp"


def opened(root: Path, access: str = "owner") -> FileTree:
    tree = FileTree(str(root), ACCESSES[access])
    tree.open()
    return tree


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[FileTree]:
    one = opened(tmp_path / "objects")
    yield one
    one.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(
    ("access", "umask", "directory", "file"),
    [("owner", 0, 0o700, 0o600), ("group", 0o077, 0o750, 0o640), ("everybody", 0o077, 0o755, 0o644)],
)
def test_objects_are_as_private_as_configured_whatever_the_umask(
    tmp_path: Path, access: str, umask: int, directory: int, file: int
) -> None:
    before = os.umask(umask)
    try:
        tree = opened(tmp_path / "new/objects", access)
        tree.put("a/b/put", [b"1"])
        tree.put_if_absent("a/b/created", [b"2"])
        tree.close()
    finally:
        os.umask(before)
    paths = [tmp_path / "new", *(tmp_path / "new").rglob("*")]
    assert {mode(path) for path in paths if path.is_dir()} == {directory}
    assert {mode(path) for path in paths if path.is_file()} == {file}
    assert len(paths) == 7


def test_a_directory_that_others_can_see_into_is_told_once_and_left_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "objects"
    root.mkdir()
    root.chmod(0o755)
    tree = opened(root)
    tree.put("a", [b"1"])
    tree.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"path={root} mode=0755" in caplog.text
    assert (mode(root), mode(root / "a")) == (0o755, 0o600)
    opened(root).close()
    opened(root, "everybody").close()
    assert len(caplog.records) == 1


def test_a_temporary_directory_that_is_a_link_is_refused_and_what_is_behind_it_stays(tmp_path: Path) -> None:
    """The sweep would remove what it finds."""
    foreign = tmp_path / "home"
    foreign.mkdir()
    for name in ("notes", "0123456789abcdef.1", "0123456789abcdef.lock"):
        (foreign / name).write_bytes(b"precious")
    root = tmp_path / "objects"
    root.mkdir()
    (root / TEMPORARY).symlink_to(foreign)
    with pytest.raises(
        ConfigError, match=r"symbolic link, it was left as it is; remove it: path='.*/.penstock-tmp'"
    ):
        opened(root)
    assert {path.name: path.read_bytes() for path in foreign.iterdir()} == dict.fromkeys(
        ("notes", "0123456789abcdef.1", "0123456789abcdef.lock"), b"precious"
    )


def test_the_sweep_leaves_what_it_did_not_make(tmp_path: Path) -> None:
    temporary = tmp_path / "objects" / TEMPORARY
    temporary.mkdir(parents=True)
    (tmp_path / "precious").write_bytes(b"precious")
    (temporary / "notes.txt").write_bytes(b"a user's")
    (temporary / "0123456789abcdef.1").write_bytes(b"of a dead owner")
    (temporary / "fedcba9876543210.lock").symlink_to(tmp_path / "precious")
    opened(tmp_path / "objects").close()
    assert sorted(path.name for path in temporary.iterdir()) == ["fedcba9876543210.lock", "notes.txt"]
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_removed_temporary_directory_is_made_again_with_its_lock(tree: FileTree, tmp_path: Path) -> None:
    """The lock too: whoever opens the store next must not take our files for those of a dead owner."""
    temporary = tmp_path / "objects" / TEMPORARY
    tree.put("before", [b"1"])
    shutil.rmtree(temporary)
    tree.put("after", [b"2"])
    partial = tree.create("in/progress")
    opened(tmp_path / "objects").close()
    tree.write(partial, [b"3"])
    tree.publish(partial)
    tree.discard(partial)
    assert [bytes(tree.get(key, 0, None)) for key in ("before", "after", "in/progress")] == [b"1", b"2", b"3"]
    assert mode(temporary) == 0o700


def test_an_upload_whose_temporary_file_was_removed_fails_for_now_and_the_next_works(
    tree: FileTree, tmp_path: Path
) -> None:
    partial = tree.create("k")
    tree.write(partial, [b"1"])
    shutil.rmtree(tmp_path / "objects" / TEMPORARY)
    with pytest.raises(UnavailableError):
        tree.publish(partial)
    tree.discard(partial)
    tree.put("k", [b"2"])
    assert bytes(tree.get("k", 0, None)) == b"2"


@pytest.mark.parametrize("replaced", [False, True], ids=["gone", "another in its place"])
def test_a_root_that_vanished_is_not_made_again_since_its_disk_may_come_back(
    tree: FileTree, tmp_path: Path, replaced: bool
) -> None:
    root = tmp_path / "objects"
    tree.put("k", [b"1"])
    root.rename(tmp_path / "away")
    if replaced:
        root.mkdir()
    with pytest.raises(UnavailableError, match=rf"vanished, or another one is in its place.*path='{root}'"):
        tree.put("k", [b"2"])
    assert list(root.iterdir()) == [] if replaced else not root.exists()
    if replaced:
        root.rmdir()
    (tmp_path / "away").rename(root)
    tree.put("k", [b"3"])
    assert bytes(tree.get("k", 0, None)) == b"3"
