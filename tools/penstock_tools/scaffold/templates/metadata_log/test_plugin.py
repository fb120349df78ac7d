"""What is particular to a log of numbered objects."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from penstock.errors import ConflictError, CorruptError
from penstock_conformance.reference import DirectoryStore, PlainMetadataLog


def test_of_two_writers_at_one_index_one_is_told_of_a_conflict(tmp_path: Path) -> None:
    async def main() -> None:
        store = DirectoryStore(tmp_path)
        first, second = PlainMetadataLog(store), PlainMetadataLog(store)
        await first.append(1, b"mine")
        with pytest.raises(ConflictError):
            await second.append(1, b"no, mine")
        assert [entry.data async for entry in second.read(1)] == [b"mine"]

    anyio.run(main)


def test_an_entry_that_is_missing_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        store = DirectoryStore(tmp_path)
        log = PlainMetadataLog(store)
        for index in (1, 2, 3):
            await log.append(index, b"entry")
        await store.delete([f"log/{2:020}"])
        with pytest.raises(CorruptError, match="index=2"):
            [entry async for entry in log.read(1)]

    anyio.run(main)
