"""Every field of statistics says what it is, so that an exporter needs no list of its own."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import anyio
import pytest
from tests.patience import HANG_S

import penstock
from penstock.broker import Broker
from penstock.broker._statistics import _plain
from penstock.errors import UnavailableError
from penstock.log.manager import LogManager
from penstock.spi.statistics import Measure, counter, figures, gauge, measures, text
from penstock.work.periodic import PeriodicJob

REPOSITORY = Path(__file__).parents[2]


def _classes() -> Iterator[type[Any]]:
    """The dataclasses of the kernel and of the plugins whose name ends with Statistics."""
    roots = [penstock.__name__, *(path.name for path in REPOSITORY.glob("plugins/*/penstock_*"))]
    for root in roots:
        package = importlib.import_module(root)
        modules = [
            info.name
            for info in pkgutil.walk_packages(package.__path__, f"{root}.")
            if not info.name.startswith(("penstock.wire.messages", "penstock.__main__"))
        ]
        for name in (root, *modules):
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError:
                continue  # an extra that isn't installed
            for value in vars(module).values():
                if not isinstance(value, type) or value.__module__ != name:
                    continue
                if value.__name__.endswith("Statistics") and dataclasses.is_dataclass(value):
                    yield value


def test_every_field_says_unit_kind_and_meaning() -> None:
    classes = set(_classes())
    assert len(classes) >= 17
    for statistics in classes:
        for name, said in measures(statistics).items():
            where = f"{statistics.__qualname__}.{name}"
            if isinstance(said, Measure):
                assert said.help.endswith("."), where
                assert re.fullmatch(r"[a-z]*", said.unit), where
                for ending in ("bytes", "ms", "us", "s"):
                    if name.endswith(f"_{ending}"):
                        assert said.unit == ending, where
            else:
                assert said in classes, where


def test_a_field_that_says_nothing_is_refused() -> None:
    @dataclasses.dataclass
    class Silent:
        count: int

    with pytest.raises(TypeError, match=r"field=Silent\.count"):
        measures(Silent)


def test_a_measure_is_found_beside_other_annotations() -> None:
    @dataclasses.dataclass
    class Told:
        hits: Annotated[int, "something else", counter("reads", "Reads that hit.")] = 0
        held: Annotated[int, gauge("bytes", "Memory.", by="purpose")] = 0
        why: Annotated[str, text("Why.")] = ""

    said = list(measures_of(Told).values())
    assert [measure.kind for measure in said] == ["counter", "gauge", "text"]
    assert said[1].by == "purpose"


def measures_of(statistics: type[Any]) -> Mapping[str, Measure]:
    return {name: said for name, said in measures(statistics).items() if isinstance(said, Measure)}


@pytest.mark.anyio
async def test_a_running_broker_tells_every_figure_with_its_meaning(tmp_path: Path) -> None:
    async with Broker(
        overrides={"broker.data_dir": str(tmp_path / "data"), "listener.bind": "127.0.0.1:0"}
    ) as b:
        statistics = b.statistics()
        told = {path: (measure, value) for path, measure, value in figures(statistics)}
        plain = statistics.as_dict()
    for path, (_, value) in told.items():
        found: Any = plain
        for name in path:
            found = found[name]
        assert found == value or isinstance(value, Mapping | tuple), path
    assert told["wal", "appended_entries"][0] == counter("entries", "Entries that were appended.")
    assert told["engine", "uploader", "failures"][0].kind == "counter"


def _broker(tmp_path: Path, **settings: str) -> Broker:
    overrides = {"broker.data_dir": str(tmp_path / "data"), "listener.bind": "127.0.0.1:0"}
    return Broker(overrides=overrides | settings)


@pytest.mark.anyio
async def test_every_periodic_job_of_a_running_broker_is_told_in_its_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[PeriodicJob] = []

    async def run(job: PeriodicJob) -> None:
        started.append(job)
        await anyio.sleep_forever()

    monkeypatch.setattr(PeriodicJob, "run", run)
    async with _broker(tmp_path) as broker:
        await anyio.wait_all_tasks_blocked()
        for number, job in enumerate(started):
            job._failures = 1000 + number  # so that each is known again
        told = {
            value: "/".join(path[:-1])
            for path, _, value in figures(broker.statistics())
            if path[-1] == "failures" and value >= 1000
        }
    untold = [job.name for number, job in enumerate(started) if 1000 + number not in told]
    assert not untold, "jobs that no room tells of"
    assert set(told.values()) >= {
        "engine/jobs/upload",
        "logs/jobs/retention",
        "jobs/look_at_the_object_store",
    }


@pytest.mark.anyio
async def test_a_running_broker_tells_its_traffic_to_the_object_store_by_class(tmp_path: Path) -> None:
    async with _broker(
        tmp_path, **{"wal.plugin": "wal_s3", "object_store.url": "memory://traffic"}
    ) as broker:
        async with broker.producer() as producer:
            await producer.send("t", value=b"x" * 1000)
        await broker.flush()
        traffic = broker.statistics().as_dict()["traffic"]
    assert traffic["requests"]["wal"] >= 3, "entries of metadata, and an object of the log"
    assert traffic["bytes"]["wal"] > 1000
    assert traffic["requests"]["upload"] == 1
    assert traffic["bytes"]["upload"] > 1000
    assert set(traffic["waiting"].values()) == {0}


@pytest.mark.anyio
async def test_a_retention_that_fails_is_told_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = anyio.Event()

    async def clean(manager: LogManager) -> int:
        failed.set()
        raise UnavailableError("the store is away")

    monkeypatch.setattr(LogManager, "clean", clean)
    async with _broker(tmp_path, **{"stream.retention_interval": "1ms"}) as broker:
        with anyio.fail_after(HANG_S):
            await failed.wait()
        await anyio.lowlevel.checkpoint()
        retention = broker.statistics().as_dict()["logs"]["jobs"]["retention"]
    assert retention["failures"] >= 1
    assert retention["last_error"] == "the store is away"


def test_statistics_of_a_plugin_that_say_no_measures_are_told_to_people_nevertheless() -> None:
    @dataclasses.dataclass
    class Silent:
        count: int

    assert _plain(Silent(3)) == {"count": 3}
