"""Other writers of a table: rows of their own, which Penstock keeps, and tables of before that kept them out."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from penstock_iceberg_compactor._columns import SYSTEM_SCHEMA
from penstock_iceberg_compactor._compactor import IcebergCompactor
from penstock_iceberg_compactor._stamp import Stamp
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestWriterV2,
)
from pyiceberg.schema import Schema
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _FastAppendFiles
from pyiceberg.typedef import Record
from pyiceberg.types import BinaryType, IntegerType, LongType, NestedField, StructType
from tests.iceberg_place import load, opened, topic
from tests.lake_records import lake_records

from penstock.errors import ConflictError, UnavailableError

pytestmark = pytest.mark.anyio


def rows(compactor: IcebergCompactor) -> list[tuple[int, int]]:
    """Each row as its id and its offset, -1 for one of another writer."""
    found = load(compactor).scan().to_arrow().to_pylist()
    return sorted((row["id"], row["_kafka"]["offset"] if row["_kafka"] else -1) for row in found)


@pytest.mark.parametrize("mode", ["append", "upsert"])
async def test_rows_of_others_need_nothing_of_kafka_and_stay_when_their_files_are_written_again(
    tmp_path: Path, mode: str
) -> None:
    configs = {"value_format": "json", "mode": mode}
    if mode == "upsert":
        configs |= {"key_format": "json", "key_columns": "id"}
    async with opened(tmp_path) as compactor:
        async with compactor.open_table(topic(**configs), 1) as table:
            await table.write(lake_records([b'{"id": 1}'], keys=[b'{"id": 1}']))
            await table.commit({0: 1})
            load(compactor).append(pa.table({"id": pa.array([8, 9], pa.int64())}))
            await table.write(lake_records([b'{"id": 9}'], start=1, keys=[b'{"id": 9}']))
            await table.commit({0: 2})
            expected = [(1, 0), (8, -1), *([(9, -1)] if mode == "append" else []), (9, 1)]
            assert rows(compactor) == expected
            done = await table.maintain()
            assert done.figures["data files rewritten"] > 1
            assert rows(compactor) == expected


class DeletingByEquality(_FastAppendFiles):
    """A commit of a writer that deletes the row with the id 1, as Flink does."""

    name = "id"

    def _existing_manifests(self) -> list[ManifestFile]:
        schema, spec = self._transaction.table_metadata.schema(), self._transaction.table_metadata.spec()
        column = schema.find_field(self.name)
        location = self._transaction._table.location() + "/data/deletes.parquet"
        kind = pa.schema([pa.field("id", pa.int64(), metadata={"PARQUET:field_id": str(column.field_id)})])
        with self._io.new_output(location).create() as stream:
            pq.write_table(pa.table([[1]], schema=kind), stream)
        deletes = DataFile.from_args(
            content=DataFileContent.EQUALITY_DELETES,
            file_path=location,
            file_format=FileFormat.PARQUET,
            partition=Record(),
            record_count=1,
            file_size_in_bytes=len(self._io.new_input(location)),
            equality_ids=[column.field_id],
        )
        deletes.spec_id = spec.spec_id
        made = self.new_manifest_output()
        with DeleteManifest(spec, schema, made, self._snapshot_id, "deflate") as writer:
            writer.add(
                ManifestEntry.from_args(
                    status=ManifestEntryStatus.ADDED, snapshot_id=self._snapshot_id, data_file=deletes
                )
            )
        return [*super()._existing_manifests(), writer.to_manifest_file()]


class DeletingOffset(DeletingByEquality):
    name = "offset"


class DeleteManifest(ManifestWriterV2):
    def content(self) -> ManifestContent:
        return ManifestContent.DELETES

    @property
    def _meta(self) -> dict[str, str]:
        return {**super()._meta, "content": "deletes"}


async def test_deletes_by_equality_stop_what_has_to_read_them_in_words_and_nothing_else(
    tmp_path: Path,
) -> None:
    """pyiceberg can't read them: rows are added, snapshots expire, but no file is written again."""
    configs = {"value_format": "json", "snapshot_retention_ms": "0", "snapshot_retention_count": "1"}
    async with opened(tmp_path) as compactor:
        async with compactor.open_table(topic(**configs), 1) as table:
            await table.write(lake_records([b'{"id": 1}']))
            await table.commit({0: 1})
            transaction = load(compactor).transaction()
            DeletingByEquality(Operation.DELETE, transaction, transaction._table.io).commit()
            transaction.commit_transaction()
            await table.write(lake_records([b'{"id": 2}'], start=1))
            await table.commit({0: 2})
            done = await table.maintain()
            assert (done.figures["data files before"], done.figures["data files rewritten"]) == (2, 0)
            assert done.figures["snapshots expired"] > 0
        upserts = configs | {"mode": "upsert", "key_columns": "id"}
        async with compactor.open_table(topic(**upserts), 1) as table:
            await table.write(lake_records([b'{"id": 2}'], start=2))
            with pytest.raises(ConflictError, match="deletes rows by equality"):
                await table.commit({0: 3})
        async with compactor.open_table(topic(**configs), 1) as table:
            assert await table.positions() == {0: 2}


async def test_dead_letters_that_somebody_deleted_dont_come_again_when_records_are_read_again(
    tmp_path: Path,
) -> None:
    """Their table was committed, the other one wasn't; deletes by equality then stopped the topic with a bug."""
    configs = topic(value_format="json", on_bad_record="dead_letter")
    steps: list[str] = []

    def lose(name: str) -> None:
        steps.append(name)
        if steps.count("committed") and name == "manifests written":
            raise UnavailableError("before the commit of the main table")

    async with opened(tmp_path) as compactor:
        async with compactor.open_table(configs, 1) as table:
            await table.write(lake_records([b"{", b"{}"]))
            compactor.watch(lose)
            with pytest.raises(UnavailableError):
                await table.commit({0: 2})
        compactor.watch(lambda _: None)
        transaction = load(compactor, "orders__dead_letter").transaction()
        DeletingOffset(Operation.DELETE, transaction, transaction._table.io).commit()
        transaction.commit_transaction()
        async with compactor.open_table(configs, 1) as table:
            await table.write(lake_records([b"{", b"{}", b"["]))
            await table.commit({0: 3})
        written = load(compactor, "orders__dead_letter").inspect.data_files()
        assert written["record_count"].to_pylist() == [1, 1], "the first one once, and the new one"


@pytest.mark.parametrize("how", ["dropped", "renamed", "dropped and added"])
@pytest.mark.parametrize("mode", ["append", "upsert"])
async def test_what_waits_for_a_column_that_somebody_drops_isnt_lost(
    tmp_path: Path, mode: str, how: str
) -> None:
    """Its rows are read again, and the column is added again, as for any record that has it."""
    configs = {"value_format": "json", "mode": mode}
    if mode == "upsert":
        configs |= {"key_columns": "id"}
    async with opened(tmp_path) as compactor:
        async with compactor.open_table(topic(**configs), 1) as table:
            await table.write(lake_records([b'{"id": 1, "n": 1}']))
            await table.commit({0: 1})
            await table.write(lake_records([b'{"id": 2, "n": 2}'], start=1))
            with load(compactor).update_schema(allow_incompatible_changes=True) as update:
                if how == "renamed":
                    update.rename_column("n", "m")
                else:
                    update.delete_column("n")
            if how == "dropped and added":  # which is another column of this name
                load(compactor).update_schema().add_column("n", LongType()).commit()
            with pytest.raises(ConflictError, match=r"dropped or renamed a column.*read again.*column=n"):
                await table.commit({0: 2})
        async with compactor.open_table(topic(**configs), 1) as table:
            assert await table.positions() == {0: 1}
            await table.write(lake_records([b'{"id": 2, "n": 2}'], start=1))
            await table.commit({0: 2})
            await table.maintain()
        found = load(compactor).scan().to_arrow().to_pylist()
        assert sorted((row["id"], row["n"]) for row in found) == [(1, None), (2, 2)]


async def test_values_of_a_raw_table_arent_lost_with_a_column_that_somebody_made_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        async with compactor.open_table(topic(), 1) as table:
            await table.write(lake_records([b"a"]))

            def foreign(name: str) -> None:
                if name == "files written":
                    load(compactor).update_schema().delete_column("value").commit()
                    load(compactor).update_schema().add_column("value", BinaryType()).commit()

            compactor.watch(foreign)
            with pytest.raises(ConflictError, match=r"read again.*column=value"):
                await table.commit({0: 1})
        compactor.watch(lambda name: None)
        async with compactor.open_table(topic(), 1) as table:
            await table.write(lake_records([b"a"]))
            await table.commit({0: 1})
        assert load(compactor).scan().to_arrow().column("value").to_pylist() == [b"a"]


async def test_a_table_of_before_is_opened_to_other_writers_by_one_commit(tmp_path: Path) -> None:
    """It forbade retries to all of them, and required an offset of their rows."""
    configs = {"value_format": "json"}
    kafka = StructType(
        NestedField(2, "partition", IntegerType(), required=True),
        NestedField(3, "offset", LongType(), required=True),
        *system_fields()[2:],
    )
    stamp = Stamp(topic="orders", topic_id="t-1", epoch=0)
    async with opened(tmp_path) as compactor:
        old = compactor.catalog.create_table(
            ("kafka", "orders"),
            Schema(NestedField(1, "_kafka", kafka), NestedField(20, "id", LongType())),
            properties={**stamp.properties(), "commit.retry.num-retries": "0"},
        )
        row = {"_kafka": {"partition": 0, "offset": 0}, "id": 1}
        old.append(pa.Table.from_pylist([row], old.schema().as_arrow()))
        async with compactor.open_table(topic(**configs), 1) as table:
            load(compactor).append(pa.table({"id": pa.array([8], pa.int64())}))
            await table.maintain()
        assert "commit.retry.num-retries" not in load(compactor).metadata.properties
        assert rows(compactor) == [(1, 0), (8, -1)]
        before = load(compactor).metadata_location
        async with compactor.open_table(topic(**configs), 1):
            assert load(compactor).metadata_location == before, "there is nothing left to change"


def system_fields() -> tuple[NestedField, ...]:
    system = SYSTEM_SCHEMA.fields[0].field_type
    assert isinstance(system, StructType)
    return system.fields
