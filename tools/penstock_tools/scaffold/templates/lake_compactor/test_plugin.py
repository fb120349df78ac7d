"""What is particular to tables of JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import anyio

from penstock.files import ACCESSES
from penstock.spi.lake import LakeTopic
from penstock_conformance.reference import JsonLinesCompactor


def test_a_table_is_a_folder_whose_manifest_has_the_positions(tmp_path: Path) -> None:
    async def main() -> None:
        compactor = JsonLinesCompactor(tmp_path, ACCESSES["owner"])
        configs = {"format": "raw", "errors": "stop"}
        topic = LakeTopic(name="orders", topic_id="one", partition_count=1, configs=configs)
        async with compactor.open_table(topic, 1) as table:
            await table.commit({0: 3})
        assert await compactor.tables() == ["orders"]

    anyio.run(main)
    manifest = json.loads((tmp_path / "orders" / "manifest.json").read_text())
    assert manifest["positions"] == {"0": 3}
