"""Objects as files: the synchronous half, run on worker threads.

Layout: the object ``a/b`` is the file ``ROOT/a/b``. Temporary files live in ``ROOT/.penstock-tmp``, named
``OWNER.NUMBER``; each open store holds a lock on ``OWNER.lock`` there, so that whoever opens the store next can
tell files of the dead from files of the living, whatever host, container or process id they have. What has another
name there isn't ours and stays.
"""

from __future__ import annotations

__all__ = ("FileTree",)

import errno
import fcntl
import itertools
import logging
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from penstock.direct_io import BounceBuffers
from penstock.errors import (
    AlreadyExistsError,
    ConfigError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.files import (
    ACCESSES,
    Access,
    create_file,
    excess_mode,
    make_directories,
    open_own,
    sync_directory,
)
from penstock.spi.object_store import ObjectInfo
from penstock.spi.plugin import Buffer
from penstock_object_store_fsspec._backend import check_range
from penstock_object_store_fsspec._direct import (
    BUFFER_BYTES,
    DIRECT_READ_BYTES_MIN,
    FileWriter,
    read_buffers,
    read_direct,
)

logger = logging.getLogger("penstock.store")

_TEMPORARY = ".penstock-tmp"
#: Directories of this process that others can see into, of which a warning was logged.
_TOLD: set[tuple[str, str]] = set()
#: As many uploads as usually are under way.
_BUFFERS_KEPT = 2
#: Linux reads at most 0x7ffff000 bytes a call.
_READ_BYTES_MAX = 2**30
_OURS = re.compile(r"[0-9a-f]{16}\.(lock|\d+)")
#: Opening says so of links, special files and directories.
_NOT_A_FILE = frozenset({errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO})
#: A key that can't be a file here: too long, or one of its parts is a file, or it is a directory.
_KEY_ERRORS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY}
_LINK_REFUSALS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


@dataclass(slots=True)
class PartialFile:
    """A temporary file that becomes an object, or nothing."""

    key: str
    path: str
    fd: int
    writer: FileWriter


class FileTree:
    """One directory of objects. Methods may run on several threads at once. Those that write need ``open``.

    After an error from the medium an object is as before or whole as written, never partial.
    """

    def __init__(self, root: str, access: Access = ACCESSES["owner"]) -> None:
        self.root = root
        self._access = access
        #: Device and inode of the root: another disk may be mounted there, or this one no more.
        self._identity = (0, 0)
        self._mending = threading.Lock()
        self.links = True
        self._temporary = os.path.join(root, _TEMPORARY)
        self._owner = ""
        self._lock_fd = -1
        #: The directories that weren't there before, from the top; the last one is the root.
        self._made: list[Path] = []
        self._numbers = itertools.count(1)
        self._buffers = BounceBuffers(BUFFER_BYTES, _BUFFERS_KEPT)
        self._read_buffers = read_buffers()
        #: Directories whose own names are known to be durable.
        self._anchored: set[str] = set()
        #: Directories whose sync failed, each with a number: what is seen in them needn't be durable.
        self._unsynced: dict[str, int] = {}

    # --- life ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the directory if need be, take an owner's name, remove temporary files of the dead.

        Raises ConfigError if the directory can't be used.
        """
        try:
            made = self._made = make_directories(self.root, self._access)
            self._identity = _identity(self.root)
            self._make_temporary()
            if made:
                self._sync_ancestors()
            elif (mode := excess_mode(self.root, self._access)) and (self.root, mode) not in _TOLD:
                _TOLD.add((self.root, mode))  # a store of a plugin's own is opened again and again
                logger.warning(
                    "others can see the objects here, and read those that were made so; take that from them "
                    "(chmod -R go-rwx), or set broker.data_access if they may: path=%s mode=%s",
                    self.root,
                    mode,
                )
            while not self._take_owner():
                pass
            self._sweep()
            self.links = self._probe_links()
        except OSError as error:
            self.close()
            raise ConfigError(
                f"the directory for objects can't be used, check its path and permissions: "
                f"path={(error.filename or self.root)!r} error={error.strerror!r}"
            ) from error

    def _make_temporary(self) -> None:
        """Make the directory for temporary files. Raises ConfigError if a symbolic link is in its place, OSError."""
        make_directories(self._temporary, self._access)
        if not stat.S_ISDIR(os.lstat(self._temporary).st_mode):
            raise ConfigError(
                "the directory for temporary files is a symbolic link, it was left as it is; remove it: "
                f"path={self._temporary!r}"
            )

    def _restore_temporary(self) -> None:
        """Make the directory for temporary files, and our lock in it, again: somebody removed it.

        Raises UnavailableError where the root itself is gone, OSError.
        """
        with self._mending:
            if os.path.isdir(self._temporary) and os.path.exists(self._lock_path(self._owner)):
                return  # another thread was faster
            self._check_root()
            logger.warning(
                "the directory for temporary files vanished, making it again: path=%s", self._temporary
            )
            self._make_temporary()
            before = self._lock_fd
            while not self._take_owner():
                pass
            os.close(before)

    def _check_root(self) -> None:
        """Raise UnavailableError unless the root is the directory that was opened."""
        try:
            found = _identity(self.root)
        except OSError:
            found = None
        if found != self._identity:
            raise UnavailableError(
                "the directory for objects vanished, or another one is in its place; is its disk mounted? "
                f"path={self.root!r}"
            )

    def _sync_ancestors(self) -> None:
        """Whoever made the directories above may not have synced their names; objects are lost with them."""
        directory = self.root
        while directory != os.path.dirname(directory):
            directory = os.path.dirname(directory)
            with suppress(PermissionError):  # what we may not open, we didn't make
                sync_directory(directory)

    def close(self) -> None:
        """Give the owner's name back; and the directories that we made, if nothing was put there."""
        if self._lock_fd >= 0:
            with suppress(OSError):
                os.unlink(self._lock_path(self._owner))
            os.close(self._lock_fd)
            self._lock_fd = -1
        if self._made:
            with suppress(OSError):
                if os.listdir(self.root) == [_TEMPORARY]:
                    os.rmdir(self._temporary)
                    for directory in reversed(self._made):
                        os.rmdir(directory)

    def _lock_path(self, owner: str) -> str:
        return os.path.join(self._temporary, f"{owner}.lock")

    def _take_owner(self) -> bool:
        owner = secrets.token_hex(8)
        fd = create_file(self._lock_path(owner), os.O_WRONLY, self._access)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between creation and locking a sweeper may have taken the file for a dead owner's.
            os.stat(self._lock_path(owner))
        except (BlockingIOError, FileNotFoundError):
            os.close(fd)
            return False
        except OSError:  # of a file system without locks, or a disk that fails: nobody else knows of the file
            os.close(fd)
            with suppress(OSError):
                os.unlink(self._lock_path(owner))
            raise
        self._owner, self._lock_fd = owner, fd
        return True

    def _sweep(self) -> None:
        owners: dict[str, list[str]] = {}
        for name in filter(_OURS.fullmatch, os.listdir(self._temporary)):
            owners.setdefault(name.partition(".")[0], []).append(name)
        for owner, names in owners.items():
            if owner == self._owner:
                continue
            try:
                fd = open_own(self._lock_path(owner), os.O_RDWR)
            except FileNotFoundError:
                self._remove(names)  # a sweep that was cut short, or the owner just left
                continue
            except OSError as error:
                if error.errno not in _NOT_A_FILE:
                    raise
                continue  # of our names, but none that we made
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._remove(names)
            except BlockingIOError:
                pass  # alive
            finally:
                os.close(fd)

    def _remove(self, names: Sequence[str]) -> None:
        # The lock file goes last: while it is there, a cut-short sweep can be taken up again.
        for name in sorted(names, key=lambda name: name.endswith(".lock")):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._temporary, name))

    def _probe_links(self) -> bool:
        """Whether the file system has hard links, which put-if-absent needs."""
        path = self._temporary_path()
        try:
            os.link(self._lock_path(self._owner), path)
        except OSError as error:
            if error.errno in _LINK_REFUSALS:
                return False
            raise
        os.unlink(path)
        return True

    # --- reading ---------------------------------------------------------------------------------------

    def get(self, key: str, start: int, end: int | None) -> Buffer:
        with self._translated("read", key):
            try:
                fd = open_own(self._path(key), os.O_RDONLY)
            except OSError as error:
                if error.errno in _NOT_A_FILE:
                    raise self._absent(key) from None
                raise
            try:
                self._sync_seen(key)
                status = os.fstat(fd)
                end = check_range(key, status.st_size, start, end)
                if end - start >= DIRECT_READ_BYTES_MIN:
                    data = read_direct(fd, start, end, self._read_buffers)
                    if data is not None and len(data) == end - start:
                        return data
                return self._read_exactly(fd, key, start, end)
            finally:
                os.close(fd)

    def _read_exactly(self, fd: int, key: str, start: int, end: int) -> bytes:
        pieces: list[bytes] = []
        while start < end:
            # pread gives fresh bytes: one copy out of the page cache, with the GIL released.
            piece = os.pread(fd, min(end - start, _READ_BYTES_MAX), start)
            if not piece:
                raise UnavailableError(f"the file became shorter while it was read: path={self._path(key)!r}")
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def head(self, key: str) -> ObjectInfo:
        with self._translated("stat", key):
            status = os.lstat(self._path(key))
            if not stat.S_ISREG(status.st_mode):
                raise self._absent(key)
            self._sync_seen(key)
        return _info(key, status)

    def list(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """Objects in ascending order of their keys; each directory is read when the walk reaches it."""
        directory, separator, _ = prefix.rpartition("/")
        parts = directory.split("/")
        if parts[0] == _TEMPORARY or (separator and {"", ".", ".."}.intersection(parts)):
            return
        yield from self._walk(directory + separator, prefix, start_after)

    def _walk(self, base: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(os.path.join(self.root, base)) as entries:
                # sorted are only those that are asked for: sorting all of a great many holds the GIL for long
                paths = ((name, base + name) for name in _names(entries))
                found = sorted(n for n, path in paths if path.startswith(prefix) or prefix.startswith(path))
            self._sync_seen(base)
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise self._failure("list", base, error) from error
        for name in found:
            path = base + name
            if path == f"{_TEMPORARY}/":
                continue
            if name.endswith("/"):
                within = path.startswith(prefix) or prefix.startswith(path)
                if within and (path > start_after or start_after.startswith(path)):
                    yield from self._walk(path, prefix, start_after)
            elif path.startswith(prefix) and path > start_after:
                try:
                    yield _info(path, os.stat(self._path(path)))
                except FileNotFoundError:
                    continue  # deleted since the directory was read
                except OSError as error:
                    raise self._failure("list", path, error) from error

    # --- writing ---------------------------------------------------------------------------------------

    def put(self, key: str, body: Sequence[Buffer]) -> None:
        partial = self.create(key)
        try:
            self.write(partial, body)
            self.publish(partial)
        finally:
            self.discard(partial)

    def put_if_absent(self, key: str, body: Sequence[Buffer]) -> None:
        partial = self.create(key)
        try:
            self.write(partial, body)
            self._publish_if_absent(partial)
        finally:
            self.discard(partial)

    def create(self, key: str) -> PartialFile:
        self._path(key)
        path = self._temporary_path()
        with self._translated("create", key):
            try:
                fd = create_file(path, os.O_WRONLY, self._access)
            except FileNotFoundError:
                self._restore_temporary()
                path = self._temporary_path()
                fd = create_file(path, os.O_WRONLY, self._access)
        return PartialFile(key, path, fd, FileWriter(fd, self._buffers))

    def write(self, partial: PartialFile, body: Sequence[Buffer]) -> None:
        with self._translated("write", partial.key):
            partial.writer.write(body)

    def publish(self, partial: PartialFile) -> None:
        """Make the file durable, then the object of its key, replacing what was there."""
        target = self._path(partial.key)
        with self._translated("write", partial.key):
            partial.writer.finish()
            os.fdatasync(partial.fd)
            _refuse_foreign(target)
            self._in_directory(target, lambda: os.rename(partial.path, target))

    def _publish_if_absent(self, partial: PartialFile) -> None:
        target = self._path(partial.key)
        with self._translated("create", partial.key):
            partial.writer.finish()
            os.fdatasync(partial.fd)
            try:
                self._in_directory(target, lambda: os.link(partial.path, target))
            except FileExistsError:
                _refuse_foreign(target)
                # The loser acts on what it finds there, so the winner's name must be durable too.
                self._sync(os.path.dirname(target))
                raise AlreadyExistsError(f"the object exists: path={target!r}") from None

    def discard(self, partial: PartialFile) -> None:
        """Close and remove the temporary file; fine if it is an object now, or was discarded before."""
        partial.writer.discard()
        if partial.fd >= 0:
            os.close(partial.fd)
            partial.fd = -1
            with suppress(OSError):  # what can't be removed now is swept at the next start
                os.unlink(partial.path)

    def delete(self, keys: Sequence[str]) -> None:
        directories: set[str] = set()
        for key in keys:
            path = self._path(key)
            try:
                os.unlink(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                if os.path.isdir(path):
                    continue  # no such object, only objects below it
                raise self._failure("delete", key, error) from error
            directories.add(os.path.dirname(path))
        for directory in directories:
            with self._translated("delete", directory):
                self._sync(directory)

    # --- helpers ---------------------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        if key == _TEMPORARY or key.startswith(f"{_TEMPORARY}/"):
            raise InvalidRequestError(f"this key is reserved for temporary files: key={key!r}")
        return os.path.join(self.root, key)

    def _temporary_path(self) -> str:
        assert self._owner, "a directory that was opened only to look isn't written to"
        return os.path.join(self._temporary, f"{self._owner}.{next(self._numbers)}")

    def _in_directory(self, target: str, step: Callable[[], None]) -> None:
        """Run ``step``, which puts ``target`` into its directory, and make that durable."""
        directory = os.path.dirname(target)
        try:
            step()
        except FileNotFoundError:
            self._anchored.difference_update(self._up_to_root(directory))
            self._check_root()
            make_directories(directory, self._access)
            step()
        self._sync(directory)
        # A directory, whoever made it, is only there for good once its parents are synced, up to the root.
        fresh = [path for path in self._up_to_root(directory) if path not in self._anchored]
        for path in fresh:
            self._sync(os.path.dirname(path))
        self._anchored.update(fresh)

    def _sync(self, directory: str) -> None:
        before = self._unsynced.get(directory)
        try:
            sync_directory(directory)
        except OSError:
            self._unsynced[directory] = next(self._numbers)
            raise
        if before is not None and self._unsynced.get(directory) == before:  # none failed since this one began
            self._unsynced.pop(directory, None)

    def _sync_seen(self, key: str) -> None:
        """Whoever acts on a name that is seen must find it after a power failure, also where its writer didn't."""
        if self._unsynced:
            directory = os.path.dirname(os.path.join(self.root, key))
            for path in (*self._up_to_root(directory), self.root):
                if path in self._unsynced:
                    self._sync(path)

    def _up_to_root(self, directory: str) -> Iterator[str]:
        while directory != self.root:
            yield directory
            directory = os.path.dirname(directory)

    @contextmanager
    def _translated(self, action: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failure(action, key, error) from error

    def _absent(self, key: str) -> NotFoundError:
        return NotFoundError(f"no such object: key={key!r} location=file://{self.root}")

    def _failure(self, action: str, key: str, error: OSError) -> PenstockError:
        path = os.path.join(self.root, key)
        if action in {"read", "stat"} and error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return self._absent(key)
        if error.errno in _KEY_ERRORS:
            return InvalidRequestError(
                f"the key can't be a file, it is too long or meets a file or directory of the same name: "
                f"path={path!r} error={error.strerror!r}"
            )
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            return UnavailableError(
                f"no space left for objects, free some or enlarge the disk: path={path!r} action={action}"
            )
        return UnavailableError(
            f"the file system refused an object: path={path!r} action={action} error={error.strerror!r}"
        )


def _refuse_foreign(target: str) -> None:
    """What isn't an object is never read as one, so it mustn't be replaced, nor stand for one that is there."""
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise UnavailableError(
            f"a link or a special file is in the place of an object and was left as it is, remove it: path={target!r}"
        )


def _names(entries: Iterator[os.DirEntry[str]]) -> Iterator[str]:
    """Names that can be parts of keys; those of directories end in a slash, which puts all in key order."""
    for entry in entries:
        if not (entry.name.isascii() and entry.name.isprintable()):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield f"{entry.name}/"
        elif entry.is_file(follow_symlinks=False):
            yield entry.name


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key=key, size=status.st_size, modified_ms=status.st_mtime_ns // 1_000_000)


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino
