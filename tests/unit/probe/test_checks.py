"""Each broken promise of a store is found by the question that is about it, and an honest store is asked in vain."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from tests.integration._plugins.lying_store import LyingSettings, penstock_register_object_store

from penstock.spi.plugin import Services
from penstock_tools.probe.checks import Bench, questions
from penstock_tools.probe.races import LocalWriter
from penstock_tools.probe.report import Finding

pytestmark = pytest.mark.anyio


async def ask(about: str, lie: str) -> list[Finding]:
    """Ask a store in memory that breaks one promise; this process's own writers race."""
    services = Services(node_id=1, epoch=1, cluster_id="test", data_dir=Path("/"), clock=time.monotonic)
    settings = LyingSettings(url=f"memory://{uuid4()}", lie=lie)
    async with penstock_register_object_store().open(settings, services) as store:
        writers = [LocalWriter(store) for _ in range(2)]
        return await questions()[about](Bench(store=store, writers=writers, prefix="p/", rounds=2))


@pytest.mark.parametrize("about", list(questions()))
async def test_an_honest_store_breaks_nothing(about: str) -> None:
    assert [each for each in await ask(about, "") if each.verdict == "broken"] == []


@pytest.mark.parametrize(
    ("lie", "about", "found"),
    [
        ("create", "conditional creation", ["put-if-absent, at once, 1KiB"]),
        ("create large", "conditional creation", ["put-if-absent, last bytes at once, 8MiB"]),
        ("create in turn", "conditional creation", ["put-if-absent, in turn"]),
        ("swap", "compare-and-swap", ["compare-and-swap, at once, 1KiB"]),
        ("swap in turn", "compare-and-swap", ["compare-and-swap, in turn"]),
        ("append", "appends", ["append, in turn"]),
        ("broken put", "puts that break off", ["put that breaks off"]),
        ("upload", "uploads in parts", ["upload in parts"]),
        ("order", "order of listings", ["list in order"]),
        ("page", "many keys", ["list of more than 1000 keys"]),
        ("delete page", "many keys", ["delete many keys"]),
        ("stale list", "reads of other processes", ["list after write"]),
        ("stale read", "reads of other processes", ["read after write", "read after delete"]),
        ("range", "ranges", ["read of ranges"]),
    ],
)
async def test_a_broken_promise_is_found_by_the_question_about_it(
    lie: str, about: str, found: Sequence[str]
) -> None:
    findings = await ask(about, lie)
    assert set(found) <= {each.name for each in findings if each.verdict == "broken"}, findings
