"""When a table commits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from penstock.lake.table_task import TableTask
from penstock.lake.turns import Turns

pytestmark = pytest.mark.anyio


class Task(TableTask):
    """Each commit takes seconds; no time passes otherwise."""

    def __init__(self, takes_s: float) -> None:
        self.now = 0.0
        self.began: list[float] = []
        self._takes_s = takes_s
        configs = SimpleNamespace(commit_interval_s=10.0, commit_bytes=1, maintenance_request=0)
        wanted: Any = SimpleNamespace(topic=None, configs=configs)
        around: Any = SimpleNamespace(clock=lambda: self.now, maintenance_turns=Turns())
        state: Any = SimpleNamespace(topic_id="t", name="t")
        super().__init__(around, state, wanted)

    async def _cycle(self, table: Any) -> None:
        self.began.append(self.now)
        self.now += self._takes_s
        self._stopping = len(self.began) == 4

    async def _maintain(self, table: Any) -> None:
        pass

    async def _drain(self, table: Any, *, only_full: bool) -> bool:
        return False

    async def _wait(self, timeout_s: float, *, ends_early: bool = True) -> None:
        self.now += timeout_s


@pytest.mark.parametrize(("takes_s", "began"), [(3, [10, 20, 30, 40]), (15, [10, 25, 40, 55])])
async def test_the_commit_interval_counts_from_where_a_commit_begins(
    takes_s: float, began: list[float]
) -> None:
    task = Task(takes_s)
    table: Any = None
    topic: Any = None
    await task._feed(table, topic)
    assert task.began == began
