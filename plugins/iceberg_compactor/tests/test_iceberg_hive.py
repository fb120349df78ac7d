"""Tables in a Hive metastore: each commit once, also after lost locks and replies; nothing waits for a silent one."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from penstock_iceberg_compactor import _catalog
from penstock_iceberg_compactor._compactor import IcebergCompactor
from tests.iceberg_place import load, opened, topic
from tests.lake_records import lake_records

from penstock.errors import ConfigError, UnavailableError

pytest.importorskip("thrift", reason="needs pip install 'penstock[hive]'")
from tests.iceberg_metastore import Metastore, metastore
from thrift.transport.TTransport import TTransportException

pytestmark = pytest.mark.anyio


@pytest.fixture
def hive() -> Iterator[Metastore]:
    with metastore() as store:
        yield store


@asynccontextmanager
async def compactor_of(place: Path, uri: str, **others: Any) -> AsyncIterator[IcebergCompactor]:
    catalog = {"type": "hive", "uri": uri}
    async with opened(place, catalog=catalog, warehouse=str(place / "warehouse"), **others) as compactor:
        yield compactor


async def put(
    compactor: IcebergCompactor, start: int, *values: bytes, name: str = "orders", epoch: int = 1
) -> None:
    async with compactor.open_table(topic(name, topic_id=name), epoch) as table:
        assert (await table.positions()).get(0, 0) == start
        await table.write(lake_records(list(values), start=start))
        await table.commit({0: start + len(values)})


def values(compactor: IcebergCompactor, name: str = "orders") -> list[bytes]:
    return sorted(load(compactor, name).scan().to_arrow().column("value").to_pylist())


async def test_tables_of_several_topics_are_written_beside_each_other(
    tmp_path: Path, hive: Metastore
) -> None:
    """pyiceberg has one connection for all threads, which they take from each other."""
    names = [f"orders{number}" for number in range(4)]

    async def fill(name: str) -> None:
        for start in range(3):
            await put(compactor, start, b"%d" % start, name=name)

    async with compactor_of(tmp_path, hive.uri) as compactor:
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(fill, name)
        assert [values(compactor, name) for name in names] == [[b"0", b"1", b"2"]] * len(names)
    async with compactor_of(tmp_path, hive.uri) as compactor:
        await put(compactor, 3, b"3", name=names[0], epoch=2)
        assert values(compactor, names[0]) == [b"0", b"1", b"2", b"3"]


async def test_an_owner_whose_lock_ended_meanwhile_commits_nothing(tmp_path: Path, hive: Metastore) -> None:
    """A metastore ends locks of whom it hears nothing; who comes back later would put his table over the others'."""

    def another_commits() -> None:
        hive.end_locks()
        other = load(compactor)
        other.append(other.scan().to_arrow())

    async with compactor_of(tmp_path, hive.uri) as compactor:
        await put(compactor, 0, b"a")
        async with compactor.open_table(topic(topic_id="orders"), 1) as table:
            await table.write(lake_records([b"b"], start=1))
            hive.before_alter = another_commits
            await table.commit({0: 2})
        assert values(compactor) == [b"a", b"a", b"b"]


async def test_a_metastore_on_derby_has_its_lock_only(tmp_path: Path, hive: Metastore) -> None:
    hive.is_on_derby = True
    async with compactor_of(tmp_path, hive.uri) as compactor:
        await put(compactor, 0, b"a")
        assert values(compactor) == [b"a"]


async def test_a_reply_that_is_lost_is_looked_up(tmp_path: Path, hive: Metastore) -> None:
    def lose() -> None:
        raise TTransportException(message="the connection ends")

    async with compactor_of(tmp_path, hive.uri) as compactor:
        await put(compactor, 0, b"a")
        async with compactor.open_table(topic(topic_id="orders"), 1) as table:
            await table.write(lake_records([b"b"], start=1))
            hive.after_alter = lose
            await table.commit({0: 2})
        await put(compactor, 2, b"c")
        assert values(compactor) == [b"a", b"b", b"c"]


async def test_a_metastore_that_is_away_or_silent_is_told_and_used_once_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_catalog, "_FIRST_S", 0.05)
    told = r"opening the catalog failed, the catalog can't be used for now: catalog=penstock cause="
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
        async with compactor_of(tmp_path, f"thrift://127.0.0.1:{port}", catalog_timeout="1s") as compactor:
            with pytest.raises(UnavailableError, match=told):
                await put(compactor, 0, b"a")
    monkeypatch.undo()
    async with compactor_of(tmp_path, f"thrift://127.0.0.1:{port}") as compactor:
        with pytest.raises(UnavailableError, match=told):
            await put(compactor, 0, b"a")
    with metastore() as hive:
        async with compactor_of(tmp_path, f"thrift://127.0.0.1:{port}, {hive.uri}") as compactor:
            await put(compactor, 0, b"a")
            assert values(compactor) == [b"a"]


async def test_an_address_without_a_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"of a metastore is thrift://host:port: uri=thrift:metastore"):
        async with compactor_of(tmp_path, "thrift:metastore"):
            pass
