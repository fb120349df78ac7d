"""How soon ``wal_s3`` acknowledges, and what it costs, on a store that answers late.

``python tools/bench/wal_latency.py``. The store is memory, and each put takes a time of its own, log-normally
distributed (60 ms median, 200 ms p99, as a cloud's does). A lone writer appends when the one before is acknowledged;
then appends come at 1, 10 and 100 MiB/s, whatever the log does. Each figure is held against the puts of the same run,
since that is what can't be avoided.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
from penstock_object_store_fsspec import Settings as StoreSettings
from penstock_object_store_fsspec import penstock_register_object_store
from penstock_wal_s3 import Settings, penstock_register_wal

from penstock.spi import Buffer, Services
from penstock.spi.wal import WalAppend

#: Standard deviations from the median to p99.
_P99 = 2.326
_MIB = 2**20
_LOADS = ((1, 4 * 1024), (10, 16 * 1024), (100, 64 * 1024))


class SlowStore:
    """A store whose puts take the time that a cloud's would."""

    def __init__(self, store: Any, p50_ms: float, p99_ms: float, seed: int) -> None:
        self._store = store
        self._mu = math.log(p50_ms)
        self._sigma = math.log(p99_ms / p50_ms) / _P99
        self._random = random.Random(seed)
        self.put_ms: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        started = time.perf_counter()
        await anyio.sleep(self._random.lognormvariate(self._mu, self._sigma) / 1000)
        token: str = await self._store.put_if_absent(key, body)
        self.put_ms.append((time.perf_counter() - started) * 1000)
        return token


def _row(name: str, ack_ms: list[float], store: SlowStore, payload_bytes: int) -> str:
    def of(values: list[float], part: float) -> float:
        return sorted(values)[int(len(values) * part)]

    puts, put, ack = len(store.put_ms), statistics.median(store.put_ms), of(ack_ms, 0.5)
    return (
        f"{name:>10}  {ack:7.1f}  {statistics.fmean(ack_ms):7.1f}  {of(ack_ms, 0.99):7.1f}   "
        f"{put:7.1f}  {of(store.put_ms, 0.99):7.1f}  {ack - put:+7.1f}   {len(ack_ms):6}  {puts:5}  "
        f"{puts * 2**30 / payload_bytes:9.0f}"
    )


async def _lone(wal: Any, seconds: float) -> tuple[list[float], int]:
    ack_ms: list[float] = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        await wal.append([bytes(1024)]).wait_durable()
        ack_ms.append((time.perf_counter() - started) * 1000)
    return ack_ms, len(ack_ms) * 1024


async def _loaded(wal: Any, seconds: float, bytes_per_s: int, size: int) -> tuple[list[float], int]:
    ack_ms: list[float] = []
    payload = bytes(size)
    begun = time.perf_counter()
    count = 0
    while (now := time.perf_counter() - begun) < seconds:
        while count * size < now * bytes_per_s:
            _measure(wal.append([payload]), ack_ms)
            count += 1
        await anyio.sleep(0.001)
    await wal.append([b"last"]).wait_durable()
    return ack_ms, count * size


def _measure(append: WalAppend, ack_ms: list[float]) -> None:
    started = time.perf_counter()
    append.set_callback(lambda _: ack_ms.append((time.perf_counter() - started) * 1000))


async def _run(options: argparse.Namespace) -> None:
    print(
        f"{'':>10}  {'ack p50':>7}  {'mean':>7}  {'p99':>7}   {'put p50':>7}  {'p99':>7}  {'over':>7}   ",
        end="",
    )
    print(f"{'acks':>6}  {'puts':>5}  {'puts/GiB':>9}")
    spec = penstock_register_object_store()
    for epoch, (mib, size) in enumerate(((0, 0), *_LOADS), start=1):
        services = Services(node_id=1, epoch=epoch, cluster_id="bench", data_dir=Path(), clock=time.monotonic)
        opened: Any = spec.open(StoreSettings(url=f"memory://wal-latency-{epoch}"), services)
        async with opened as memory:
            store = SlowStore(memory, options.p50_ms, options.p99_ms, options.seed)
            services = Services(
                node_id=1,
                epoch=epoch,
                cluster_id="bench",
                data_dir=Path(),
                object_store=store,
                clock=time.monotonic,
            )
            wal_opened: Any = penstock_register_wal().open(Settings(), services)
            async with wal_opened as wal:
                async for _ in wal.recover():
                    pass
                store.put_ms.clear()
                if mib:
                    found = await _loaded(wal, options.seconds, mib * _MIB, size)
                else:
                    found = await _lone(wal, options.seconds)
                print(_row(f"{mib} MiB/s" if mib else "lone", found[0], store, found[1]), flush=True)
                puts = len(store.put_ms)
                await anyio.sleep(options.idle_seconds)
                assert len(store.put_ms) == puts, "an idle log costs a request"


def main() -> int:
    """Run it; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load")
    parser.add_argument("--idle-seconds", type=float, default=1.0, help="after each load; nothing may be put")
    parser.add_argument("--p50-ms", type=float, default=60.0)
    parser.add_argument("--p99-ms", type=float, default=200.0)
    parser.add_argument("--seed", type=int, default=1)
    anyio.run(_run, parser.parse_args())
    return 0


if __name__ == "__main__":
    sys.exit(main())
