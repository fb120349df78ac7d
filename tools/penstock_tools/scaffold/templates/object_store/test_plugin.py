"""What is particular to a store in a directory."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from penstock.errors import UnavailableError
from penstock_conformance.reference import DirectoryStore


def test_keys_of_any_characters_are_names_of_files(tmp_path: Path) -> None:
    async def main() -> None:
        store = DirectoryStore(tmp_path)
        keys = ["a/b", "a%2Fb", "..", "ü ", "a"]
        for key in keys:
            await store.put(key, [key.encode()])
        assert [info.key async for info in store.list()] == sorted(keys)
        assert [bytes(await store.get(key)).decode() for key in keys] == keys

    anyio.run(main)


def test_a_directory_that_is_gone_is_no_empty_store(tmp_path: Path) -> None:
    async def main() -> None:
        store = DirectoryStore(tmp_path)
        (tmp_path / "objects").rmdir()
        with pytest.raises(UnavailableError):
            [info async for info in store.list()]

    anyio.run(main)
