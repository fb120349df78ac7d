"""``penstock lake``: which table a replay may not write, and which broker is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

import pytest

from penstock.config import load_config
from penstock.errors import InvalidRequestError, NotFoundError
from penstock.spi.lake import LakeMaintenance, LakeTopic
from penstock_tools.cli import main
from penstock_tools.cli.lake import address_of, savings_of
from penstock_tools.inspection import lake as inspection


class Tables:
    """A compactor that names tables as it likes; the epoch of each that is there."""

    def __init__(self) -> None:
        self.epochs: dict[str, int] = {}

    @asynccontextmanager
    async def open_table(self, topic: LakeTopic, epoch: int) -> AsyncIterator[Any]:
        name = topic.table or topic.name.replace(".", "_")
        if not epoch and name not in self.epochs:
            raise NotFoundError(f"there is no such table: table={name}")
        self.epochs[name] = max(epoch, self.epochs.get(name, 0))
        yield SimpleNamespace(name=name)


def wanted(table: str = "") -> LakeTopic:
    return LakeTopic(name="a.b", topic_id="t", partition_count=1, table=table, configs={})


@pytest.mark.anyio
@pytest.mark.parametrize("there", [{}, {"a_b": 3}])
async def test_a_replay_leaves_the_topics_own_table_to_its_broker(
    monkeypatch: pytest.MonkeyPatch, there: dict[str, int]
) -> None:
    """Also while that isn't there: what it is called is the compactor's affair."""
    tables = Tables()
    tables.epochs = dict(there)
    state = SimpleNamespace(name="a.b")
    lake: Any = SimpleNamespace(
        compactor=tables,
        image=SimpleNamespace(index=500),
        configs=lambda _: None,
        topic=lambda _, table: (state, wanted(table)),
    )
    monkeypatch.setattr(inspection, "lake_topic", lambda *_: wanted())
    with pytest.raises(InvalidRequestError, match="a table of its own, name another one: table=a_b"):
        await inspection.replay(lake, "a.b", 0, "a_b")
    assert tables.epochs["a_b"] <= 3


class Source:
    """Reads from streams whose objects below offset 5 are gone."""

    def __init__(self, _: Any) -> None:
        pass

    async def read(self, stream: Any, position: int, _: int) -> list[int]:
        if stream.start < 5:
            raise NotFoundError("there is no such object: object_id=1")
        return [max(position, stream.start), stream.end]


class Table:
    """Takes whatever there is."""

    name = "again"

    async def positions(self) -> dict[int, int]:
        return {}

    async def write(self, batch: Any) -> Any:
        return SimpleNamespace(rows=batch.rows, rejected={})

    async def commit(self, positions: dict[int, int]) -> None:
        assert positions == {0: 10}


@pytest.mark.anyio
@pytest.mark.parametrize("start", [5, 0])
async def test_a_replay_goes_on_behind_what_retention_deletes_meanwhile(
    monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    """An object that is missing though nothing was deleted is damage, as for every reader."""

    def image(start: int) -> Any:
        stream = SimpleNamespace(stream_id=3, partition=0, start=start, end=10)
        streams = {3: stream}
        return SimpleNamespace(streams=SimpleNamespace(require=streams.__getitem__, get=streams.get))

    async def newest(_: object) -> Any:
        return image(start)

    def decoded(_: int, entries: list[int], *__: int) -> Any:
        first, end = entries
        yield SimpleNamespace(rows=end - first, nbytes=1, next_offset=end)

    monkeypatch.setattr(inspection, "load_image", newest)
    monkeypatch.setattr(inspection, "decode_entries", decoded)
    lake: Any = SimpleNamespace(image=image(0), metadata_log=None, batch_bytes=1)
    state: Any = SimpleNamespace(log_streams=[3])
    table, source_of = cast(Any, (Table(), Source))
    with nullcontext() if start else pytest.raises(NotFoundError, match="no such object"):
        done = await inspection._write_all(lake, state, table, source_of, 0, lambda *_: None)
        assert (done.records, done.commits) == (5, 1)


@pytest.mark.parametrize(
    ("listener", "address"),
    [
        ({}, "127.0.0.1:9092"),
        ({"bind": "127.0.0.1:9192"}, "127.0.0.1:9192"),
        ({"bind": "0.0.0.0:9192"}, "127.0.0.1:9192"),
        ({"bind": "[::]:9192"}, "[::1]:9192"),
        ({"bind": "0.0.0.0:9192", "advertised": "kafka.example.org:9092"}, "kafka.example.org:9092"),
        ({"bind": "127.0.0.1:0"}, "127.0.0.1:9092"),
    ],
)
def test_the_broker_that_is_asked_is_the_one_of_the_configuration(
    listener: dict[str, str], address: str
) -> None:
    assert address_of(load_config(overrides={"listener": listener}).tree) == address


def test_without_a_compactor_it_is_asked_for_the_file_that_names_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["lake", "status"]) == 2
    assert capsys.readouterr().err.endswith("to be named with -c?\n")
    for arguments in (["serve", "penstock.toml"], ["lake", "describe", "orders", "penstock.toml"]):
        assert main(arguments) == 2
        told = capsys.readouterr().err
        assert told.startswith("penstock: a configuration file is named with -c, see penstock ")
        assert told.endswith(" --help: file=penstock.toml\n")


@pytest.mark.parametrize(
    ("saved_bytes", "dry_run", "said"),
    [
        (2048, False, "the table takes 2KiB less"),
        (2048, True, "the table would take 2KiB less"),
        (-8902, False, "the table takes 8.7KiB more"),
    ],
)
def test_maintenance_says_what_it_saves_or_costs(saved_bytes: int, dry_run: bool, said: str) -> None:
    done = LakeMaintenance(dry_run=dry_run, saved_bytes=saved_bytes, figures={})
    assert savings_of(done) == said
