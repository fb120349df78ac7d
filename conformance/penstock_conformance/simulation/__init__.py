"""Deterministic simulation: a broker's engine, metadata and write-ahead log in simulated time, on simulated media.

A seed gives one history of lives, faults and clients, and always the same one. :func:`simulate` runs it and tells
what broke, with the trace.
"""

from __future__ import annotations

__all__ = ("STRATEGIES", "Cost", "Outcome", "measure_cost", "simulate")

import gc
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from penstock.plugins import PluginRegistry
from penstock_conformance.simulation._block import BlockMedium
from penstock_conformance.simulation._cost import Cost, measure_cost
from penstock_conformance.simulation._history import History
from penstock_conformance.simulation._loop import SimulatedLoop, run_simulated
from penstock_conformance.simulation._media import Medium, ObjectMedium
from penstock_conformance.simulation._replicated import ReplicatedMedium

_MEDIA: dict[str, tuple[type[Medium], str, dict[str, object]]] = {
    "wal_s3": (ObjectMedium, "wal_s3", {}),
    "wal_block": (BlockMedium, "wal_block", {}),
    "wal_block_shared": (BlockMedium, "wal_block", {"shared": True}),
    "wal_s3express_replicated": (ReplicatedMedium, "wal_s3express_replicated", {}),
}

#: What can be simulated: WAL plugins, one of them in two ways.
STRATEGIES = tuple(_MEDIA)


#: One for all histories: to look for plugins takes as long as a tenth of a history.
_registry = cache(PluginRegistry)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a history ended."""

    seed: int
    #: What broke; empty if nothing did.
    failure: str
    #: What happened, a line each.
    trace: list[str]
    #: How often, by the first word of a line.
    counts: Mapping[str, int]
    #: How many requests the object store had, by name.
    requests: Mapping[str, int] = field(default_factory=dict)


def simulate(
    strategy: str,
    seed: int,
    *,
    settings: Mapping[str, object] | None = None,
    bug: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Outcome:
    """The history of ``seed`` with the WAL ``strategy``; ``bug``, a defect to be found, is entered around it."""
    # The history before, whose garbage is as young as that; what was there before it isn't looked at.
    gc.collect(1)
    registry = _registry()
    kind, plugin, own = _MEDIA[strategy]
    medium = kind(registry, plugin, {**own, **(settings or {})})
    histories: list[History] = []

    async def main(loop: SimulatedLoop) -> None:
        history = History(seed, loop, medium, registry, Path(directory))
        histories.append(history)
        await history.run()

    failure = ""
    with tempfile.TemporaryDirectory(prefix="penstock-simulation-") as directory, bug():
        try:
            run_simulated(main, seed)
        except Exception:  # noqa: BLE001 - told as the outcome
            failure = traceback.format_exc()
    assert histories, failure
    history = histories[0]
    return Outcome(seed, failure, history.trace, history.counts, history._bucket.requests)
