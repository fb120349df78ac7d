"""How soon a write-ahead log in an object store acknowledges, and what it costs, on a store that answers late.

    penstock bench wal-latency                                    # wal_s3: a lone writer, then 1, 10 and 100 MiB/s
    penstock bench wal-latency --wal wal_s3express_replicated     # the same beside a disk
    penstock bench wal-latency --plot latency.svg --json latency.json
    penstock bench wal-latency --proxy-to http://127.0.0.1:7070 --set object_store.url=s3://bucket  # a real server

Between the log and its store stands a delay, in this process or in a proxy in front of an S3 server: each put takes a
time of its own, log-normally distributed (60 ms median, 200 ms p99, as a cloud's does). A lone writer appends when
the append before is acknowledged; under load appends come at a rate, whatever the log does. Each figure is held
against the puts of the same run, since these can't be avoided.
"""

from __future__ import annotations

__all__ = (
    "LOADS",
    "LateStore",
    "Load",
    "Measured",
    "MemoryWords",
    "measure_load",
    "measure_wal",
    "plot",
    "report",
)

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import anyio

from penstock.config import load_config
from penstock.errors import ConflictError
from penstock.plugins import PluginOpener, PluginRegistry
from penstock.spi.kinds import ALLOCATOR, OBJECT_STORE, WAL
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Buffer, Services
from penstock.spi.wal import WalAppend, WriteAheadLog
from penstock_tools.bench._svg import Line, chart, log_axis, quantile_axis
from penstock_tools.bench.late_proxy import Delays, proxy_process

_MIB = 2**20
#: Trimmed, as after an upload, when so much is acknowledged.
_TRIM_BYTES = 64 * _MIB
#: Seconds of load before anything counts: a log learns which puts are slow.
_WARM_S = 2.0

#: What issue and design ask for, in ms: over the median put, and altogether.
LONE_OVER_MS = 5.0
LOADED_OVER_MS = 60.0
MEAN_MS = 168.0
P99_MS = 296.0
#: A log on several media acknowledges so much later than the slower of them.
REPLICATED_OVER_MS = 2.0


@dataclass(frozen=True, slots=True)
class Load:
    """Appends of ``entry_bytes``: ``mib_per_s`` of them, or one after the other if that is 0."""

    mib_per_s: float
    entry_bytes: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.mib_per_s:g} MiB/s" if self.mib_per_s else "lone"


LOADS = (Load(0, 1024), Load(1, 4096), Load(10, 16 * 1024), Load(100, 64 * 1024))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One load; times in ms, ascending."""

    load: Load
    ack_ms: Sequence[float]
    put_ms: Sequence[float]
    #: Requests of all kinds, and those in the idle time behind the load.
    requests: int
    idle_requests: int

    def ack(self, part: float) -> float:
        """A quantile of the acknowledgements."""
        return _quantile(self.ack_ms, part)

    @property
    def over_ms(self) -> float:
        """The median acknowledgement less the median put."""
        return self.ack(0.5) - _quantile(self.put_ms, 0.5)

    @property
    def requests_per_gib(self) -> float:
        """Of all kinds; with trims, so with what deletes the log's objects."""
        return self.requests * 2**30 / max(1, len(self.ack_ms) * self.load.entry_bytes)

    def misses(self, over_ms: float | None = None) -> list[str]:
        """What isn't met, a phrase each. ``over_ms`` takes the place of what the load may take over a put."""
        if over_ms is None:
            over_ms = LOADED_OVER_MS if self.load.mib_per_s else LONE_OVER_MS
        told = [
            (f"median over a put {self.over_ms:.1f} ms", self.over_ms <= over_ms),
            (f"mean {statistics.fmean(self.ack_ms):.0f} ms", statistics.fmean(self.ack_ms) < MEAN_MS),
            (f"p99 {self.ack(0.99):.0f} ms", self.ack(0.99) < P99_MS),
            (f"{self.idle_requests} requests while idle", not self.idle_requests),
        ]
        return [what for what, met in told if not met]


class LateStore:
    """See ``ObjectStore``: puts take the time that a cloud's would, and all requests are counted."""

    def __init__(self, store: ObjectStore, delays: Delays | None) -> None:
        """Without ``delays``, those of the store itself are measured."""
        self._store = store
        self._delays = delays
        #: Of the puts that were answered; those that were given up for a second one aren't among them.
        self.put_ms: list[float] = []
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        """See ``ObjectStore.put_if_absent``."""
        self.requests += 1
        started = time.perf_counter()
        if self._delays is not None:
            await anyio.sleep(self._delays.next_s())
        token = await self._store.put_if_absent(key, body)
        self.put_ms.append((time.perf_counter() - started) * 1000)
        return token

    async def delete(self, keys: Sequence[str]) -> None:
        """See ``ObjectStore.delete``."""
        self.requests += 1
        await self._store.delete(keys)

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        """See ``ObjectStore.get``."""
        self.requests += 1
        return await self._store.get(key, start, end)

    def reset(self) -> None:
        """Forget what was counted."""
        self.put_ms.clear()
        self.requests = 0


class MemoryWords:
    """See ``FencedWords``: in memory, of one owner."""

    def __init__(self) -> None:
        self._words: dict[str, str] = {}
        self._epochs = itertools.count(1000)

    async def read(self, name: str) -> str:
        """See ``FencedWords.read``."""
        return self._words.get(name, "")

    async def write(self, name: str, value: str, expected: str) -> int:
        """See ``FencedWords.write``."""
        if self._words.get(name, "") != expected:
            raise ConflictError(f"another word is there: name={name}")
        self._words[name] = value
        return next(self._epochs)


async def measure_wal(
    folder: Path,
    *,
    wal: str,
    seconds: float,
    idle_s: float,
    p50_ms: float,
    p99_ms: float,
    seed: int,
    sets: Sequence[str] = (),
    loads: Sequence[Load] = LOADS,
    proxy_to: str | None = None,
    told: Callable[[Measured], None] = lambda _: None,
) -> list[Measured]:
    """Measure each load on a log of its own. ``told`` hears of each as soon as it is done.

    ``proxy_to`` is the URL of an S3 server, whose bucket ``sets`` name: a proxy in front of it delays the puts, in a
    process of its own, instead of a wrapper here.
    """
    with ExitStack() as proxies:
        delays: Delays | None = Delays(p50_ms, p99_ms, seed)
        if proxy_to is not None:
            url = proxies.enter_context(proxy_process(proxy_to, p50_ms, p99_ms, seed))
            sets, delays = (*sets, f"object_store.options.endpoint_url={url}"), None
        return await _measure_wal(folder, wal, seconds, idle_s, sets, loads, delays, told)


async def _measure_wal(
    folder: Path,
    wal: str,
    seconds: float,
    idle_s: float,
    sets: Sequence[str],
    loads: Sequence[Load],
    delays: Delays | None,
    told: Callable[[Measured], None],
) -> list[Measured]:
    found = []
    for number, load in enumerate(loads, 1):
        place = f"wal-latency-{folder.name}-{number}"
        own = [f"wal.plugin={wal}", f"object_store.url=memory://{place}"]
        for one in sets:
            is_place = one.startswith("object_store.url=")
            own.append(
                f"{one.rstrip('/')}/{place}" if is_place else one
            )  # a log is measured from its first entry
        config = load_config(None, sets=own)
        selection = PluginRegistry().select_all(config)
        data_dir = folder / str(number)
        data_dir.mkdir()
        services = Services(node_id=1, epoch=1, cluster_id="bench", data_dir=data_dir, clock=time.monotonic)
        async with AsyncExitStack() as stack:
            plugins = PluginOpener(stack, selection, services)
            plugins.set_words(lambda owner, services: MemoryWords())
            await plugins.open(ALLOCATOR)
            store = LateStore(await plugins.open(OBJECT_STORE), delays)
            plugins.set(OBJECT_STORE, cast("ObjectStore", store))
            found.append(await measure_load(await plugins.open(WAL), store, load, seconds, idle_s))
        told(found[-1])
    return found


async def measure_load(
    wal: WriteAheadLog, store: LateStore, load: Load, seconds: float, idle_s: float
) -> Measured:
    """Append to an opened log, warm it up first, and see whether it is quiet afterwards."""
    async for _ in wal.recover():
        pass
    run = _loaded if load.mib_per_s else _lone
    await run(wal, load, min(_WARM_S, seconds))
    store.reset()
    ack_ms = await run(wal, load, seconds)
    put_ms, requests = sorted(store.put_ms), store.requests
    await anyio.sleep(min(1, seconds))  # a second put that isn't needed any more ends
    store.reset()
    await anyio.sleep(idle_s)
    return Measured(
        load=load,
        ack_ms=sorted(ack_ms),
        put_ms=put_ms,
        requests=requests,
        idle_requests=store.requests,
    )


async def _lone(wal: WriteAheadLog, load: Load, seconds: float) -> list[float]:
    ack_ms: list[float] = []
    payload = bytes(load.entry_bytes)
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        append = wal.append([payload])
        await append.wait_durable()
        ack_ms.append((time.perf_counter() - started) * 1000)
        if len(ack_ms) % 1000 == 0:
            await wal.trim(append.next_position)
    return ack_ms


async def _loaded(wal: WriteAheadLog, load: Load, seconds: float) -> list[float]:
    ack_ms: list[float] = []
    payload = bytes(load.entry_bytes)
    begun = time.perf_counter()
    bytes_per_s = load.mib_per_s * _MIB
    end_position = 0

    def append() -> None:
        started = time.perf_counter()

        def acknowledged(append: WalAppend) -> None:
            nonlocal end_position
            if append.error is not None:
                raise append.error
            ack_ms.append((time.perf_counter() - started) * 1000)
            end_position = append.next_position

        wal.append([payload]).set_callback(acknowledged)

    count = trimmed = 0
    while (now := time.perf_counter() - begun) < seconds:
        while count * load.entry_bytes < now * bytes_per_s:
            append()
            count += 1
        if (len(ack_ms) - trimmed) * load.entry_bytes >= _TRIM_BYTES:
            trimmed = len(ack_ms)
            await wal.trim(end_position)
        await anyio.sleep(0.001)
    await wal.append([b"last"]).wait_durable()
    return ack_ms


def report(found: Sequence[Measured], over_ms: Mapping[str, float] | None = None) -> str:
    """A table, and what isn't met."""
    head = f"{'':>10}  {'ack p50':>8}  {'mean':>7}  {'p99':>7}   {'put p50':>8}  {'p99':>7}  {'over':>6}"
    lines = [f"{head}   {'acks':>6}  {'requests/GiB':>12}"]
    for one in found:
        lines.append(
            f"{one.load.name:>10}  {one.ack(0.5):8.1f}  {statistics.fmean(one.ack_ms):7.1f}  {one.ack(0.99):7.1f}   "
            f"{_quantile(one.put_ms, 0.5):8.1f}  {_quantile(one.put_ms, 0.99):7.1f}  {one.over_ms:+6.1f}   "
            f"{len(one.ack_ms):6}  {one.requests_per_gib:12,.0f}"
        )
    for one in found:
        missed = one.misses((over_ms or {}).get(one.load.name))
        lines.append(f"{one.load.name:>10}  {'met' if not missed else 'MISSED: ' + ', '.join(missed)}")
    return "\n".join(lines)


def plot(found: Sequence[Measured], title: str) -> str:
    """Acknowledgements of each load, and the puts (dashed), by quantile: an SVG that needs nothing but itself."""
    parts = [1 - 10 ** -(at / 20) for at in range(45)]  # up to p99.4
    lines = []
    for number, one in enumerate(found):
        for values, dashed in ((one.ack_ms, False), (one.put_ms, True)):
            points = [(part, _quantile(values, part)) for part in parts]
            what = "put" if dashed else "ack"
            lines.append(Line(f"{one.load.name} {what}", points, number, dashed))
    everything = [value for line in lines for _, value in line.points]
    svg = chart(
        lines,
        quantile_axis(parts[-1]),
        log_axis(max(0.1, min(everything)), max(everything)),
        "quantile",
        "ms",
        title,
    )
    legend = "".join(
        f'<text x="72" y="{30 + 15 * number}" class="t{number % 4}">{one.load.name}: ack, and put (dashed)</text>'
        for number, one in enumerate(found)
    )
    return (
        svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
        .replace("<title>", f"{_STYLE}<title>", 1)
        .replace("</svg>", f"{legend}</svg>")
        + "\n"
    )


_STYLE = (
    "<style>svg{background:#fff}text{font:11px system-ui,sans-serif;fill:#555}.grid{stroke:#ddd}"
    ".line{fill:none;stroke-width:1.8}.dash{stroke-dasharray:5 4}"
    ".c0{stroke:#2f6fdf}.c1{stroke:#e0711c}.c2{stroke:#1f9e62}.c3{stroke:#c23b6b}"
    ".t0{fill:#2f6fdf}.t1{fill:#e0711c}.t2{fill:#1f9e62}.t3{fill:#c23b6b}</style>"
)


def _quantile(values: Sequence[float], part: float) -> float:
    return values[min(len(values) - 1, int(len(values) * part))] if values else 0.0
