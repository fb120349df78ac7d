"""What a log in the object store costs, in simulated time: requests for a GiB and an idle hour, and what grows."""

from __future__ import annotations

__all__ = ("Cost", "measure_cost")

import asyncio
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import anyio

from penstock.plugins import PluginRegistry, validate_settings
from penstock.spi.plugin import Services
from penstock.spi.wal import WalAppend
from penstock_conformance.simulation._bucket import Bucket, BucketClient
from penstock_conformance.simulation._loop import SimulatedLoop, run_simulated

_GIB = 2**30
_MIB = 2**20
#: A put takes about as long as S3's: 60 ms.
_TYPICAL_S = 0.055
#: Trimmed, as after an upload, when so much is acknowledged.
_TRIM_BYTES = 16 * _MIB
_TRIM_ENTRIES = 2000
#: Seconds in which what comes and goes has settled.
_WARM_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one rate."""

    rate_mib_s: float
    seconds: float
    appended_bytes: int
    requests: dict[str, int]
    latency_ms_p50: float
    latency_ms_p99: float
    #: In an idle hour behind it.
    idle_requests: int
    #: More at the end than when it had settled.
    more_tasks: int
    more_descriptors: int
    objects_left: int

    @property
    def requests_per_gib(self) -> float:
        """Of all kinds."""
        return sum(self.requests.values()) * _GIB / self.appended_bytes


def measure_cost(rate_mib_s: float, *, seconds: float, entry_bytes: int, wal: str = "wal_s3") -> Cost:
    """Append at this rate for so many simulated seconds, trimming as uploads would, then be idle for an hour."""
    registry = PluginRegistry()
    costs: list[Cost] = []

    async def main(loop: SimulatedLoop) -> None:
        bucket = Bucket(loop, Random(0))
        bucket.pace.typical_s = _TYPICAL_S
        spec = registry.select("wal", wal)
        services = Services(
            node_id=1,
            epoch=1,
            cluster_id="simulated",
            data_dir=Path(directory),
            object_store=BucketClient(bucket),
            clock=loop.time,
        )
        async with spec.open(validate_settings(spec, {}), services) as opened:
            async for _ in opened.recover():
                pass
            costs.append(await _use(loop, bucket, opened, rate_mib_s, seconds, entry_bytes))

    with tempfile.TemporaryDirectory(prefix="penstock-simulation-") as directory:
        run_simulated(main, 0)
    return costs[0]


async def _use(
    loop: SimulatedLoop,
    bucket: Bucket,
    wal: Any,
    rate_mib_s: float,
    seconds: float,
    entry_bytes: int,
) -> Cost:
    payload = bytes(entry_bytes)
    latencies: list[float] = []
    ends: list[int] = []
    begun_s = loop.time()
    before = bucket.requests.copy()
    settled = (0, 0)
    appended = trimmed = 0
    while loop.time() - begun_s < seconds:
        started = loop.time()

        def done(append: WalAppend, started: float = started) -> None:
            assert append.error is None, f"an append failed: {append.error}"
            latencies.append(loop.time() - started)
            ends.append(append.next_position)

        wal.append([payload]).set_callback(done)
        appended += entry_bytes
        due = len(ends) - trimmed
        if due * entry_bytes >= _TRIM_BYTES or due >= _TRIM_ENTRIES:
            trimmed = len(ends)
            await wal.trim(ends[-1])
        if not settled[0] and loop.time() - begun_s > min(_WARM_S, seconds / 2):
            settled = _counts()
        await anyio.sleep(max(0.0, begun_s + appended / (rate_mib_s * _MIB) - loop.time()))
    await anyio.sleep(10)
    requests = bucket.requests - before
    now = _counts()
    before = bucket.requests.copy()
    await anyio.sleep(3600)
    latencies.sort()
    return Cost(
        rate_mib_s=rate_mib_s,
        seconds=seconds,
        appended_bytes=appended,
        requests={name: count for name, count in requests.items() if count},
        latency_ms_p50=1000 * latencies[len(latencies) // 2],
        latency_ms_p99=1000 * latencies[len(latencies) * 99 // 100],
        idle_requests=sum((bucket.requests - before).values()),
        more_tasks=now[0] - settled[0],
        more_descriptors=now[1] - settled[1],
        objects_left=len(bucket.objects),
    )


def _counts() -> tuple[int, int]:
    """Tasks, and open descriptors."""
    return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
