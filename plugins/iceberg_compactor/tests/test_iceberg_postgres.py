"""A catalog in PostgreSQL that is killed while it is asked: nothing is lost, nothing is there twice."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from unittest.mock import patch

import anyio
import pytest
from penstock_iceberg_compactor import _catalog
from penstock_iceberg_compactor._catalog import OpenCatalog
from penstock_iceberg_compactor._errors import Secrets
from penstock_iceberg_compactor._silence import bounded_url
from pyiceberg.catalog.sql import SqlCatalog
from sqlalchemy import Engine, event
from tests.iceberg_place import load, opened, topic
from tests.lake_records import lake_records
from tests.patience import HANG_S
from tests.postgres_server import PostgresServer, serving_postgres

from penstock.errors import ConfigError, ConflictError, FencedError, UnavailableError
from penstock.threads import run_in_thread

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with serving_postgres() as server:
        yield server


@pytest.mark.parametrize(
    "step", ["table made", "table claimed", "files written", "manifests written", "committed"]
)
async def test_a_catalog_killed_at_a_step_of_a_commit_is_gone_on_with(
    tmp_path: Path, postgres: PostgresServer, step: str
) -> None:
    """What is in the table is told when the catalog is back, and no file is left over."""
    catalog = {"type": "sql", "uri": postgres.url}
    wanted = topic(step.replace(" ", "_"))
    async with opened(tmp_path, catalog=catalog) as compactor:
        kills = 0

        def kill(name: str) -> None:
            nonlocal kills
            if name == step and not kills:
                kills += 1
                postgres.kill()

        compactor.watch(kill)
        at = 0
        for _ in range(3):
            try:
                async with compactor.open_table(wanted, 1) as table:
                    at = (await table.positions()).get(0, 0)
                    if at < 2:
                        await table.write(lake_records([b"a", b"b"][at:], start=at))
                        await table.commit({0: 2})
            except UnavailableError:
                postgres.start()
        assert kills == 1
        async with compactor.open_table(wanted, 0) as table:
            assert sorted([row.offset async for row in table.rows()]) == [0, 1]
            assert await table.positions() == {0: 2}
            known = {task.file.file_path for task in load(compactor, wanted.name).scan().plan_files()}
        assert set(map(Path.as_uri, tmp_path.rglob("data/*.parquet"))) == known  # noqa: ASYNC240 - a local disk


async def test_of_two_owners_of_one_table_the_older_is_fenced(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    """Two processes, one catalog: what the older one wrote is neither visible nor left behind."""
    catalog = {"type": "sql", "uri": postgres.url}
    async with opened(tmp_path, catalog=catalog) as first, opened(tmp_path, catalog=catalog) as second:
        async with first.open_table(topic(), 1) as older:
            await older.write(lake_records([b"a"]))
            await older.commit({0: 1})
            await older.write(lake_records([b"b"], start=1))
            async with second.open_table(topic(), 2) as newer:
                with pytest.raises((FencedError, ConflictError), match="somebody else owns the table now"):
                    await older.commit({0: 2})
                assert await newer.positions() == {0: 1}
                await newer.write(lake_records([b"b"], start=1))
                await newer.commit({0: 2})
        async with second.open_table(topic(), 0) as table:
            assert sorted([row.offset async for row in table.rows()]) == [0, 1]


def test_a_server_that_is_gone_without_a_word_holds_no_thread_for_ever() -> None:
    """libpq's own limits are two hours and more; those that are given stay, and other databases aren't touched."""
    bounded = bounded_url("postgresql+psycopg://me:se%40cret@host/db?connect_timeout=5", 30)
    assert bounded.startswith("postgresql+psycopg://me:se%40cret@host/db?")
    assert "connect_timeout=5" in bounded
    assert "tcp_user_timeout=60000" in bounded
    assert "keepalives_idle=30" in bounded
    for url in ("sqlite:////x/y.db", "postgresql+pg8000://host/db", "what is this"):
        assert bounded_url(url, 30) == url


@pytest.mark.parametrize("idle", [True, False])
async def test_a_server_that_stands_still_is_given_up_on(
    tmp_path: Path, postgres: PostgresServer, idle: bool
) -> None:
    """Its host answers for it, so no limit of libpq ends the wait; also before a connection is used again."""
    catalog = {"type": "sql", "uri": postgres.url, "pool_pre_ping": str(idle).lower()}
    name = f"standing_{idle}"
    async with opened(tmp_path, catalog=catalog, catalog_timeout="1s") as compactor:
        async with compactor.open_table(topic(name), 1) as table:
            await table.write(lake_records([b"a"]))
            with postgres.standing_still():
                with pytest.raises(UnavailableError, match=r"catalog"):
                    await table.commit({0: 1})
        async with compactor.open_table(topic(name), 1) as table:
            at = (await table.positions()).get(0, 0)
            await table.write(lake_records([b"a", b"b"][at:], start=at))
            await table.commit({0: 2})
        assert load(compactor, name).scan().to_arrow().num_rows == 2


async def test_who_gave_up_on_a_commit_begins_no_connection_more(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    """What became of the commit would be looked up over a new connection, for which nobody waits any more."""
    catalog = {"type": "sql", "uri": postgres.url, "pool_pre_ping": "false"}
    begun: list[object] = []
    async with opened(tmp_path, catalog=catalog) as compactor:
        asked = threading.Event()
        async with compactor.open_table(topic("left"), 1) as table:
            await table.write(lake_records([b"a"]))
            database = cast(SqlCatalog, compactor.catalog).engine
            event.listen(database, "before_cursor_execute", lambda *_: asked.set())
            event.listen(database.pool, "connect", lambda *_: begun.append(1))
            with postgres.standing_still():
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(table.commit, {0: 1})
                    assert await run_in_thread(asked.wait, HANG_S)
                    with patch.object(database.dialect, "connect", side_effect=AssertionError) as connect:
                        tasks.cancel_scope.cancel()
                        with anyio.CancelScope(shield=True):
                            await compactor._place.run("waiting for the thread", lambda: None)
                            while compactor._place.limiter.borrowed_tokens:
                                await anyio.lowlevel.checkpoint()
                assert not connect.called
                assert not begun


def test_who_only_looks_waits_once_for_a_server_that_stands_still(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    """For one connection, however many tables are looked at."""
    begun: list[object] = []

    def count(*_: object) -> None:
        begun.append(1)

    looking = OpenCatalog(
        "penstock",
        {"type": "sql", "uri": postgres.url, "warehouse": tmp_path.as_uri()},
        "kafka",
        Secrets({}),
        silence_s=1.0,
        read_only=True,
    )
    event.listen(Engine, "do_connect", count)
    try:
        with postgres.standing_still(), patch.object(_catalog, "_FIRST_S", 0.0):
            for _ in range(3):
                with pytest.raises(UnavailableError, match="opening the catalog failed"):
                    looking.get()
        assert len(begun) == 1
    finally:
        event.remove(Engine, "do_connect", count)


async def test_a_missing_driver_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    catalog = {"type": "sql", "uri": "postgresql+psycopg://me:secret@127.0.0.1/db"}
    with pytest.raises(ConfigError, match=r"pip install 'penstock\[postgres\]'"):
        async with opened(tmp_path, catalog=catalog) as compactor, compactor.open_table(topic(), 1):
            pass
