"""How soon logs in an object store acknowledge, in simulated time: puts take 60 ms, 1 % of them 200 ms or more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from penstock_conformance.simulation._loop import run_simulated
from penstock_tools.bench.wal_latency import (
    REPLICATED_OVER_MS,
    Load,
    Measured,
    measure_wal,
    plot,
    report,
)

LONE = Load(0, 1024)


def measured(
    folder: Path,
    loads: Sequence[tuple[Load, float]],
    *,
    wal: str = "wal_s3",
    p99_ms: float = 200,
    **sets: str,
) -> list[Measured]:
    found: list[Measured] = []

    async def main(_: asyncio.AbstractEventLoop) -> None:
        for number, (load, seconds) in enumerate(loads):
            place = folder / str(number)
            place.mkdir()
            found.extend(
                await measure_wal(
                    place,
                    wal=wal,
                    seconds=seconds,
                    idle_s=3600,
                    p50_ms=60,
                    p99_ms=p99_ms,
                    seed=1,
                    sets=[f"{key.replace('__', '.')}={value}" for key, value in sets.items()],
                    loads=[load],
                )
            )

    run_simulated(main, 0)
    return found


def test_wal_s3_acknowledges_a_lone_writer_with_its_put_and_a_loaded_one_a_moment_later(
    tmp_path: Path,
) -> None:
    """Median: put + 5 ms alone, put + 60 ms loaded; mean under 168 ms, p99 under 296 ms; nothing in an idle hour."""
    loads = [
        (LONE, 120.0),
        (Load(1, 16 * 1024), 30.0),
        (Load(10, 64 * 1024), 15.0),
        (Load(100, 256 * 1024), 8.0),
    ]
    found = measured(tmp_path, loads)
    assert [one.misses() for one in found] == [[], [], [], []], report(found)
    assert [
        one.requests_per_gib < most for one, most in zip(found[1:], (25_000, 2600, 320), strict=True)
    ] == [
        True,
        True,
        True,
    ], report(found)
    assert plot(found, "simulated").count('<path class="line') == 8


def test_a_replicated_wal_acknowledges_two_milliseconds_after_the_slower_replica_at_most(
    tmp_path: Path,
) -> None:
    """Each put takes 60 ms, so each replica does, and a lone append."""
    (found,) = measured(
        tmp_path,
        [(LONE, 20.0)],
        wal="wal_s3express_replicated",
        p99_ms=60,
        wal__replicas__0__plugin="wal_s3",
        wal__replicas__0__prefix="one/",
        wal__replicas__1__plugin="wal_s3",
        wal__replicas__1__prefix="two/",
    )
    assert found.misses(REPLICATED_OVER_MS) == [], report([found])
    assert found.ack(0.99) < 60 + REPLICATED_OVER_MS


def test_a_load_tells_what_it_missed() -> None:
    slow = Measured(load=LONE, ack_ms=[70.0, 300.0], put_ms=[60.0], requests=2, idle_requests=1)
    assert slow.misses() == [
        "median over a put 240.0 ms",
        "mean 185 ms",
        "p99 300 ms",
        "1 requests while idle",
    ]
    assert "MISSED: median over a put" in report([slow])
