"""A REST catalog that loses replies, gets requests twice, or is away: nothing is lost, nothing is there twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.iceberg_catalog import RestCatalogServer
from tests.iceberg_place import opened, topic
from tests.lake_records import lake_records

from penstock.errors import UnavailableError

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RestCatalogServer]:
    with RestCatalogServer(tmp_path).running() as server:
        yield server


_REFUSED = ("404", "500", "503")
_DONE = ("lose", "twice", "done 409", "done 500", "done 504")


@pytest.mark.parametrize("fault", [*_REFUSED, *_DONE, "409"])
async def test_a_commit_whose_reply_is_wrong_or_missing_is_there_once(
    tmp_path: Path, server: RestCatalogServer, fault: str
) -> None:
    catalog = {"type": "rest", "uri": server.url, "token": "very-secret"}
    async with opened(tmp_path, catalog=catalog) as compactor:
        async with compactor.open_table(topic(), 1) as table:
            await table.write(lake_records([b"a"]))
            server.faults = [fault]
            if fault in _REFUSED:
                with pytest.raises(UnavailableError, match="catalog") as caught:
                    await table.commit({0: 1})
                assert "very-secret" not in str(caught.value)
            else:
                # whatever the reply was, it was looked up whether the snapshot is there; one that lost is made again
                assert (await table.commit({0: 1})).rows == 1
        async with compactor.open_table(topic(), 1) as table:
            at = (await table.positions()).get(0, 0)
            assert at == (0 if fault in _REFUSED else 1)
            await table.write(lake_records([b"a", b"b"][at:], start=at))
            await table.commit({0: 2})
        async with compactor.open_table(topic(), 0) as table:
            assert sorted([row.offset async for row in table.rows()]) == [0, 1]


@pytest.mark.parametrize("fault", ["lose", "done 500"])
async def test_a_column_whose_reply_is_lost_is_looked_up(
    tmp_path: Path, server: RestCatalogServer, fault: str
) -> None:
    async with opened(tmp_path, catalog={"type": "rest", "uri": server.url}) as compactor:
        async with compactor.open_table(topic(value_format="json"), 1) as table:
            server.faults = [fault]
            await table.write(lake_records([b'{"a": 1}']))
            assert not server.faults
            await table.commit({0: 1})
            assert "a long" in (await table.describe())["columns"]


async def test_a_catalog_that_is_away_is_one_sentence_without_secrets(tmp_path: Path) -> None:
    catalog = {
        "type": "sql",
        "uri": f"sqlite:////nowhere/{tmp_path.name}/x.db",
        "s3.secret-access-key": "hushhush",
    }
    with pytest.raises(
        UnavailableError, match="opening the catalog failed, the catalog can't be used for now"
    ) as caught:
        async with opened(tmp_path, catalog=catalog) as compactor, compactor.open_table(topic(), 1):
            pass
    assert "\n" not in str(caught.value)


async def test_a_full_warehouse_loses_nothing_and_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as compactor:
        full = True

        def step(name: str) -> None:
            if full and name == "files written":
                raise OSError(28, "No space left on device")

        compactor.watch(step)
        async with compactor.open_table(topic(), 1) as table:
            await table.write(lake_records([b"a"]))
            with pytest.raises(UnavailableError, match="the warehouse is full, make room"):
                await table.commit({0: 1})
        full = False
        async with compactor.open_table(topic(), 1) as table:
            assert await table.positions() == {}
            await table.write(lake_records([b"a"]))
            await table.commit({0: 1})
            assert len([row async for row in table.rows()]) == 1
