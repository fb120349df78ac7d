"""What only files have: races of processes, order of syncs, temporary files of the dead, full disks."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from penstock_object_store_fsspec import _files
from penstock_object_store_fsspec._files import FileTree
from tests.patience import HANG_S

from penstock.errors import ConfigError, InvalidRequestError, NotFoundError, UnavailableError


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[FileTree]:
    opened = FileTree(str(tmp_path / "objects"))
    opened.open()
    yield opened
    opened.close()


def _temporary(root: str | Path) -> list[str]:
    return sorted(os.listdir(Path(root) / ".penstock-tmp"))


def _child(script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


_RACER = """
    import mmap, os, sys
    from penstock.errors import AlreadyExistsError
    from penstock_object_store_fsspec._files import FileTree

    root, barrier, me, racers, rounds = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
    with open(barrier, "r+b") as file:
        arrived = memoryview(mmap.mmap(file.fileno(), 8 * racers)).cast("Q")
    tree = FileTree(root)
    tree.open()
    for turn in range(rounds):
        arrived[me] = turn + 1
        while min(arrived) <= turn:
            os.sched_yield()
        try:
            tree.put_if_absent(f"slot/{turn:04d}", [b"by ", b"%d" % me])
            print(turn)
        except AlreadyExistsError:
            pass
    tree.close()
"""


def test_of_racing_processes_exactly_one_creates_each_object(tmp_path: Path) -> None:
    racers, rounds = 4, 200
    barrier = tmp_path / "barrier"
    barrier.write_bytes(bytes(8 * racers))
    arguments = [str(racers), str(rounds)]
    children = [
        _child(_RACER, str(tmp_path / "objects"), str(barrier), str(me), *arguments) for me in range(racers)
    ]
    won: list[tuple[int, int]] = []
    try:
        for me, child in enumerate(children):
            output, _ = child.communicate(timeout=HANG_S)
            assert child.returncode == 0
            won += [(int(turn), me) for turn in output.split()]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    found = [
        (turn, int((tmp_path / f"objects/slot/{turn:04d}").read_bytes().removeprefix(b"by ")))
        for turn in range(rounds)
    ]
    assert sorted(won) == found
    assert _temporary(tmp_path / "objects") == []


def test_temporary_files_of_the_dead_are_swept_and_those_of_the_living_kept(tmp_path: Path) -> None:
    root = str(tmp_path / "objects")
    dead = _child(
        """
        import os, sys
        from penstock_object_store_fsspec._files import FileTree
        tree = FileTree(sys.argv[1])
        tree.open()
        tree.write(tree.create("a/b"), [b"half"])
        os._exit(9)
        """,
        root,
    )
    dead.communicate(timeout=HANG_S)
    assert dead.returncode == 9
    assert len(_temporary(root)) == 2
    living = FileTree(root)
    living.open()
    partial = living.create("a/c")
    living.write(partial, [b"whole"])
    kept = _temporary(root)
    assert len(kept) == 2
    late = FileTree(root)
    late.open()
    late.close()
    assert _temporary(root) == kept
    living.publish(partial)
    living.discard(partial)
    assert bytes(living.get("a/c", 0, None)) == b"whole"
    assert [info.key for info in living.list("", "")] == ["a/c"]
    living.close()
    assert _temporary(root) == []


def test_a_process_killed_while_it_writes_leaves_whole_objects(tmp_path: Path) -> None:
    root = str(tmp_path / "objects")
    child = _child(
        """
        import itertools, sys
        from penstock_object_store_fsspec._files import FileTree
        tree = FileTree(sys.argv[1])
        tree.open()
        for number in itertools.count():
            tree.put(f"k{number % 3}", [bytes([number % 251]) * 100_000] * 5)
            print(number, flush=True)
        """,
        root,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 20:
            break
    child.kill()
    child.communicate()
    tree = FileTree(root)
    tree.open()
    found = {info.key: bytes(tree.get(info.key, 0, None)) for info in tree.list("", "")}
    tree.close()
    assert sorted(found) == ["k0", "k1", "k2"]
    for data in found.values():
        assert len(data) == 500_000
        assert len(set(data)) == 1
    assert _temporary(root) == []


@pytest.mark.parametrize(("method", "step"), [("put", "rename"), ("put_if_absent", "link")])
def test_bytes_are_durable_before_the_name_and_the_name_before_the_return(
    tree: FileTree, monkeypatch: pytest.MonkeyPatch, method: str, step: str
) -> None:
    """A new directory's own name counts too: every directory up to the root is synced the first time."""
    calls: list[str] = []

    def record(name: str) -> None:
        real = getattr(os, name)

        def recorded(*arguments: object) -> object:
            target = arguments[-1]
            where = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
            answer = real(*arguments)
            calls.append(f"{name} {os.path.relpath(where, tree.root)}")
            return answer

        monkeypatch.setattr(os, name, recorded)

    for name in ("fdatasync", "fsync", step):
        record(name)
    getattr(tree, method)("a/b/k", [b"x"])
    assert calls[0].startswith("fdatasync .penstock-tmp/")
    assert calls[1:] == [f"{step} a/b/k", "fsync a/b", "fsync a", "fsync ."]
    calls.clear()
    getattr(tree, method)("a/b/j", [b"x"])
    assert calls[1:] == [f"{step} a/b/j", "fsync a/b"]


@pytest.mark.parametrize("method", ["put", "put_if_absent"])
def test_a_full_disk_is_said_in_one_sentence_and_changes_nothing(
    tree: FileTree, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    tree.put("there", [b"old"])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", full)
        key = "there" if method == "put" else "new"
        with pytest.raises(UnavailableError, match=r"no space left for objects, .*path=.*/objects/"):
            getattr(tree, method)(key, [b"new"])
    assert [info.key for info in tree.list("", "")] == ["there"]
    assert bytes(tree.get("there", 0, None)) == b"old"
    assert len(_temporary(tree.root)) == 1
    getattr(tree, method)(key, [b"new"])
    assert bytes(tree.get(key, 0, None)) == b"new"


@pytest.mark.parametrize("name", ["fdatasync", "rename"])
def test_a_failed_sync_is_unavailable_and_leaves_the_old_object(
    tree: FileTree, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tree.put("k", [b"old"])

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, broken)
        with pytest.raises(UnavailableError, match="refused"):
            tree.put("k", [b"new"])
    assert bytes(tree.get("k", 0, None)) == b"old"
    assert len(_temporary(tree.root)) == 1


@pytest.mark.parametrize("failing", ["a/b", "a"])
@pytest.mark.parametrize("look", ["get", "head", "list"])
def test_an_object_whose_name_could_not_be_synced_is_seen_once_it_is(
    tree: FileTree, monkeypatch: pytest.MonkeyPatch, failing: str, look: str
) -> None:
    """Who finds it takes it for durable: an entry of metadata whose append was in doubt, or somebody else's."""
    looks: dict[str, Callable[[], object]] = {
        "get": lambda: bytes(tree.get("a/b/k", 0, None)),
        "head": lambda: tree.head("a/b/k"),
        "list": lambda: list(tree.list("a/b/", "")),
    }
    synced: list[str] = []
    broken = True

    def sync(directory: str) -> None:
        name = os.path.relpath(directory, tree.root)
        if broken and name == failing:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        synced.append(name)

    monkeypatch.setattr(_files, "sync_directory", sync)
    with pytest.raises(UnavailableError):
        tree.put_if_absent("a/b/k", [b"x"])
    with pytest.raises(UnavailableError):
        looks[look]()
    broken = False
    assert looks[look]()
    assert failing in synced
    synced.clear()
    looks[look]()
    assert synced == []


def test_short_writes_are_continued(tree: FileTree, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, views: real(fd, [views[0][:3]] if views[0] else views[:2]))
    body = [b"0123456789", b"", b"abc", b"", b"defgh"]
    tree.put("k", body)
    assert bytes(tree.get("k", 0, None)) == b"".join(body)


def test_a_key_below_a_file_or_above_files_is_refused(tree: FileTree) -> None:
    tree.put("a/b", [b""])
    for key in ("a", "a/b/c", "a/b/c/d", "x" * 300):
        for method in (tree.put, tree.put_if_absent):
            with pytest.raises(InvalidRequestError):
                method(key, [b""])


def test_temporary_files_are_out_of_reach(tree: FileTree) -> None:
    name = _temporary(tree.root)[0]
    for key in (".penstock-tmp", f".penstock-tmp/{name}"):
        with pytest.raises(InvalidRequestError, match="reserved"):
            tree.get(key, 0, None)
        with pytest.raises(InvalidRequestError, match="reserved"):
            tree.put(key, [b""])
        with pytest.raises(InvalidRequestError, match="reserved"):
            tree.delete([key])
    assert list(tree.list("", "")) == []
    assert list(tree.list(".penstock-tmp/", "")) == []


def test_a_directory_that_vanished_is_made_again(tree: FileTree) -> None:
    tree.put("a/b/k", [b"1"])
    tree.delete(["a/b/k"])
    os.rmdir(os.path.join(tree.root, "a/b"))
    os.rmdir(os.path.join(tree.root, "a"))
    tree.put_if_absent("a/b/k", [b"2"])
    assert bytes(tree.get("a/b/k", 0, None)) == b"2"


def test_a_place_that_is_a_file_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"can't be used.*path='.*/file'"):
        FileTree(str(tmp_path / "file")).open()


def test_without_hard_links_put_if_absent_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no_links)
    tree = FileTree(str(tmp_path / "objects"))
    tree.open()
    tree.close()
    assert not tree.links


def test_files_of_others_that_are_no_keys_are_not_listed(tree: FileTree) -> None:
    tree.put("k", [b""])
    Path(tree.root, "smörgås").write_bytes(b"")
    Path(tree.root, "link").symlink_to("/etc")
    assert [info.key for info in tree.list("", "")] == ["k"]


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_what_isnt_an_object_is_neither_read_nor_replaced_nor_taken_for_one(
    tree: FileTree, tmp_path: Path, kind: str
) -> None:
    """Opening a pipe would wait for ever; and a name that is taken but isn't listed had metadata try for ever."""
    other, place = tmp_path / "other", Path(tree.root) / "a" / "key"
    other.write_bytes(b"precious")
    place.parent.mkdir()
    match kind:
        case "link":
            place.symlink_to(other)
        case "dangling link":
            place.symlink_to(tmp_path / "nothing")
        case _:
            os.mkfifo(place)
    for read in (lambda: tree.get("a/key", 0, None), lambda: tree.head("a/key")):
        with pytest.raises(NotFoundError):
            read()
    assert list(tree.list("a/", "")) == []
    for put in (tree.put, tree.put_if_absent):
        with pytest.raises(UnavailableError, match=f"left as it is, remove it: path='{place}'"):
            put("a/key", [b"ours"])
    assert place.is_symlink() or place.is_fifo()
    assert other.read_bytes() == b"precious"
    assert not (tmp_path / "nothing").exists()
    place.unlink()
    tree.put_if_absent("a/key", [b"ours"])
    assert bytes(tree.get("a/key", 0, None)) == b"ours"


def test_a_directory_that_cant_be_used_is_the_one_that_is_named(tmp_path: Path) -> None:
    (tmp_path / ".penstock-tmp").write_bytes(b"precious")
    with pytest.raises(ConfigError, match=r"path='.*/\.penstock-tmp'"):
        FileTree(str(tmp_path)).open()


def test_a_lock_that_cant_be_had_leaves_no_descriptor_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match="No locks available"):
        FileTree(str(tmp_path / "objects")).open()
    assert not (tmp_path / "objects").exists()
    open_files = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            open_files.append(os.readlink(f"/proc/self/fd/{number}"))
    assert not [name for name in open_files if name.startswith(str(tmp_path))]
