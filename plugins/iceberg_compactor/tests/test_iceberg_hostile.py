"""What hostile producers, careless operators and other writers do: policies decide, and nothing is lost unnoticed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pyarrow as pa
import pytest
from anyio import to_thread
from google.protobuf import descriptor_pb2
from penstock_iceberg_compactor import _life, _maintain, _owned, _reading, _schema
from penstock_iceberg_compactor._compactor import IcebergCompactor
from penstock_iceberg_compactor._configs import Field, TableConfigs, fault_of
from penstock_iceberg_compactor._scan import read_parts
from penstock_iceberg_compactor._settings import Settings
from penstock_iceberg_compactor.decode import Fitter, JsonDecoder, _decoder, _protobuf
from penstock_iceberg_compactor.decode._avro import AvroCodec
from penstock_iceberg_compactor.decode._protobuf import ProtobufCodec, descriptor_pool
from pyiceberg.schema import Schema
from pyiceberg.types import StructType
from tests.iceberg_place import load, opened, services, topic
from tests.iceberg_readers import duckdb_with_iceberg
from tests.lake_records import lake_records

from penstock.errors import ConfigError, ConflictError, CorruptError, InvalidRequestError, UnavailableError
from penstock.spi.lake import LakeRecords
from penstock_conformance.reference._allocator import PlainAllocator

pytestmark = pytest.mark.anyio


def content(compactor: IcebergCompactor, name: str = "orders") -> list[dict[str, Any]]:
    rows = load(compactor, name).scan().to_arrow().to_pylist()
    return sorted(rows, key=lambda row: (row.get("_kafka") or row)["offset"])


def objects(*items: Any) -> list[bytes | None]:
    return [None if item is None else json.dumps(item).encode() for item in items]


def write_metadata(place: Path, name: str, content: bytes) -> None:
    folder = place / "lake" / "warehouse" / "kafka" / "orders" / "metadata"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


@pytest.mark.parametrize("is_made", [False, True])
async def test_metadata_that_were_not_written_to_their_end_are_no_table(
    tmp_path: Path, is_made: bool
) -> None:
    """A crash, or a full disk, as a table was made left a file that was then taken for it, for ever."""
    if is_made:
        async with opened(tmp_path) as compactor:
            await put(compactor, [b"0"])
        await to_thread.run_sync((tmp_path / "lake" / "catalog.db").unlink)
    write_metadata(tmp_path, "00098-a.metadata.json", b"")
    write_metadata(tmp_path, "00099-b.metadata.json", b'{"format-version": 2, "tab')
    async with opened(tmp_path) as compactor:
        async with compactor.open_table(topic(), 9) as table:
            at = (await table.positions()).get(0, 0)
            assert at == is_made
            await table.write(lake_records([b"1"], start=at))
            await table.commit({0: at + 1})
        assert [row["offset"] for row in content(compactor)] == list(range(at + 1))


def write_schema(place: Path, name: str, schema: Any) -> None:
    folder = place / "lake" / "schemas"
    folder.mkdir(parents=True)
    (folder / name).write_text(json.dumps(schema))


async def put(
    compactor: IcebergCompactor,
    values: Sequence[bytes | None],
    *,
    start: int = 0,
    keys: Sequence[bytes | None] | None = None,
    epoch: int = 1,
    **configs: Any,
) -> Any:
    async with compactor.open_table(topic(**configs), epoch) as table:
        written = await table.write(lake_records(values, start=start, keys=keys))
        await table.commit({0: start + len(values)})
        return written


@pytest.mark.parametrize("fails", ["removing files", "closing decoders"])
async def test_a_table_that_is_left_while_its_warehouse_is_out_of_reach_keeps_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    class EndpointConnectionError(Exception):
        """No OSError, as botocore's own."""

        __module__ = "botocore.exceptions"

    def fail(*_: Any) -> None:
        raise EndpointConnectionError("https://bucket")

    allocator = PlainAllocator(512 * 2**20)
    configs: dict[str, Any] = {
        "value_format": "json",
        "on_bad_record": "dead_letter",
        "on_schema_change": "dead_letter",
    }
    async with IcebergCompactor.opened(Settings(), services(tmp_path, allocator=allocator)) as compactor:
        await put(compactor, objects({"id": 1}), **configs)
        left: list[str] = []
        with suppress(UnavailableError):  # of decoders that can't be closed, which is told
            async with compactor.open_table(topic(**configs), 1) as table:
                await table.write(lake_records([b"{", *objects({"id": 2})], start=1))
                await table._run("writing files", table._dead.spill)  # type: ignore[attr-defined]
                await table._spill()  # type: ignore[attr-defined]
                await table.write(lake_records([b"{"], start=3))
                assert allocator.statistics().used_by_purpose["lake"]
                if fails == "removing files":
                    monkeypatch.setattr(_life, "remove", fail)
                else:
                    monkeypatch.setattr(table._reader, "close", fail)  # type: ignore[attr-defined]
                monkeypatch.setattr(_owned.OwnedTable, "leave", _noting(left))
        assert left == ["orders__dead_letter", "orders"]
        assert not allocator.statistics().used_bytes


def _noting(left: list[str]) -> Callable[[_owned.OwnedTable], None]:
    leave = _owned.OwnedTable.leave

    def noted(table: _owned.OwnedTable) -> None:
        left.append(table.name)
        leave(table)

    return noted


def avro_schema(place: Path, *fields: Any) -> str:
    """A schema file in the place's directory of schemas, and its name."""
    folder = place / "lake" / "schemas"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{len(list(folder.iterdir()))}.avsc"
    (folder / name).write_text(json.dumps({"type": "record", "name": "r", "fields": list(fields)}))
    return name


def data_files(place: Path, table: str) -> list[Path]:
    return list(place.rglob(f"{table}/data/*.parquet"))


def maybe_long(name: str) -> dict[str, Any]:
    return {"name": name, "type": ["null", "long"]}


@pytest.mark.parametrize("reserved", ["_kafka", "_key", "_kafka_deletes"])
async def test_an_avro_field_with_a_name_of_the_tables_own_follows_the_policy(
    tmp_path: Path, reserved: str
) -> None:
    schema = avro_schema(tmp_path, maybe_long("id"), maybe_long(reserved))
    values = [b"\x02\x02\x00", b"\x02\x04\x02\x0e", b"\x02\x06\x00"]  # the second has a value there
    configs: dict[str, Any] = {"value_format": "avro", "value_schema_file": schema}
    async with opened(tmp_path) as compactor:
        with pytest.raises(InvalidRequestError, match=rf'"{reserved}" has a name.*table needs.*offset=1'):
            await put(compactor, values, **configs)
        written = await put(compactor, values, on_schema_change="dead_letter", **configs)
        assert (written.rows, written.rejected) == (2, {"dead_letter": 1})
        assert [row["id"] for row in content(compactor)] == [1, 3]
        assert [row["offset"] for row in content(compactor, "orders__dead_letter")] == [1]
        await put(compactor, values, start=3, on_schema_change="null", **configs)
        assert [row["id"] for row in content(compactor)] == [1, 3, 1, 2, 3]


async def test_a_column_that_is_nested_deeper_than_files_are_read_follows_the_policy(tmp_path: Path) -> None:
    """Nobody could read the table any more: Arrow, and with it maintenance and upserts, refuse such files."""
    deep: Any = "long"
    for _ in range(50):
        deep = {"type": "array", "items": deep}
    schema = avro_schema(tmp_path, maybe_long("id"), {"name": "deep", "type": deep})
    values = [b"\x02\x02\x00", b"\x02\x04" + b"\x02" * 51 + b"\x00" * 50]
    async with opened(tmp_path) as compactor:
        configs: dict[str, Any] = {"value_format": "avro", "value_schema_file": schema}
        written = await put(compactor, values, on_schema_change="null", **configs)
        assert written.rejected == {"null": 2}
        assert "column deep is nested deeper than readers of its files go" in written.reason
        assert [row["id"] for row in content(compactor)] == [1, 2]


async def test_columns_that_a_table_cant_have_dont_keep_others_from_it(tmp_path: Path) -> None:
    """``a-b`` and ``a_x2Db`` are one name in Parquet files."""
    async with opened(tmp_path) as compactor:
        values = objects({"a-b": 1}, {"a_x2Db": 2, "id": 2}, {"id": 3})
        configs: dict[str, Any] = {"value_format": "json", "on_schema_change": "dead_letter"}
        await put(compactor, objects({"a-b": 0}), **configs)
        written = await put(compactor, values, start=1, **configs)
        assert written.rejected == {"dead_letter": 1}
        assert "the table can't take this change" in written.reason
        assert [(row["a-b"], row["id"]) for row in content(compactor)] == [(0, None), (1, None), (None, 3)]
        assert [row["offset"] for row in content(compactor, "orders__dead_letter")] == [2]


async def test_a_new_column_takes_no_time_for_each_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyiceberg makes a struct of all columns for each of them: minutes with 10,000."""
    structs = 0
    as_struct = Schema.as_struct

    def counted(schema: Schema) -> StructType:
        nonlocal structs
        structs += 1
        return as_struct(schema)

    async with opened(tmp_path) as compactor:
        configs: dict[str, Any] = {"value_format": "json"}
        await put(compactor, objects({f"c{number}": 1 for number in range(200)}), **configs)
        monkeypatch.setattr(Schema, "as_struct", counted)
        await put(compactor, objects({f"c{number}": 1 for number in range(220)}), start=1, **configs)
        assert structs < 100
        assert len(load(compactor).schema().fields) == 221


async def test_columns_that_change_too_often_follow_the_policy_until_old_schemas_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metadata of a table have all schemas that it had, and are read and written whole with each commit."""
    for module in (_schema, _maintain):
        monkeypatch.setattr(module, "SCHEMAS_COLUMNS_MAX", 20)
    monkeypatch.setattr(_maintain, "_SCHEMAS_KEPT", 1)
    configs: dict[str, Any] = {
        "value_format": "json",
        "on_schema_change": "dead_letter",
        "snapshot_retention_ms": "0",
        "snapshot_retention_count": "1",
    }
    async with opened(tmp_path) as compactor:
        refused = None
        start = 0
        while refused is None:
            written = await put(compactor, objects({f"c{start}": 1}), start=start, **configs)
            refused = written.reason if written.rejected else None
            start += 1
        assert "its columns changed too often" in refused
        before = len(load(compactor).metadata.schemas)
        async with compactor.open_table(topic(**configs), 1) as table:
            await table.maintain()
        assert len(load(compactor).metadata.schemas) < before
        written = await put(compactor, objects({f"c{start}": 1}), start=start, **configs)
        assert not written.rejected
        assert len(content(compactor)) == start
        assert [row["offset"] for row in content(compactor, "orders__dead_letter")] == [start - 1]


async def test_keys_that_change_their_type_follow_the_policy(tmp_path: Path) -> None:
    configs: dict[str, Any] = {
        "value_format": "json",
        "key_format": "json",
        "on_schema_change": "dead_letter",
    }
    async with opened(tmp_path) as compactor:
        await put(compactor, objects({"v": 1}), keys=[None], **configs)
        await put(compactor, objects({"v": 2}), start=1, keys=objects({"id": 1}), **configs)
        keys = objects({"id": "x"}, {"id": 2, "more": True})
        written = await put(compactor, objects({"v": 3}, {"v": 4}), start=2, keys=keys, **configs)
        assert written.rejected == {"dead_letter": 1}
        found = [(row["v"], row["_key"]) for row in content(compactor)]
        assert found == [(1, None), (2, {"id": 1, "more": None}), (4, {"id": 2, "more": True})]


async def test_a_record_without_key_columns_follows_the_policy_also_as_the_first_of_a_table(
    tmp_path: Path,
) -> None:
    configs: dict[str, Any] = {
        "value_format": "json",
        "mode": "upsert",
        "key_columns": "id",
        "on_bad_record": "dead_letter",
    }
    async with opened(tmp_path) as compactor:
        written = await put(compactor, objects({"v": 1}), **configs)
        assert written.rejected == {"dead_letter": 1}
        await put(compactor, objects({"id": 1, "v": 2}), start=1, **configs)
        assert [(row["id"], row["v"]) for row in content(compactor)] == [(1, 2)]


@pytest.mark.parametrize("policy", ["dead_letter", "null"])
async def test_a_record_without_key_columns_is_no_row_although_a_null_would_make_it_fit(
    tmp_path: Path, policy: str
) -> None:
    configs: dict[str, Any] = {
        "value_format": "json",
        "mode": "upsert",
        "key_columns": "id",
        "on_schema_change": "null",
        "on_bad_record": policy,
    }
    async with opened(tmp_path) as compactor:
        for start, values in enumerate(objects({"_key": 1, "v": 1}, {"id": 1, "v": 2}, {"_key": 1, "v": 3})):
            await put(compactor, [values], start=start, **configs)
        assert [(row["id"], row["v"]) for row in content(compactor)] == [(1, 2)]


async def test_a_tombstone_whose_key_is_of_another_type_follows_the_policy(tmp_path: Path) -> None:
    configs: dict[str, Any] = {
        "value_format": "json",
        "key_format": "string",
        "mode": "upsert",
        "key_columns": "id",
        "on_bad_record": "dead_letter",
    }
    async with opened(tmp_path) as compactor:
        values = objects({"id": 1, "_x": 1}, None, {"id": 2})
        written = await put(compactor, values, keys=[b"1", b"not a number", b"2"], **configs)
        assert written.rejected == {"dead_letter": 1}
        assert [row["id"] for row in content(compactor)] == [1, 2]


async def test_lists_of_what_has_no_columns_are_no_column_until_it_has(tmp_path: Path) -> None:
    """Avro's arrays and maps of nulls, or of records without fields, which no file can hold."""
    parts = [{"type": "record", "name": f"E{n}", "fields": []} for n in range(3)]
    kinds = [
        {"type": "array", "items": "null"},
        {"type": "array", "items": parts[0]},
        {"type": "map", "values": {"type": "array", "items": parts[1]}},
        {
            "type": "record",
            "name": "S",
            "fields": [{"name": "l", "type": {"type": "array", "items": parts[2]}}],
        },
        "int",
    ]
    fields = [{"name": f"f{at}", "type": kind} for at, kind in enumerate(kinds)]
    write_schema(tmp_path, "r.avsc", {"type": "record", "name": "R", "fields": fields})
    async with opened(tmp_path) as compactor:
        configs = {"value_format": "avro", "value_schema_file": "r.avsc"}
        async with compactor.open_table(topic(**configs), 1) as table:
            # two nulls, one record, a map of one list with a record, a list with a record, 7
            await table.write(lake_records([b"\4\0" + b"\2\0" + b"\2\2k\2\0\0" + b"\2\0" + b"\x0e"]))
            await table.commit({0: 1})
        rows = load(compactor).scan().to_arrow().drop_columns("_kafka").to_pylist()
    assert rows == [{"f4": 7}]


@pytest.mark.parametrize("key", ["id", "id.a"])
async def test_keys_with_parts_and_parts_as_keys_are_refused_in_words(tmp_path: Path, key: str) -> None:
    configs: dict[str, Any] = {"value_format": "json", "mode": "upsert", "key_columns": key}
    async with opened(tmp_path) as compactor:
        with pytest.raises(InvalidRequestError, match=r"can't be told apart by a column with parts"):
            await put(compactor, objects({"id": {"a": 1}}), **configs)


async def test_one_key_with_parts_follows_the_policy_also_as_the_first_of_a_table(tmp_path: Path) -> None:
    """It makes no column by which no other row could be told apart."""
    configs: dict[str, Any] = {
        "value_format": "json",
        "mode": "upsert",
        "key_columns": "id",
        "on_schema_change": "dead_letter",
    }
    async with opened(tmp_path) as compactor:
        written = await put(compactor, objects({"id": {"a": 1}}), **configs)
        assert written.rejected == {"dead_letter": 1}
        await put(compactor, objects({"id": 1}), start=1, **configs)
        assert [row["id"] for row in content(compactor)] == [1]


async def test_a_format_that_was_changed_loses_no_rows(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        await put(compactor, [b"1"], value_format="raw")
        with pytest.raises(ConflictError, match=r"format was changed.*column=_kafka"):
            await put(compactor, objects({"id": 1}), start=1, value_format="json", epoch=2)
        await put(compactor, [b"2"], start=1, value_format="raw", epoch=3)
        assert [row["value"] for row in content(compactor)] == [b"1", b"2"]
        await put(compactor, objects({"id": 1}), value_format="json", table="t", epoch=4)
        with pytest.raises(ConflictError, match=r"format was changed.*column=partition"):
            await put(compactor, [b"2"], start=1, value_format="raw", table="t", epoch=5)


@pytest.mark.parametrize(("step", "appends"), [("open", 1), ("commit", 1), ("commit", 0)])
async def test_a_column_of_penstock_that_somebody_dropped_stops_the_topic(
    tmp_path: Path, step: str, appends: int
) -> None:
    async with opened(tmp_path) as compactor:
        await put(compactor, [b"1"])

        def drop() -> None:
            with load(compactor).update_schema(allow_incompatible_changes=True) as update:
                update.delete_column("value")
            columns = [pa.field("partition", pa.int32(), False), pa.field("offset", pa.int64(), False)]
            for _ in range(appends):
                load(compactor).append(
                    pa.table({"partition": pa.array([9], pa.int32()), "offset": [9]}, pa.schema(columns))
                )

        if step == "open":
            drop()

        async def write() -> None:
            async with compactor.open_table(topic(), 2) as table:
                await table.write(lake_records([b"2"], start=1))
                drop()
                await table.commit({0: 2})

        with pytest.raises(ConflictError, match=r"somebody changed the table.*column=value"):
            await write()
        assert load(compactor).scan().to_arrow().num_rows == 1 + appends


async def test_what_a_reason_quotes_is_short_and_one_line(tmp_path: Path) -> None:
    name = "\x1b[31m\n" + "n" * 900_000
    async with opened(tmp_path) as compactor:
        with pytest.raises(InvalidRequestError) as told:
            await put(compactor, objects({name: 1}), value_format="json")
    assert len(str(told.value)) < 1000
    assert str(told.value).isprintable()
    assert str(told.value).endswith("table=orders partition=0 offset=0")


async def test_a_panic_of_a_library_is_an_error_of_its_table_only(tmp_path: Path) -> None:
    """It is no Exception, and would end the process that makes all tables, at each try again."""
    panic = type("PanicException", (BaseException,), {})

    def work() -> None:
        raise panic("called `Option::unwrap()` on a `None` value")

    async with opened(tmp_path) as compactor:
        with pytest.raises(RuntimeError, match="a library panicked: called"):
            await compactor._place.run("reading records", work)


def test_json_as_deep_as_the_parser_takes_it_fails_alone() -> None:
    decoder = JsonDecoder(Fitter())
    for depth in (*range(400, 1000, 25), 2000, 100_000):
        deep = b'{"a":' + b"[" * depth + b'"\\u0041"' + b"]" * depth + b"}"
        decoded = decoder.decode(lake_records([b'{"a": []}', deep]).values)
        assert len(decoded.failures) == 1


@pytest.mark.parametrize("items", ["null", {"type": "record", "name": "e", "fields": []}])
def test_avro_items_that_take_no_bytes_are_no_way_to_keep_a_thread_busy(items: Any) -> None:
    schema = {
        "type": "record",
        "name": "r",
        "fields": [{"name": "a", "type": {"type": "array", "items": items}}],
    }
    codec = AvroCodec.of(json.dumps(schema))
    endless = b"\xfe\xff\xff\xff\x3f\x00"  # 2**33 of them
    decoded = codec.decode(pa.array([b"\x00", endless], pa.binary()))
    assert [failure.index for failure in decoded.failures] == [1]


def test_a_schema_that_says_a_type_in_a_type_over_and_over_is_refused_at_once() -> None:
    nested: Any = "long"
    for level in range(40):
        again = f"r{level - 1}" if level else "long"
        fields = [{"name": "a", "type": nested}, {"name": "b", "type": again}]
        nested = {"type": "record", "name": f"r{level}", "fields": fields}
    with pytest.raises(ValueError, match=r"too many columns: columns_max="):
        AvroCodec.of(json.dumps(nested))
    file = descriptor_pb2.FileDescriptorProto(name="a.proto", syntax="proto3")
    for level in range(30):
        message = file.message_type.add(name=f"M{level}")
        for number, name in ((1, "a"), (2, "b")):
            field = message.field.add(name=name, number=number, label=1)
            if level:
                field.type, field.type_name = 11, f".M{level - 1}"
            else:
                field.type = 3
    pool = descriptor_pool([file])
    with pytest.raises(ValueError, match=r"too many columns: columns_max="):
        ProtobufCodec(pool.FindMessageTypeByName("M29"))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "enum", "name": "e"},
        {"type": "record", "name": "r"},
        {"type": "record", "name": "r", "fields": [1]},
        {"type": "record", "name": "r", "fields": [{"type": "int"}]},
        {"type": "fixed", "name": "f"},
        {"type": "fixed", "name": "f", "size": -1},
        {"type": "fixed", "name": "f", "size": 2**40},
        {"type": [[], {"type": {}}]},
    ],
)
def test_a_schema_that_is_none_fails_the_records_that_name_it(schema: Any) -> None:
    with pytest.raises(ValueError, match=r"^the schema "):
        AvroCodec.of(json.dumps(schema))


def test_a_topic_config_is_read_at_once_whatever_it_holds() -> None:
    """It is checked on the event loop: what was matched in many ways stopped the broker for hours."""
    for text in (
        "day( " + " " * 20_000 + "(",
        "a" + " " * 20_000 + "(",
        "(" * 100_000,
        "bucket(" + "9" * 5000 + ", a)",
        "bucket(00, a)",
        "day(a), day(a)",
        ",".join(f"c{number}" for number in range(100_000)),
    ):
        assert "penstock.lake.partition.by can't be that" in fault_of({"partition.by": text})
    read = TableConfigs.of({"partition.by": " day ( a.b ) , bucket( 16 , c ) ,d "})
    assert read.partition_by == (Field("a.b", "day"), Field("c", "bucket", 16), Field("d"))
    assert "stands there once" in fault_of({"sort.by": "a, a desc"})


async def test_small_records_of_a_wide_table_take_little_memory_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight MiB of ``{}`` in a table of a thousand columns were gigabytes at once."""
    monkeypatch.setattr(_reading, "_ROWS_BYTES", 2**14)
    sizes: list[int] = []
    read = _reading.DecodingReader.read

    def measured(self: _reading.DecodingReader, records: LakeRecords) -> _reading.Read:
        found = read(self, records)
        sizes.append(found.rows.nbytes)
        return found

    monkeypatch.setattr(_reading.DecodingReader, "read", measured)
    dead = {"on_bad_record": "dead_letter", "on_schema_change": "dead_letter"}
    values = [*objects({}, None), b"{", *objects({"c1": "x"}, {"c1": 1})] * 40
    keys = [None if at % 3 == 0 else b"k%d" % at for at in range(len(values))]
    headers = [[(b"h", b"%d" % at), (b"n", None)][: at % 3] for at in range(len(values))]
    async with opened(tmp_path) as compactor:
        async with compactor.open_table(topic(value_format="json", **dead), 1) as table:
            await table.write(lake_records(objects({f"c{at}": at for at in range(50)})))
            sizes.clear()
            written = await table.write(lake_records(values, start=1, keys=keys, headers=headers))
            assert (written.rows, written.rejected) == (120, {"dead_letter": 80})
            assert max(sizes) < 2**15
            await table.commit({0: 201})
        rows, letters = content(compactor)[1:], content(compactor, "orders__dead_letter")
    for row in (*[row["_kafka"] for row in rows], *letters):
        at = row["offset"] - 1
        assert row["key"] == keys[at]
        assert [(one["name"], one["value"]) for one in row["headers"]] in (
            headers[at],
            [(name.decode(), value) for name, value in headers[at]],
        )
    assert [row["value"] for row in letters] == [b"{", b'{"c1": "x"}'] * 40
    assert [row["c1"] for row in rows] == [None, None, 1] * 40


_WIDE = [f"c{at}" for at in range(50)]
_BYTES = 1000


def _swelling_avro(place: Path) -> tuple[str, list[bytes | None]]:
    item = {"type": "record", "name": "W", "fields": [maybe_long(name) for name in _WIDE]}
    schema = avro_schema(place, {"name": "l", "type": {"type": "array", "items": ["null", item]}})
    return schema, [b"\0", b"\xd0\x0f" + bytes(_BYTES) + b"\0", b"\x02\0\0"]


def _swelling_json(place: Path) -> tuple[str, list[bytes | None]]:
    return "", objects({"l": [dict.fromkeys(_WIDE, 1)]}, {"l": [{}] * _BYTES}, {"l": [{}]})


def _swelling_protobuf(place: Path) -> tuple[str, list[bytes | None]]:
    file = descriptor_pb2.FileDescriptorProto(name="a.proto", syntax="proto3")
    file.message_type.add(name="M").field.add(name="l", number=1, type=11, label=3, type_name=".W")
    item = file.message_type.add(name="W")
    for number, name in enumerate(_WIDE, 1):
        item.field.add(name=name, number=number, type=3, label=1)
    folder = place / "lake" / "schemas"
    folder.mkdir(parents=True)
    (folder / "a.desc").write_bytes(descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString())
    return "a.desc", [b"", b"\x0a\0" * _BYTES, b"\x0a\0"]


@pytest.mark.parametrize(
    ("form", "swelling"),
    [("avro", _swelling_avro), ("json", _swelling_json), ("protobuf", _swelling_protobuf)],
)
async def test_a_record_whose_lists_would_take_too_much_memory_fails_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
    swelling: Callable[[Path], tuple[str, list[bytes | None]]],
) -> None:
    """An item takes a byte or two in a record, and 8 bytes for each of its columns in memory: 60 KB were 4 GB."""
    for module in (_decoder, _protobuf):
        monkeypatch.setattr(module, "MEMORY_MAX", 2**18)
    file, values = swelling(tmp_path)
    async with opened(tmp_path) as compactor:
        written = await put(
            compactor,
            values * 2,
            value_format=form,
            value_schema_file=file,
            on_bad_record="dead_letter",
        )
        assert (written.rows, written.rejected) == (4, {"dead_letter": 2})
        assert "would take too much memory: bytes_max=262144" in written.reason
        rows = [row["_kafka"]["offset"] for row in content(compactor)]
        assert rows == [at for at in range(6) if at % 3 != 1]
        assert [row["value"] for row in content(compactor, "orders__dead_letter")] == [values[1]] * 2


async def test_dead_letters_dont_pile_up_in_memory_until_the_commit(tmp_path: Path) -> None:
    async with opened(tmp_path, buffer=2**20) as compactor:
        configs = topic(value_format="json", on_bad_record="dead_letter")
        async with compactor.open_table(configs, 1) as table:
            await table.write(lake_records([b"{" + b" " * 2**20, b"{"]))
            assert len(data_files(tmp_path, "orders__dead_letter")) == 1
            await table.write(lake_records([b"{"], start=2))
            await table.commit({0: 3})
        assert [row["offset"] for row in content(compactor, "orders__dead_letter")] == [0, 1, 2]


async def test_partitions_and_order_that_are_set_later_hold_from_then_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        values = objects({"id": 1, "a": "x"})
        for epoch, by in enumerate(("", "bucket(4,id)", "day(_kafka.timestamp)", "bucket(4,id)", "a"), 1):
            configs: dict[str, Any] = {"partition_by": by, "sort_by": by and "a desc, id"}
            await put(compactor, values, start=epoch - 1, epoch=epoch, value_format="json", **configs)
        assert [field.name for field in load(compactor).spec().fields] == ["a"]
        versions = load(compactor).metadata_location.rpartition("/")[2].partition("-")[0]
        async with compactor.open_table(topic(value_format="json", **configs), epoch):
            pass
        assert load(compactor).metadata_location.rpartition("/")[2].startswith(versions)  # nothing to change
        twice = "day(_kafka.timestamp), hour(_kafka.timestamp)"
        with pytest.raises(ConfigError, match=r"can't be divided or sorted as.*conflicts"):
            await put(compactor, values, start=5, epoch=6, value_format="json", partition_by=twice)
        with pytest.raises(ConfigError, match=r"can't be sorted by a column with parts.*column=_kafka"):
            await put(compactor, values, start=5, epoch=7, value_format="json", sort_by="_kafka")


async def test_a_commit_has_so_many_files_whatever_timestamps_producers_write(tmp_path: Path) -> None:
    """Rows of partitions with less than their share are in one file, which isn't divided; nothing is lost."""
    days = [day * 86_400_000 for day in range(1000)]
    today = [2000 * 86_400_000] * 500
    configs: dict[str, Any] = {
        "value_format": "json",
        "partition_by": "day(_kafka.timestamp)",
        "partition_files_max": "20",
        "snapshot_retention_ms": "0",
        "snapshot_retention_count": "1",
    }
    async with opened(tmp_path) as compactor:
        for start in (0, 1500):
            async with compactor.open_table(topic(**configs), 1) as table:
                values = objects(*({"id": start + at} for at in range(1500)))
                await table.write(lake_records(values, start=start, timestamps=[*days, *today]))
                committed = await table.commit({0: start + 1500})
                assert committed.files == 2
                assert committed.rows == 1500
        assert [row["id"] for row in content(compactor)] == list(range(3000))
        made = load(compactor)
        assert [str(field.transform) for field in made.spec().fields] == ["day"]
        snapshot = made.current_snapshot()
        assert snapshot is not None
        assert snapshot.summary is not None
        assert snapshot.summary["total-records"] == "3000"
        assert snapshot.summary["total-data-files"] == "4"
        past = made.scan("_kafka.timestamp < '1975-01-01T00:00:00+00:00'").plan_files()
        assert sum(task.file.record_count for task in past) == 2000, "the day of many has files of its own"
        async with compactor.open_table(topic(**configs), 1) as table:
            done = await table.maintain()
        assert done.figures["data files after"] == 2
        assert [row["id"] for row in content(compactor)] == list(range(3000))
        reader = duckdb_with_iceberg()
        scan = f"iceberg_scan('{load(compactor).metadata_location}')"
        assert reader.execute(f"SELECT count(DISTINCT id) FROM {scan}").fetchone() == (3000,)
        reader.close()


async def test_the_longest_name_of_a_topic_makes_a_table_with_dead_letters(tmp_path: Path) -> None:
    names = ["t" * 248 + end for end in "ab"]
    async with opened(tmp_path) as compactor:
        found = []
        for number, name in enumerate(names):
            wanted = topic(name, topic_id=f"t-{number}", value_format="json", on_bad_record="dead_letter")
            async with compactor.open_table(wanted, 1) as table:
                await table.write(lake_records([b"{"]))
                await table.commit({0: 1})
                found.append(table.name)
        assert found[0] != found[1]
        assert all(load(compactor, f"{name}__dead_letter").scan().to_arrow().num_rows == 1 for name in found)
    assert "200 letters" in fault_of({"table": "x" * 201})


async def test_rows_are_read_back_a_row_group_at_a_time_whatever_they_inflate_to(tmp_path: Path) -> None:
    """A value over and over is a few bytes in a file, and was all of them at once in memory."""
    async with opened(tmp_path) as compactor:
        for start in (0, 40):
            await put(compactor, [b"\0" * 2**20] * 40, start=start)
        table = load(compactor)
        tasks = list(table.scan().plan_files())
        assert sum(task.file.file_size_in_bytes for task in tasks) < 2**20
        parts = [part for task in tasks for part in read_parts(table, task)]
        assert sum(part.num_rows for part in parts) == 80
        assert max(part.nbytes for part in parts) < 20 * 2**20
        again = pa.concat_tables(parts).sort_by("offset")
        assert again.equals(table.scan().to_arrow().sort_by("offset").cast(again.schema))


@pytest.mark.parametrize(
    ("version", "error", "why"),
    [(3, ConflictError, "one of a newer format of Iceberg"), (99, CorruptError, "can't be understood")],
)
async def test_a_table_that_somebody_upgraded_beyond_what_can_be_written_stops_in_words(
    tmp_path: Path, version: int, error: type[Exception], why: str
) -> None:
    async with opened(tmp_path) as compactor:
        await put(compactor, [b"a"])
        metadata = anyio.Path(load(compactor).metadata_location.removeprefix("file://"))
        found = json.loads(await metadata.read_text())
        await metadata.write_text(json.dumps(found | {"format-version": version, "next-row-id": 1}))
        for epoch in (1, 2):
            with pytest.raises(error, match=why) as told:
                await put(compactor, [b"b"], start=1, epoch=epoch)
            assert "\n" not in str(told.value)
