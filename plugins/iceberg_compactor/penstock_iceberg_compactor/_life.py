"""A life: what one opening of a table writes, under names that say so, until a commit has it. Blocking."""

from __future__ import annotations

__all__ = ("Life", "leftovers", "remove_failed")

import logging
import uuid
from collections.abc import Sequence

from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from penstock_iceberg_compactor._io import listed, remove
from penstock_iceberg_compactor._stamp import Stamp

logger = logging.getLogger("penstock.lake.iceberg")


class Life:
    """Names for the files of one owner, each given once, and the files that wait for a commit."""

    def __init__(self, epoch: int) -> None:
        #: Digits of the epoch, then random ones; hexadecimal, as UUIDs of commits begin with it.
        self.name = f"{epoch:012x}{uuid.uuid4().hex[:8]}"
        #: How many names of data files were given.
        self.files = 0
        #: Data files for the next commit.
        self.waiting: list[DataFile] = []
        self._commits = 0
        #: Where all files are that were begun since the last commit, also those that failed.
        self._begun: list[str] = []

    def location(self, folder: str) -> str:
        """Where the next data file goes."""
        number, self.files = self.files, self.files + 1
        location = f"{folder}/{self.name}-{number:06d}.parquet"
        self._begun.append(location)
        return location

    def next_commit(self) -> int:
        """The number of a commit that is planned now: it names manifests."""
        number, self._commits = self._commits, self._commits + 1
        return number

    def take_back(self, kept: int) -> list[str]:
        """Let go of what waits but for the first ``kept`` files; where the others are."""
        return self.let_go(*self.waiting[kept:])

    def let_go(self, *files: DataFile) -> list[str]:
        """Let go of these of the files that wait; where they are."""
        gone = {file.file_path for file in files}
        self.waiting = [file for file in self.waiting if file.file_path not in gone]
        self._begun = [location for location in self._begun if location not in gone]
        return sorted(gone)

    def take_back_begun(self) -> list[str]:
        """Let go of the file that was begun last, which couldn't be written to its end; where it is."""
        return [self._begun.pop()]

    def forget(self) -> list[str]:
        """Let go of what waits and was begun: the locations, for whoever removes them as nothing committed them."""
        begun, self._begun, self.waiting = self._begun, [], []
        return begun


def leftovers(table: Table, stamp: Stamp) -> list[str]:
    """Files that the life of ``stamp`` wrote for commits that didn't happen."""
    if not stamp.life:
        return []
    found = []
    for file in listed(table.io, table.location_provider().data_path, stamp.life):
        number = file.location.rpartition("-")[2].partition(".")[0]
        if number.isdecimal() and int(number) >= stamp.files:
            found.append(file.location)
    return found


def remove_failed(table: Table, locations: Sequence[str]) -> None:
    """Remove files of commits that didn't happen."""
    if locations:
        remove(table.io, locations)
        logger.info(
            "removed files of commits that failed: table=%s files=%d", table.name()[-1], len(locations)
        )
