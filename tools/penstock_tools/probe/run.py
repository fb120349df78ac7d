"""Conducts a probe: opens the store and its writers, asks, judges, and removes what it wrote."""

from __future__ import annotations

__all__ = ("PREFIX", "probe")

import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

import anyio

from penstock.errors import PenstockError, UnavailableError
from penstock.plugins import PluginRegistry
from penstock.spi.object_store import ObjectStore
from penstock_tools.probe.checks import Bench, measure, questions
from penstock_tools.probe.races import open_writers
from penstock_tools.probe.report import Finding, Report, judge_plugins, start_config
from penstock_tools.probe.worker import open_store_of

#: Everything that probes write is below it, each probe in a folder of its own.
PREFIX: Final = "penstock-probe/"
_REMOVE_S_MAX: Final = 120
_REMOVE_ROUNDS_MAX: Final = 20


async def probe(
    setup: dict[str, Any],
    store_settings: dict[str, Any],
    registry: PluginRegistry,
    *,
    plugin: str,
    wal: str,
    writers: int,
    rounds: int,
    tell: Callable[[str], None],
) -> Report:
    """Ask the store that ``setup`` names everything; ``tell`` hears what comes next.

    ``registry`` has all plugins loaded: those that need a store are judged. Raises ConfigError, PluginError,
    UnavailableError, with nothing left behind.
    """
    async with open_store_of(setup) as store, _own_prefix(store) as prefix:
        tell(f"starting {writers} writers")
        async with open_writers(writers, setup, store) as opened:
            bench = Bench(store=store, writers=opened, prefix=prefix, rounds=rounds)
            findings: list[Finding] = []
            for name, ask in questions().items():
                tell(name)
                findings += await ask(bench)
        tell("latencies")
        latencies = await measure(bench)
        tell("removing what was written")
        claimed, location = store.capabilities, store.location
    specs = [
        registry.select(info.kind, info.name)
        for info in registry.infos()
        if info.kind in ("wal", "metadata_log")
    ]
    verdicts = judge_plugins(specs, claimed, findings)
    return Report(
        location=location,
        plugin=plugin,
        writers=writers,
        findings=findings,
        latencies=latencies,
        plugins=verdicts,
        config=start_config(store_settings, plugin, verdicts, wal),
    )


@asynccontextmanager
async def _own_prefix(store: ObjectStore) -> AsyncGenerator[str]:
    """A prefix that nobody else uses; whatever is below it is gone afterwards, also when this is cancelled."""
    prefix = f"{PREFIX}{uuid4().hex}/"
    try:
        yield prefix
    finally:
        with anyio.CancelScope(shield=True):
            left = await _remove(store, prefix)
        if left:
            sys.stderr.write(
                f"penstock: warning: the probe couldn't remove all that it wrote, delete it yourself: "
                f"location={store.location} prefix={prefix} error={left}\n"
            )


async def _remove(store: ObjectStore, prefix: str) -> str:
    """Delete what is listed until nothing is: a listing may stop early, a writer be late. Why not, if it can't."""
    try:
        with anyio.fail_after(_REMOVE_S_MAX):
            for _ in range(_REMOVE_ROUNDS_MAX):
                keys = [info.key async for info in store.list(prefix)]
                if not keys:
                    return ""
                await store.delete(keys)
            raise UnavailableError(f"they are listed still: count={len(keys)}")
    except (PenstockError, TimeoutError) as error:
        return str(error) or "it takes too long"
