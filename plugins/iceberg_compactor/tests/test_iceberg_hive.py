"""Tables in a Hive metastore: each commit once, also after lost locks and replies; nothing waits for a silent one."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from penstock_iceberg_compactor import _catalog
from penstock_iceberg_compactor._compactor import IcebergCompactor
from tests.iceberg_place import load, opened, topic
from tests.lake_records import lake_records
from tests.patience import HANG_S

from penstock.errors import ConfigError, ConflictError, UnavailableError

pytest.importorskip("thrift", reason="needs pip install 'penstock[hive]'")
from hive_metastore.ttypes import Database, MetaException, Table
from penstock_iceberg_compactor._hive import _Protocol
from tests.iceberg_metastore import Metastore, metastore
from thrift.protocol.TProtocol import TProtocolException
from thrift.transport.TTransport import TMemoryBuffer, TTransportException

pytestmark = pytest.mark.anyio


@pytest.fixture
def hive() -> Iterator[Metastore]:
    with metastore() as store:
        yield store


@asynccontextmanager
async def compactor_of(
    place: Path, uri: str, wait_s: float = 0.01, **others: Any
) -> AsyncIterator[IcebergCompactor]:
    """``wait_s`` is for between looks at a lock that somebody else has."""
    waits = {"lock-check-min-wait-time": str(wait_s), "lock-check-max-wait-time": str(wait_s)}
    catalog = {"type": "hive", "uri": uri, **waits}
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


@pytest.mark.parametrize("is_new", [False, True])
async def test_tables_are_found_and_listed_as_old_metastores_have_it_and_new_ones(
    tmp_path: Path, hive: Metastore, is_new: bool
) -> None:
    """Hive 4.0.1 took calls away that pyiceberg makes."""
    if is_new:
        del hive.calls["get_table"], hive.calls["get_table_objects_by_name"]
    hive.create_database(Database(name="kafka", parameters=None))
    hive.create_table(Table(dbName="kafka", tableName="another", parameters=None))
    async with compactor_of(tmp_path, hive.uri) as compactor:
        await put(compactor, 0, b"a")
        assert values(compactor) == [b"a"]
        assert await compactor.tables() == ["orders"]


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


async def test_a_commit_that_may_come_about_yet_keeps_its_lock(tmp_path: Path, hive: Metastore) -> None:
    """Old metastores don't compare: it would put its table over what the lock's next holder commits."""

    def lose() -> None:
        raise TTransportException(message="the connection ends")

    async with compactor_of(tmp_path, hive.uri) as compactor:
        await put(compactor, 0, b"a")
        hive.before_alter = lose
        with pytest.raises(UnavailableError):
            await put(compactor, 1, b"b")
        assert hive.locks
        hive.end_locks()
        await put(compactor, 1, b"b", epoch=2)
        assert values(compactor) == [b"a", b"b"]


@pytest.mark.parametrize("reply", ["lock", "unlock"])
async def test_no_lock_is_left_where_a_reply_or_a_request_is_lost(
    tmp_path: Path, hive: Metastore, monkeypatch: pytest.MonkeyPatch, reply: str
) -> None:
    """Its table would wait for it for five minutes."""

    def fails_once(request: Any) -> None:
        monkeypatch.undo()
        if reply == "lock":
            do(request)
            raise TTransportException(message="the connection ends")
        raise MetaException("the database is being restarted")

    do = getattr(hive, reply)
    async with compactor_of(tmp_path, hive.uri) as compactor:
        await put(compactor, 0, b"a")
        monkeypatch.setattr(hive, reply, fails_once)
        with suppress(UnavailableError):  # of a lock that wasn't got
            await put(compactor, 1, b"b")
        assert not hive.locks
        async with compactor.open_table(topic(topic_id="orders"), 1) as table:
            assert (await table.positions())[0] == (1 if reply == "lock" else 2)


async def test_who_has_the_lock_is_told_as_that_and_whoever_gives_up_leaves_none(
    tmp_path: Path, hive: Metastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = ("kafka", "orders")
    async with compactor_of(tmp_path, hive.uri) as compactor:
        await put(compactor, 0, b"a")
        hive.locks[0] = taken
        with pytest.raises(UnavailableError, match=r"^somebody else has the metastore's lock on the table"):
            await put(compactor, 1, b"b", epoch=2)
        assert hive.locks == {0: taken}
    check, waits = hive.check_lock, anyio.Event()
    loop = asyncio.get_running_loop()

    def checked(request: Any) -> Any:
        loop.call_soon_threadsafe(waits.set)
        return check(request)

    monkeypatch.setattr(hive, "check_lock", checked)
    async with compactor_of(tmp_path, hive.uri, wait_s=HANG_S) as compactor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(put, compactor, 1, b"b", epoch=3))
            with anyio.fail_after(HANG_S / 2):
                await waits.wait()
                tasks.cancel_scope.cancel()
        assert hive.locks == {0: taken}


@pytest.mark.parametrize("parameters", [None, {}, {"table_type": "hudi"}])
async def test_a_name_that_something_else_has_is_told(
    tmp_path: Path, hive: Metastore, parameters: dict[str, str] | None
) -> None:
    hive.create_table(Table(dbName="kafka", tableName="orders", parameters=parameters))
    async with compactor_of(tmp_path, hive.uri) as compactor:
        with pytest.raises(ConflictError, match=r"has something of this name that is no table of Iceberg's"):
            await put(compactor, 0, b"a")


def test_what_a_metastore_would_not_say_is_an_error_of_its_protocol() -> None:
    """Else the start would end with it, as with wrong settings."""
    with pytest.raises(TProtocolException):
        _Protocol(TMemoryBuffer(b"\0\0\0\x01\xff")).readString()


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
        async with compactor_of(tmp_path, f"thrift://127.0.0.1:{port}, {hive.uri},") as compactor:
            await put(compactor, 0, b"a")
            assert values(compactor) == [b"a"]


@pytest.mark.parametrize("is_alone", [True, False])
async def test_an_address_without_a_host_is_refused(tmp_path: Path, hive: Metastore, is_alone: bool) -> None:
    with pytest.raises(ConfigError, match=r"of a metastore is thrift://host:port: uri=thrift:metastore"):
        async with compactor_of(tmp_path, "thrift:metastore" if is_alone else f"{hive.uri},thrift:metastore"):
            pass
