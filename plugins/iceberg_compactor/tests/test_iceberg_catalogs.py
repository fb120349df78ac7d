"""Catalogs that are silent, away, lost or changed by somebody: nothing hangs, no file of a table is lost."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import pytest
import requests
from penstock_iceberg_compactor import _catalog
from penstock_iceberg_compactor._compactor import IcebergCompactor
from penstock_iceberg_compactor._errors import Secrets
from penstock_iceberg_compactor._settings import Settings
from penstock_iceberg_compactor._silence import bound_session, bounded_url, closing_if_silent
from tests.iceberg_place import load, opened, services, topic
from tests.lake_records import lake_records
from tests.patience import HANG_S

from penstock.errors import NotFoundError, UnavailableError
from penstock.threads import run_in_thread

pytestmark = pytest.mark.anyio
EAGER = {"snapshot_retention_ms": "0", "snapshot_retention_count": "1"}


async def put(compactor: IcebergCompactor, start: int, *values: bytes, epoch: int = 1) -> None:
    async with compactor.open_table(topic(), epoch) as table:
        assert (await table.positions()).get(0, 0) == start
        await table.write(lake_records(list(values), start=start))
        await table.commit({0: start + len(values)})


def values(compactor: IcebergCompactor, name: str = "orders") -> list[bytes]:
    return sorted(load(compactor, name).scan().to_arrow().column("value").to_pylist())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("adls.account-key", "hidden"),
        ("adls.connection-string", "AccountName=mine;AccountKey=hidden;EndpointSuffix=x"),
        ("header.Authorization", "Bearer hidden"),
        ("uri", "postgresql://me:hidden@db/x"),
        ("uri", "postgresql://db/x?user=me&password=hidden&x=1"),
    ],
)
def test_what_libraries_say_is_told_without_secrets(name: str, value: str) -> None:
    said = Secrets({name: value}).hide("the server at db refuses hidden of mine")
    assert said == "the server at db refuses *** of mine"


def test_a_catalog_that_says_nothing_holds_no_thread_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, requests.Session() as session:
        bound_session(session, lambda: 0.05)
        with pytest.raises(requests.exceptions.ReadTimeout):
            session.get(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/config")


async def test_a_silent_catalog_keeps_no_broker_from_starting_and_is_used_once_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the first request of all, which pyiceberg sends while it makes the catalog."""
    monkeypatch.setattr(_catalog, "_FIRST_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        async with opened(tmp_path, catalog={"type": "rest", "uri": uri}, catalog_timeout="1s") as compactor:
            with pytest.raises(
                UnavailableError, match=r"opening the catalog failed, .*can't be used for now"
            ):
                async with compactor.open_table(topic(), 1):
                    pass
        assert time.monotonic() - began < HANG_S


def test_a_database_that_says_nothing_holds_no_thread_for_ever() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stop = closing_if_silent(ours.fileno(), 0.05)
        assert ours.recv(1) == b"", "the wait ends"
        stop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        closing_if_silent(ours.fileno(), HANG_S)()
        theirs.send(b"x")
        assert ours.recv(1) == b"x", "what answered in time isn't touched"
    assert "connect_timeout=7" in bounded_url("postgresql+psycopg://u:p@host/db", 7)


@pytest.mark.parametrize("kind", ["rest", "postgres"])
async def test_who_gives_up_on_a_silent_catalog_waits_for_it_no_longer(tmp_path: Path, kind: str) -> None:
    """A broker that stops, or a topic that wants no table any more. The time for silence is a test's patience."""
    ours, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as silent, requests.Session() as session, ours, theirs:
        bound_session(session, lambda: HANG_S)
        asked = threading.Event()

        def wait() -> None:
            if kind == "rest":
                asked.set()
                session.get(f"http://127.0.0.1:{silent.getsockname()[1]}/v1/config")
            else:
                stop = closing_if_silent(ours.fileno(), HANG_S)
                asked.set()
                ours.recv(1)
                stop()

        async with opened(tmp_path) as compactor, anyio.create_task_group() as tasks:
            began = time.monotonic()
            tasks.start_soon(compactor._place.run, "waiting", wait)
            await run_in_thread(asked.wait, HANG_S)
            tasks.cancel_scope.cancel()
        assert time.monotonic() - began < HANG_S


@pytest.mark.parametrize("by", ["removed", "replaced", "before a restart"])
async def test_a_lost_catalog_is_noticed_and_its_tables_are_found_again(tmp_path: Path, by: str) -> None:
    """What the table has is in the warehouse: it goes on from there, exactly."""
    file = tmp_path / "lake" / "catalog.db"
    async with opened(tmp_path) as compactor:
        await put(compactor, 0, b"a", b"b")
        if by != "before a restart":
            async with compactor.open_table(topic(), 1) as table:
                await table.write(lake_records([b"c"], start=2))
                file.unlink()
                if by == "replaced":
                    file.touch()
                with pytest.raises(
                    UnavailableError, match=r"file was removed or replaced while.*catalog\.db"
                ):
                    await table.commit({0: 3})
            await put(compactor, 2, b"c")
            assert values(compactor) == [b"a", b"b", b"c"]
    if by == "before a restart":
        file.unlink()
        async with opened(tmp_path) as compactor:
            await put(compactor, 2, b"c", epoch=2)
            assert values(compactor) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("by", ["another writer", "the next owner"])
async def test_of_a_lost_catalog_only_commits_that_it_took_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The catalog writes metadata before it compares: those of a commit that lost stay beside the winner's."""
    file = tmp_path / "lake" / "catalog.db"
    async with opened(tmp_path) as compactor:
        await put(compactor, 0, b"a")
        write, lost = compactor.catalog._write_metadata, []  # type: ignore[attr-defined] # the SQL catalog's

        def written(metadata: Any, io: Any, metadata_path: str) -> None:
            monkeypatch.undo()
            folder, _, own = metadata_path.rpartition("/")
            lost.append(f"{folder}/{own[:6]}ffffffff{own[14:]}")
            write(metadata, io, lost[0])
            if by == "another writer":
                load(compactor).append(load(compactor).scan().to_arrow())
            else:
                raise OSError

        monkeypatch.setattr(compactor.catalog, "_write_metadata", written)
        with nullcontext() if by == "another writer" else pytest.raises(UnavailableError):
            await put(compactor, 1, b"b")
        async with compactor.open_table(topic(), 2):
            pass
    number = lost[0].rpartition("/")[2][:5]
    for path in (tmp_path / "lake/warehouse/kafka/orders/metadata").glob("*.metadata.json"):
        if path.name[:5] > number:
            path.unlink()  # as if the catalog were lost right then
    file.unlink()
    async with opened(tmp_path) as compactor:
        async with compactor.open_table(topic(), 3) as table:
            assert await table.positions() == {0: 1}
        assert values(compactor) == ([b"a", b"a"] if by == "another writer" else [b"a"])


async def test_who_only_looks_makes_no_catalog(tmp_path: Path) -> None:
    looking = services(tmp_path, read_only=True)
    async with IcebergCompactor.opened(Settings(), looking) as compactor:
        with pytest.raises(UnavailableError, match=r"the catalog's file isn't there"):
            await compactor.tables()
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize("how", ["dropped", "renamed"])
async def test_a_table_that_somebody_dropped_or_renamed_keeps_its_files(tmp_path: Path, how: str) -> None:
    """The topic's table is made again, in a place of its own; maintenance of one leaves the other alone."""
    async with opened(tmp_path, orphan_grace=0) as compactor:
        await put(compactor, 0, b"a", b"b")
        old = load(compactor)
        async with compactor.open_table(topic(), 1) as table:
            await table.write(lake_records([b"c"], start=2))
            if how == "dropped":
                compactor.catalog.drop_table("kafka.orders")
            else:
                compactor.catalog.rename_table("kafka.orders", "kafka.before")
            with pytest.raises(
                NotFoundError,
                match=r"somebody dropped the table or gave it another name",
            ):
                await table.commit({0: 3})
        await put(compactor, 0, b"A")
        async with compactor.open_table(topic(**EAGER), 1) as table:
            assert (await table.maintain()).figures["orphans removed"] == 0
        assert load(compactor).location() != old.location()
        assert values(compactor) == [b"A"]
        assert sorted(old.scan().to_arrow().column("value").to_pylist()) == [b"a", b"b"]


@pytest.mark.parametrize("doing", ["committing", "maintaining"])
async def test_a_table_that_somebody_dropped_and_made_anew_is_told_as_dropped(
    tmp_path: Path, doing: str
) -> None:
    async with opened(tmp_path) as compactor:
        await put(compactor, 0, b"a")
        async with compactor.open_table(topic(), 1) as table:
            old = load(compactor)
            compactor.catalog.drop_table("kafka.orders")
            compactor.catalog.create_table(
                "kafka.orders", old.schema(), location=f"{old.location()}-new", properties=old.properties
            )
            told = pytest.raises(NotFoundError, match="somebody dropped the table or gave it another name")
            if doing == "committing":
                await table.write(lake_records([b"b"], start=1))
                with told:
                    await table.commit({0: 2})
            else:
                with told:
                    await table.maintain()


async def test_orphans_stay_where_another_table_has_its_files_too(tmp_path: Path) -> None:
    """Whoever made it there: what isn't in this table's metadata may be all that the other one has."""
    async with opened(tmp_path, orphan_grace=0) as compactor:
        await put(compactor, 0, b"a")
        mine = load(compactor)
        other = compactor.catalog.create_table("kafka.other", mine.schema(), location=mine.location())
        other.append(mine.scan().to_arrow())
        async with compactor.open_table(topic(**EAGER), 1) as table:
            assert (await table.maintain()).figures["orphans removed"] == 0
        assert values(compactor, "other") == [b"a"]


async def test_orphans_go_also_where_two_owners_made_the_table_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The catalog took one of them; the other's first metadata stay, which are those of a table without rows."""
    async with opened(tmp_path, orphan_grace=0) as compactor:
        write = compactor.catalog._write_metadata  # type: ignore[attr-defined] # the SQL catalog's

        def written(metadata: Any, io: Any, metadata_path: str) -> None:
            monkeypatch.undo()
            write(metadata, io, metadata_path)
            compactor.catalog.create_table(
                "kafka.orders", metadata.schema(), metadata.location, properties=metadata.properties
            )

        monkeypatch.setattr(compactor.catalog, "_write_metadata", written)
        await put(compactor, 0, b"a")
        async with compactor.open_table(topic(**EAGER), 1) as table:
            assert (await table.maintain()).figures["orphans removed"] == 1
        assert values(compactor) == [b"a"]


async def test_a_namespace_that_somebody_dropped_is_made_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        compactor.catalog.drop_namespace("kafka")
        await put(compactor, 0, b"a")
        assert values(compactor) == [b"a"]
