"""Plugins that keep their contracts in an unusual way: no clause accuses them."""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
from contextlib import suppress
from pathlib import Path

import pytest
from tests.depth import FULL, how_many, in_full

from penstock_conformance import Target, test_metadata_log_at_scale
from penstock_conformance._catalogue import clause_files
from penstock_conformance._clause import NotApplicable, clause_of
from penstock_conformance._env import Env

_PLUGINS = str(Path(__file__).with_name("_plugins"))
_MANNERS = {
    "block_cache": (
        "KeepsNothing",
        "CopiesEachResult",
        "ChargesAFixedPart",
        "KeepsOne",
        "PrefetchesNothing",
        "EvictsByTheDozen",
    ),
    "metadata_log": (
        "TakesItsTime",
        "ReadsInOnes",
        "DropsAsMuchAsItMay",
        "WakesForNothing",
        "RemembersTheNewest",
        "ReturnsViews",
        "KeepsAllEntries",
    ),
    "allocator": ("RoundsUp", "GrantsLate", "PressesTwice", "AsksForMore", "IsAligned", "HasIdleMemory"),
}
#: What takes long, and depends on no manner; of a long use the full run has time to find out.
_LONG = (
    "thousand",
    "large_snapshot",
    "kill",
    "memory_stays",
    "system",
    "claimed",
    *(() if FULL else ("long_use",)),
)


@pytest.fixture(autouse=True)
def small_heap() -> None:
    """Clauses let the collector run hundreds of times, over all that the tests before have left in this process."""
    gc.collect()
    gc.freeze()


@pytest.mark.parametrize(
    ("kind", "manner"),
    [
        one
        for kind, some in _MANNERS.items()
        for number, each in enumerate(some)
        for one in ([(kind, each)] if number < how_many("unusual") else in_full((kind, each)))
    ],
)
def test_unusual_plugin_is_not_accused(kind: str, manner: str, tmp_path: Path) -> None:
    """Each clause that needs no other process passes, or says that it doesn't apply."""
    target = Target(kind=kind, plugin="unusual", settings={"manner": manner}, plugins_dirs=(_PLUGINS,))
    for module in clause_files(kind):
        for name, clause in vars(importlib.import_module(f"penstock_conformance.{module.stem}")).items():
            if not name.startswith("test_") or not inspect.iscoroutinefunction(clause):
                continue
            said = clause_of(clause)
            if said.level == 2 or said.refuses or said.claims == "shareable" or any(a in name for a in _LONG):
                continue
            place = tmp_path / name
            place.mkdir(exist_ok=True)
            with suppress(NotApplicable):
                asyncio.run(clause(Env(target, place, name)))


def test_who_looks_for_news_now_and_then_is_not_accused(tmp_path: Path) -> None:
    """No sentence says how soon they are heard of: a clause waits as long as the first ones took."""
    target = Target(
        kind="metadata_log",
        plugin="unusual",
        settings={"manner": "LooksNowAndThen"},
        plugins_dirs=(_PLUGINS,),
        deadline_s=0.04,
    )
    asyncio.run(test_metadata_log_at_scale.test_many_followers_hear_of_news(Env(target, tmp_path, "news")))
