"""Files of the warehouse, on fsspec: as pyiceberg has them, but durable on local disks, and they can be listed."""

from __future__ import annotations

__all__ = ("ACCESS", "WarehouseIO", "listed", "remove")

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple, cast
from urllib.parse import urlparse

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from pyiceberg.io import FileIO
from pyiceberg.io.fsspec import FsspecFileIO
from pyiceberg.typedef import EMPTY_DICT, Properties

from penstock.files import ACCESSES, Access, make_directories


class _SyncedFile(io.BufferedWriter):
    """A local file that is on the disk once it is closed, with its name."""

    def __init__(self, path: str, access: Access) -> None:
        super().__init__(io.FileIO(path, "wb"))
        os.fchmod(self.fileno(), access.file_mode)
        self._directory = os.path.dirname(path)

    def close(self) -> None:
        """Sync the file, close it, and sync its directory."""
        if self.closed:
            return
        self.flush()
        os.fsync(self.fileno())
        super().close()
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


class _SyncedFileSystem(LocalFileSystem):  # type: ignore[misc] # fsspec has no types
    cachable = False

    def __init__(self, access: Access) -> None:
        super().__init__(auto_mkdir=True)
        self._access = access

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> Any:
        if mode != "wb":
            return super()._open(path, mode, block_size, **kwargs)
        path = self._strip_protocol(path)
        make_directories(self._parent(path), self._access)
        return _SyncedFile(path, self._access)


#: The property that tells by its name who may read local files.
ACCESS = "penstock.access"
#: Files that a store is asked to remove at once; S3 takes no more.
_REMOVED_AT_ONCE = 1000


class WarehouseIO(FsspecFileIO):
    """What pyiceberg reads and writes files with; its property ``py-io-impl`` names this class."""

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        for scheme in ("", "file"):
            self._scheme_to_fs[scheme] = _local

    def _get_fs(self, scheme: str, hostname: str | None = None) -> AbstractFileSystem:
        if scheme in ("gs", "gcs"):
            # gcsfs would ask the bucket's type over gRPC first, which stalls for a minute against other servers.
            os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        fs = super()._get_fs(scheme, hostname)
        # What was listed once would hide for ever what others write there later.
        fs.dircache.use_listings_cache = False
        fs.dircache.clear()
        return fs


def _local(properties: Properties) -> _SyncedFileSystem:
    return _SyncedFileSystem(ACCESSES[properties.get(ACCESS, "owner")])


class Listed(NamedTuple):
    """A file that is there."""

    location: str
    size: int
    #: Seconds since the epoch; None where the store doesn't say.
    modified: float | None


def listed(io: FileIO, folder: str, prefix: str = "") -> Iterator[Listed]:
    """The files below ``folder`` whose names begin with ``prefix``; none if there is no folder.

    With a prefix a store may look only at what is right in the folder, which takes it one request.
    """
    place = urlparse(folder)
    fs = cast(FsspecFileIO, io)._get_fs_from_uri(place, folder)
    root = fs._strip_protocol(folder).rstrip("/")
    more = {"prefix": prefix} if prefix else {}
    found: dict[str, dict[str, Any]] = fs.find(root, detail=True, **more)
    for path, info in sorted(found.items()):
        if path.rpartition("/")[2].startswith(prefix):
            size = info.get("size") or info.get("Size") or 0
            yield Listed(folder.rstrip("/") + path[len(root) :], int(size), _modified(info))


def _modified(info: dict[str, Any]) -> float | None:
    for key in ("mtime", "LastModified", "last_modified", "updated"):
        value = info.get(key)
        if isinstance(value, int | float):
            return float(value)
        if value is not None:
            with contextlib.suppress(AttributeError):
                return float(value.timestamp())
    return None


def remove(io: FileIO, locations: Iterable[str]) -> None:
    """Remove files; one that is gone already is no fault. Stores are asked for many at once."""
    left = iter(locations)
    while some := list(islice(left, _REMOVED_AT_ONCE)):
        fs = cast(FsspecFileIO, io)._get_fs_from_uri(urlparse(some[0]), some[0])
        one_store = len({urlparse(location)[:2] for location in some}) == 1
        if one_store and not isinstance(fs, LocalFileSystem):
            with contextlib.suppress(FileNotFoundError):  # some stores say so, others don't
                fs.rm(some)
                continue
        for location in some:
            with contextlib.suppress(FileNotFoundError):
                io.delete(location)
