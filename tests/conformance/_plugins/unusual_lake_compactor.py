"""Lake compactors that keep the contract in ways that nobody expects."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import anyio
from pydantic import Field

from penstock.errors import InvalidRequestError
from penstock.hookspecs import hookimpl
from penstock.spi import Services, Settings
from penstock.spi.allocator import Charge
from penstock.spi.lake import (
    LakeCommit,
    LakeCompactorCapabilities,
    LakeCompactorSpec,
    LakeMaintenance,
    LakeRecord,
    LakeRecords,
    LakeTopic,
    LakeWritten,
)
from penstock_conformance.reference import _lake_compactor as reference
from penstock_conformance.reference._lake_compactor import JsonLinesCompactor, JsonLinesTable

_SPEC: LakeCompactorSpec[Any] = reference.penstock_register_lake_compactor()


class _Part:
    """Some rows of a batch."""

    def __init__(self, records: Any, rows: Sequence[LakeRecord]) -> None:
        self.partition = records.partition
        self.start_offset = rows[0].offset
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> Sequence[LakeRecord]:
        return self._rows


class _Parts(JsonLinesTable):
    """Writes a batch in parts: of some rows, or more where it has thousands."""

    rows_max = 1

    def _write(self, records: LakeRecords) -> LakeWritten:
        rows = list(records.rows())
        size = max(self.rows_max, len(rows) // 100)
        done = [
            super(_Parts, self)._write(_Part(records, rows[at : at + size]))  # type: ignore[arg-type]
            for at in range(0, len(rows), size)
        ]
        rejected = sum(sum(each.rejected.values()) for each in done)
        return LakeWritten(
            rows=sum(each.rows for each in done),
            rejected={"dead_letter": rejected} if rejected else {},
            reason=next((each.reason for each in reversed(done) if each.reason), ""),
        )


class _FilePerRow(_Parts):
    """A row is a file, mostly; what wasn't committed stays until the next opening; rows come in any order."""

    def drop_uncommitted(self) -> None:
        """The next opening does."""

    async def positions(self) -> Mapping[int, int]:
        return MappingProxyType(dict(reversed(list((await super().positions()).items()))))

    async def rows(self) -> AsyncIterator[LakeRecord]:
        rows = [row async for row in super().rows()]
        random.shuffle(rows)
        for row in rows:
            yield row


class _WritesAtTheCommit(JsonLinesTable):
    """Keeps what is written, charged, and writes files when it commits; two rows are enough to be full."""

    def __init__(self, compactor: _Compactor, topic: LakeTopic, epoch: int) -> None:
        super().__init__(compactor, topic, epoch)
        self._allocator = compactor.allocator
        self._kept: list[_Part] = []
        self._charges: list[Charge] = []

    def _write(self, records: LakeRecords) -> LakeWritten:
        if self._topic.configs["format"] != "raw":
            return super()._write(records)
        self._charges.append(self._allocator.charge_anyway(3 * records.nbytes, "lake"))
        self._kept.append(_Part(records, list(records.rows())))
        return LakeWritten(rows=len(records), is_full=sum(map(len, self._kept)) > 1)

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        kept, self._kept = self._kept, []
        try:
            for part in kept:
                super()._write(part)  # type: ignore[arg-type]
            return super()._commit(positions)
        finally:
            self._release()

    def _release(self) -> None:
        while self._charges:
            self._charges.pop().release()

    def drop_uncommitted(self) -> None:
        """And what is kept."""
        self._kept = []
        self._release()
        super().drop_uncommitted()


class _PartitionByPartition(_Parts):
    """Commits each partition by itself, rows and position together; takes its time; a commit of nothing is none."""

    rows_max = 7

    async def write(self, records: LakeRecords) -> LakeWritten:
        await anyio.sleep(0.001)
        return await super().write(records)

    async def commit(self, positions: Mapping[int, int]) -> LakeCommit:
        await anyio.sleep(0.002)
        return await super().commit(positions)

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        done = LakeCommit(version=str(self._version), files=0, rows=0, size_bytes=0)
        files = self._files
        for partition, position in positions.items():
            self._files = [file for file in files if int(file["name"].split("-")[1]) == partition]
            part = super()._commit({partition: position})
            done = LakeCommit(
                version=part.version,
                files=done.files + part.files,
                rows=done.rows + part.rows,
                size_bytes=done.size_bytes + part.size_bytes,
            )
        return done


class _NamedById(JsonLinesTable):
    """A folder for each topic that there ever was, whatever its name; nothing is maintained."""

    def __init__(self, compactor: JsonLinesCompactor, topic: LakeTopic, epoch: int) -> None:
        super().__init__(compactor, topic, epoch)
        self._folder = compactor.folder / f"{topic.topic_id}-{topic.table}"

    async def maintain(self, *, dry_run: bool = False) -> LakeMaintenance:
        raise InvalidRequestError("tables aren't maintained")


WAYS: dict[str, type[JsonLinesTable]] = {
    "file_per_row": _FilePerRow,
    "writes_at_the_commit": _WritesAtTheCommit,
    "partition_by_partition": _PartitionByPartition,
    "named_by_id": _NamedById,
}


class UnusualSettings(Settings):
    """Which of them."""

    way: str = Field(default="file_per_row", description="How it is unusual.")


class _Compactor(JsonLinesCompactor):
    """Tables of one way."""

    def __init__(self, settings: UnusualSettings, services: Services) -> None:
        super().__init__(services.data_dir / "lake", services.access)
        assert services.allocator is not None
        self.allocator = services.allocator
        self._way = WAYS[settings.way]

    @property
    def capabilities(self) -> LakeCompactorCapabilities:
        return LakeCompactorCapabilities(maintains=self._way is not _NamedById)

    def _table(self, topic: LakeTopic, epoch: int) -> JsonLinesTable:
        return self._way(self, topic, epoch)


@asynccontextmanager
async def _open(settings: UnusualSettings, services: Services) -> AsyncIterator[_Compactor]:
    yield _Compactor(settings, services)


@hookimpl
def penstock_register_lake_compactor() -> LakeCompactorSpec[Any]:
    """Register all of them."""
    return replace(
        _SPEC,
        name="unusual_lake_compactor",
        summary="Right, in its own way.",
        settings=UnusualSettings,
        open=_open,
        capabilities=LakeCompactorCapabilities(),
    )
