"""A log in a bucket of its own and on a disk at once: either is slow, fails, comes back, is damaged, or is lost."""

from __future__ import annotations

__all__ = ("ReplicatedMedium",)

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import replace
from random import Random
from typing import Any

from penstock.plugins import NestedPlugins, Opened, PluginRegistry, validate_settings
from penstock.spi.plugin import FencedWords, Services
from penstock_conformance.simulation._block import BlockMedium
from penstock_conformance.simulation._bucket import Bucket, BucketClient
from penstock_conformance.simulation._loop import SimulatedLoop
from penstock_conformance.simulation._media import Medium, ObjectMedium

_PREFIX = "wal/"
#: More than the longest pause between two attempts to bring a replica back.
_RETURN_S = 200.0
#: How often an operator empties a place that is told to be damaged.
_REPLACED_MAX = 2


class ReplicatedMedium(Medium):
    """``wal_s3express_replicated`` on a simulated zonal bucket and a simulated disk."""

    is_redundant = True

    def __init__(self, registry: PluginRegistry, plugin: str, settings: Mapping[str, object]) -> None:
        super().__init__(registry, plugin, settings)
        self._zone = ObjectMedium(registry, "wal_s3", {})
        self._block = BlockMedium(registry, "wal_block", {})
        self._replicas = [
            {"plugin": "wal_s3", "prefix": _PREFIX},
            {"plugin": "wal_block", **self._block.settings},
        ]

    def begin(self, loop: SimulatedLoop, random: Random, bucket: Bucket) -> None:
        super().begin(loop, random, bucket)
        #: Not the broker's: what happens to one happens to that alone.
        self.zone_bucket = Bucket(loop, Random(random.random()))
        self._zone.begin(loop, random, self.zone_bucket)
        self._block.begin(loop, random, bucket)
        self._clients: dict[int, BucketClient] = {}
        self._damaged = ""
        self._times = {
            "drop_after": random.choice(("300ms", "3s")),
            "return_after": random.choice(("200ms", "5s")),
        }

    @contextmanager
    def in_place(self) -> Iterator[None]:
        with self._block.in_place():
            yield

    def open_wal(
        self, life: int, services: Services, words: Callable[[str, Services], FencedWords]
    ) -> AbstractAsyncContextManager[Any]:
        settings = {"replicas": self._replicas, **self._times, **self.settings}
        checked = validate_settings(self.spec, settings)
        client = self._clients.setdefault(life, BucketClient(self.zone_bucket))
        opened = Opened(NestedPlugins(self.registry.select, {}), words)
        return self.spec.open(
            checked, opened.bind(replace(services, object_store=client), ("wal",), self.spec.name, checked)
        )

    def set_pace(self, fault_rate: float, typical_s: float) -> None:
        pace = self.zone_bucket.pace
        pace.fault_rate, pace.typical_s = fault_rate, typical_s / 10
        self._block.set_pace(fault_rate, typical_s)
        self.typical_s = typical_s / 10

    def cut_off(self, life: int, seconds: float) -> None:
        if life in self._clients:
            self._clients[life].cut_off_until_s = self.loop.time() + seconds
        self._block.cut_off(life, seconds)

    async def kill(self, life: int) -> None:
        if life in self._clients:
            self._clients[life].is_dead = True
        await self._block.kill(life)

    async def disturb(self) -> str:
        """One of the two is slow, or refuses everything, for a while."""
        random, disk, zone = self.random, self._block.disk, self.zone_bucket
        await asyncio.sleep(random.uniform(0, 3))
        what = random.choice(("", "disk fails", "disk is slow", "zone fails", "zone is slow"))
        self.disturbed = what[:4]
        if what == "disk fails":
            disk.is_failing = True
        elif what == "disk is slow":
            disk.slowness = random.choice((100.0, 10_000.0))
        elif what == "zone fails":
            zone.is_failing = True
        elif what == "zone is slow":
            zone.slowness = random.choice((100.0, 10_000.0))
        await asyncio.sleep(random.choice((0.5, 4.0, 20.0)))
        disk.is_failing = zone.is_failing = False
        disk.slowness = zone.slowness = 1.0
        return what

    def lose(self, word: str, *, what_was_well: bool) -> str:
        """All of one, or what it has is damaged; only if the other one holds the log, too.

        One that was out, or about to be, has to have all that was acknowledged while it counted, and before.
        """
        if not _both_count(word):
            return ""
        place = self.random.choice(("disk", "zone"))
        if what_was_well:
            place = "zone" if self.disturbed == "disk" else "disk"
        if what_was_well or self.random.random() < 0.5:
            self._replace(place)
            return place
        self._damaged = place
        return f"part of {place}: {self._damage(place, self.random)}"

    def _replace(self, place: str) -> None:
        """An empty one is in its place."""
        if place == "disk":
            self._block.disk.lose()
        else:
            self.zone_bucket.objects.clear()

    def _damage(self, place: str, random: Random) -> str:
        return (self._block if place == "disk" else self._zone).damage(random)

    def damage(self, random: Random) -> str:
        return self._damage(random.choice(("disk", "zone")), random)

    async def settle(self, wal: Any) -> None:
        for _ in range(_REPLACED_MAX):
            if wal.statistics().state == "open" or not self._damaged:
                break
            # as an operator does: what is damaged isn't emptied by itself; nor is what a try to open it, which was
            # on its way meanwhile, has written to the empty place, behind what isn't there any more
            self._replace(self._damaged)
            await asyncio.sleep(_RETURN_S)
        told = wal.statistics()
        assert told.state == "open", f"a replica that works again didn't return: {told.last_error}"


def _both_count(word: str) -> bool:
    return word.count(":") == 2
