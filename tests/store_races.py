"""Races of processes for one object on a real store, while a proxy loses replies."""

from __future__ import annotations

__all__ = ("ROUNDS", "race_for_objects")

import hashlib
from collections.abc import Mapping

from tests.depth import how_many
from tests.store_proxy import StoreProxy

from penstock.spi.object_store import ObjectStore
from penstock_tools.probe.races import open_writers, race
from penstock_tools.probe.worker import Command, body_of

#: Races of each store.
ROUNDS = how_many("race_rounds")

_WRITERS = how_many("race_writers")
_FAULTS = ("reply lost", "", "done, 503 SlowDown", "", "409 ConditionalRequestConflict")


async def race_for_objects(
    proxy: StoreProxy, any_store: ObjectStore, url: str, options: Mapping[str, str]
) -> None:
    """Some processes create each object at once; exactly one learns that it won, and its bytes are there."""
    setup = {
        "config_path": None,
        "sets": [
            f"object_store.url={url}",
            *(f"object_store.options.{name}={value}" for name, value in options.items()),
        ],
        "plugins_dirs": [],
        "modules": [],
    }
    async with open_writers(_WRITERS, setup, any_store) as writers:
        turn = iter(range(10**9))
        proxy.decide = lambda request: _FAULTS[next(turn) % len(_FAULTS)] if request.conditional else ""
        for number in range(ROUNDS):
            key = f"round-{number:06d}"
            commands = [
                Command(action="create", key=key, label=f"{key} by {writer}", size=2000)
                for writer in range(len(writers))
            ]
            run = await race(writers, commands)
            results = [outcome.result for outcome in run.outcomes]
            assert sorted(results) == ["lost"] * (_WRITERS - 1) + ["won"], (number, run.outcomes)
            winner = commands[results.index("won")]
            commands = [Command(action="read", key=key)] * len(writers)
            digest = hashlib.sha256(body_of(winner.label, winner.size)).hexdigest()
            assert {outcome.detail for outcome in (await race(writers, commands)).outcomes} == {digest}
    assert proxy.faults["reply lost"] >= ROUNDS * _WRITERS // 8
