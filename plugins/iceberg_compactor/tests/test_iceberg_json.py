"""JSON tables: columns grow, policies hold, and dead letters are as exact as the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from penstock_iceberg_compactor._compactor import IcebergCompactor
from tests.iceberg_place import load, opened, topic
from tests.lake_records import lake_records

from penstock.errors import ConfigError, InvalidRequestError

pytestmark = pytest.mark.anyio


def values(*items: Any) -> list[bytes | None]:
    return [item if item is None or isinstance(item, bytes) else json.dumps(item).encode() for item in items]


def content(compactor: IcebergCompactor, name: str = "orders", *columns: str) -> list[dict[str, Any]]:
    rows = load(compactor, name).scan(selected_fields=columns or ("*",)).to_arrow().to_pylist()
    return sorted(rows, key=lambda row: (row.get("_kafka") or row).get("offset") or 0)


async def put(compactor: IcebergCompactor, items: list[bytes | None], start: int = 0, **configs: Any) -> Any:
    async with compactor.open_table(topic(value_format="json", **configs), 1) as table:
        at = (await table.positions()).get(0, 0)
        assert at == start
        written = await table.write(lake_records(items, start=start))
        await table.commit({0: start + len(items)})
        return written


async def test_columns_come_and_grow_with_the_records(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        await put(compactor, values({"id": 1, "at": {"x": 1}}, {"id": 2, "tags": ["a", None]}))
        await put(compactor, values({"id": 3, "at": {"y": "b"}, "new": 1.5}, None), start=2)
        rows = content(compactor)
        system = [row.pop("_kafka") for row in rows]
        assert rows == [
            {"id": 1, "at": {"x": 1, "y": None}, "tags": None, "new": None},
            {"id": 2, "at": None, "tags": ["a", None], "new": None},
            {"id": 3, "at": {"x": None, "y": "b"}, "tags": None, "new": 1.5},
            {"id": None, "at": None, "tags": None, "new": None},
        ]
        assert [one["offset"] for one in system] == [0, 1, 2, 3]
        assert system[0]["timestamp"].year == 2026


async def test_a_bad_record_stops_the_topic_and_nothing_is_lost(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        await put(compactor, values({"id": 1}))
        with pytest.raises(InvalidRequestError, match=r"can't be read: it is no json.*offset=2"):
            await put(compactor, values({"id": 2}, b"{"), start=1)
        assert len(content(compactor)) == 1
        await put(compactor, values({"id": 2}, b"{"), start=1, on_bad_record="null")
        assert [row["id"] for row in content(compactor)] == [1, 2, None]


async def test_a_value_of_another_type_follows_the_policy_of_schema_changes(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        await put(compactor, values({"id": 1}))
        wrong = values({"id": "x"}, {"id": 2})
        with pytest.raises(
            InvalidRequestError, match=r'doesn\'t fit the table: column "id" holds a string.*offset=1'
        ):
            await put(compactor, wrong, start=1, on_bad_record="dead_letter")
        await put(compactor, wrong, start=1, on_schema_change="dead_letter")
        assert [row["id"] for row in content(compactor)] == [1, 2]
        assert [row["offset"] for row in content(compactor, "orders__dead_letter")] == [1]
        await put(compactor, values({"id": "y"}), start=3, on_schema_change="null")
        assert [row["id"] for row in content(compactor)] == [1, 2, None]


async def test_a_schema_is_a_file_in_the_directory_of_schemas_and_nowhere_else(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        folder = Path(compactor._place.services.data_dir) / "lake" / "schemas"
        folder.mkdir(parents=True)
        schema = {"properties": {"id": {"type": "integer"}}}
        for path in (folder / "orders.json", folder.parent / "secret.json"):
            path.write_text(json.dumps(schema))
        (folder / "link.json").symlink_to(folder.parent / "secret.json")
        await put(compactor, values({"id": 1, "more": 2}), value_schema_file="orders.json")
        assert [row["id"] for row in content(compactor)] == [1]
        for name in ("../secret.json", str(folder.parent / "secret.json"), "link.json"):
            with pytest.raises(ConfigError, match=r"has to name a file in the directory of schemas"):
                await put(compactor, values({"id": 2}), start=1, value_schema_file=name)


async def test_hostile_names_follow_the_policy_too(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        hostile = values({"_kafka": 1}, {"_key": 1}, {"a": {"b": 1}}, {"a.b": 1})
        await put(compactor, [*values({"id": 1}), *hostile], on_schema_change="dead_letter")
        assert [row["id"] for row in content(compactor)] == [1, None]
        assert [row["offset"] for row in content(compactor, "orders__dead_letter")] == [1, 2, 4]


async def test_configs_say_how_json_becomes_columns(tmp_path: Path) -> None:
    configs: dict[str, Any] = {
        "value_json_timestamps": "true",
        "value_json_numbers": "double",
        "value_json_columns_max": "3",
    }
    async with opened(tmp_path) as compactor:
        await put(compactor, values({"n": 1, "at": "2026-01-31T12:00:00Z"}), **configs)
        (row,) = content(compactor)
        assert (type(row["n"]), row["at"].year) == (float, 2026)
        with pytest.raises(InvalidRequestError, match=r"would be one too many: columns_max=3"):
            await put(compactor, values({"a": 1, "b": 2}), start=1, **configs)


async def test_dead_letters_are_there_once_also_after_a_commit_that_failed(tmp_path: Path) -> None:
    configs: dict[str, Any] = {"on_bad_record": "dead_letter", "on_schema_change": "dead_letter"}
    async with opened(tmp_path) as compactor:
        await put(compactor, values({"id": 1}), **configs)

        steps = []

        def crash(name: str) -> None:
            steps.append(name)
            if steps.count("manifests written") == 2:
                raise OSError("away")

        items = values({"id": 2}, b"{", {"id": "three"}, {"id": 4})
        compactor.watch(crash)
        with pytest.raises(Exception, match="away"):
            await put(compactor, items, start=1, **configs)
        compactor.watch(lambda name: None)
        letters = content(compactor, "orders__dead_letter")
        assert [row["offset"] for row in letters] == [2, 3], "the letters are committed first"
        written = await put(compactor, items, start=1, **configs)
        assert (written.rows, dict(written.rejected)) == (2, {"dead_letter": 2})
        assert [row["id"] for row in content(compactor)] == [1, 2, 4]
        letters = content(compactor, "orders__dead_letter")
        assert [(row["offset"], row["value"]) for row in letters] == [(2, b"{"), (3, b'{"id": "three"}')]
        assert "no json" in letters[0]["reason"]
        assert "offset=3" in letters[1]["reason"]


async def test_partitions_and_order_are_as_configured(tmp_path: Path) -> None:
    configs: dict[str, Any] = {"partition_by": "day(_kafka.timestamp), bucket(4, id)", "sort_by": "id desc"}
    async with opened(tmp_path) as compactor:
        await put(compactor, values(*({"id": number} for number in range(100))), **configs)
        table = load(compactor)
        assert [str(field.transform) for field in table.spec().fields] == ["day", "bucket[4]"]
        tasks = list(table.scan().plan_files())
        assert sorted(task.file.partition[1] for task in tasks) == [0, 1, 2, 3]
        ids = [row["id"] for row in table.scan().to_arrow().to_pylist()]
        assert sorted(ids) == list(range(100))
        assert len(list(table.scan(row_filter="id = 7").plan_files())) == 1, (
            "partitions are right, so readers skip"
        )


@pytest.mark.parametrize("wrong", [{"id": "x"}, {"id": 5, "new": [1, "a"]}, {"id": 2**63}])
async def test_it_is_told_which_value_became_null_and_why(tmp_path: Path, wrong: Any) -> None:
    async with opened(tmp_path) as compactor:
        await put(compactor, values({"id": 1}))
        written = await put(compactor, values({"id": 2}, wrong, {"id": 3}), start=1, on_schema_change="null")
        assert (written.rows, dict(written.rejected)) == (2, {"null": 1})
        name = "new" if "new" in wrong else "id"
        assert written.reason.startswith(f'a record doesn\'t fit the table: column "{name}" ')
        assert written.reason.endswith("table=orders partition=0 offset=2")
