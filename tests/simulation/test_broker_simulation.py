"""Random lives of a broker: everything at once, with faults, crashes and restarts, checked against a model.

Each seed gives one history (proved by a test): several tasks produce, read, create, grow, trim and delete, groups
commit and are deleted (in every other history), the store fails or loses replies, the WAL fills up, fails, and
crashes. After each start, and at each quiet end of a life, the invariants I1, I2, I4, I6, I7, the exactly-once
promise to idempotent producers and the offsets of groups are checked.

``pytest --depth broker_lives=1000`` runs more of them; ``PENSTOCK_SIMULATION_SEED=42`` runs one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.depth import in_full, seeds
from tests.patience import HANG_S
from tests.simulation.lives import Simulation

from penstock.log import producer_snapshots as snapshots_module
from penstock.metadata import service as service_module
from penstock.stream import uploader as uploader_module
from penstock.stream.pacer import Pacer

pytestmark = pytest.mark.anyio

#: What an iteration of the event loop takes in its own time, at least.
_ITERATION_S = 1e-5
_SEED = os.environ.get("PENSTOCK_SIMULATION_SEED")
SEEDS = [int(_SEED)] if _SEED else list(seeds("broker_lives"))


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses on the real clock, no threads, and bounds that a short history meets."""

    async def inline(function: Callable[..., Any], *args: Any, limiter: object = None) -> Any:
        return function(*args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", inline)
    monkeypatch.setattr(service_module, "_BACKOFF_S", (0,))
    monkeypatch.setattr(uploader_module, "_BACKOFF_S", (0,))
    monkeypatch.setattr(Pacer, "pause_s", lambda *_: 0.0)
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_BYTES", 1500)


@pytest.fixture(autouse=True)
async def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop's clock goes on by iterations, and at once to the next timer where nothing else is to be done.

    So it depends on the seed alone when pauses end.
    """
    loop: Any = asyncio.get_running_loop()
    now, select = loop.time(), loop._selector.select

    def passing() -> float:
        nonlocal now
        now += _ITERATION_S
        return float(now)

    def select_at_once(timeout: float | None = None) -> Any:
        nonlocal now
        if timeout is None:  # no timer: only another thread or process can go on
            return select(None)
        now += timeout
        return select(0)

    monkeypatch.setattr(loop, "time", passing)
    monkeypatch.setattr(loop._selector, "select", select_at_once)


@pytest.fixture(scope="module")
def lived() -> dict[int, Simulation]:
    """What was lived once, by seed: a seed gives one history."""
    return {}


async def _history(seed: int, directory: Path, lived: dict[int, Simulation]) -> Simulation:
    if seed not in lived:
        simulation = Simulation(seed, directory)
        try:
            with anyio.fail_after(HANG_S):
                await simulation.run()
        except BaseException:
            print("\n".join(simulation.trace[-60:]))
            raise
        lived[seed] = simulation
    return lived[seed]


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_random_history_breaks_no_promise(
    seed: int, tmp_path: Path, lived: dict[int, Simulation]
) -> None:
    await _history(seed, tmp_path, lived)


@pytest.mark.parametrize("seed", [6, *in_full(7, 9, 12, 14)])
async def test_a_seed_gives_one_history(seed: int, tmp_path: Path, lived: dict[int, Simulation]) -> None:
    one, two = await _history(seed, tmp_path, lived), Simulation(seed, tmp_path)
    assert one.trace == await two.run()
    assert len(one.store.entries) == len(two.store.entries)


async def test_histories_hold_what_they_are_for(tmp_path: Path, lived: dict[int, Simulation]) -> None:
    """The simulation isn't idle: acknowledgements, deletions, trims, failures, recoveries, faults, uploads."""
    histories = [await _history(seed, tmp_path, lived) for seed in seeds("broker_lives")]
    trace = [line for each in histories for line in each.trace]
    words = [line.split()[0] for line in trace]
    for word in (
        "acked",
        "created",
        "grown",
        "deleted",
        "trimmed",
        "crash",
        "quiet",
        "wal",
        "hole",
        "lost",
        "known",
        "fenced",
        "committed",
    ):
        assert words.count(word) >= 3, word
    ends = [line for line in trace if line.startswith("wal ends")]
    assert any(not line.endswith("kept=0") for line in ends), "what failed is on the medium, and comes back"
    assert any(line.startswith("life") and not line.endswith("recovered=0") for line in trace)
    assert sum(each.store.faults for each in histories) > 20
    assert sum(len(each.world.uploads) for each in histories) > 20
    assert sum(each.orphans_deleted for each in histories) > 5
