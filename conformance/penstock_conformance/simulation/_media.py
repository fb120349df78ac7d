"""What a write-ahead log is on in the simulation, and how it is hurt."""

from __future__ import annotations

__all__ = ("Medium", "ObjectMedium")

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from random import Random
from typing import Any

from penstock.plugins import PluginRegistry, validate_settings
from penstock.spi.plugin import FencedWords, Services
from penstock_conformance.simulation._bucket import Bucket
from penstock_conformance.simulation._loop import SimulatedLoop

#: Objects that a log puts beside each other at most.
_PUTS_MAX = 8


class Medium:
    """The medium of one history. A process is named by the number of its life."""

    #: How long an access takes.
    typical_s = 0.02
    #: Whether the log promises to survive what ``damage`` does.
    is_redundant = False
    #: The part of it that was disturbed last.
    disturbed = ""

    def __init__(self, registry: PluginRegistry, plugin: str, settings: Mapping[str, object]) -> None:
        self.registry = registry
        self.spec = registry.select("wal", plugin)
        self.settings = dict(settings)

    def begin(self, loop: SimulatedLoop, random: Random, bucket: Bucket) -> None:
        """A history begins, with an empty medium."""
        self.loop, self.random, self.bucket = loop, random, bucket

    def in_place(self) -> AbstractContextManager[object]:
        """Within it, plugins find this medium where they look for a real one."""
        return nullcontext()

    def open_wal(
        self, life: int, services: Services, words: Callable[[str, Services], FencedWords]
    ) -> AbstractAsyncContextManager[Any]:
        """Open the log as this life's, from a task whose ``life_of_task`` it is; ``words`` are those of metadata."""
        return self.spec.open(validate_settings(self.spec, self.settings), services)

    def set_pace(self, fault_rate: float, typical_s: float) -> None:
        """From now on so many accesses go wrong, and so long a request of the object store takes."""
        self.typical_s = typical_s

    def cut_off(self, life: int, seconds: float) -> None:
        """The process hears nothing of its medium for so long."""

    async def kill(self, life: int) -> None:
        """The process does nothing any more to its medium."""

    async def disturb(self) -> str:
        """For a while something is wrong that a log survives while it is open; what it was."""
        return ""

    def lose(self, word: str, *, what_was_well: bool) -> str:
        """Nobody has the log open: lose what it survives the loss of, by its word in metadata; what that was.

        ``what_was_well`` is all but the part that was disturbed.
        """
        return ""

    async def settle(self, wal: Any) -> None:
        """Nothing was wrong for long: everything is as it was in the beginning."""

    def damage(self, random: Random) -> str:
        """Hurt what the log holds, at a place where it must be noticed or doesn't matter; what was done."""
        return ""


class ObjectMedium(Medium):
    """A log in the simulated bucket, beside everything else."""

    def damage(self, random: Random) -> str:
        keys = sorted(key for key in self.bucket.objects if key.startswith("wal/"))
        if len(keys) < 3 or random.random() < 0.2:
            return ""
        if random.random() < 0.5 and len(keys) > _PUTS_MAX + 1:
            # of the newest ones nothing may tell that they were there: they were put beside each other
            key = random.choice(keys[-2 * _PUTS_MAX : -_PUTS_MAX])
            del self.bucket.objects[key]
            return f"missing {key}"
        key = random.choice(keys[-6:])
        body = bytearray(self.bucket.objects[key])
        body[random.randrange(len(body))] ^= 1 << random.randrange(8)
        self.bucket.objects[key] = bytes(body)
        return f"flipped {key}"
