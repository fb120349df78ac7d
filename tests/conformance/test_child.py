"""Child processes of the suite that halt in the middle of a call."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.patience import HANG_S

from penstock_conformance._child import Child


class _Halted(Child):
    """A process that has halted; what wakes it is counted."""

    def __init__(self) -> None:
        self.wakes = 0
        self.woken = threading.Event()

    def _is_asleep(self) -> bool:
        return True

    def wake(self) -> None:
        self.wakes += 1
        self.woken.set()


@pytest.mark.parametrize("outlasts_its_sleep", [False, True])
def test_a_halt_ends_once(outlasts_its_sleep: bool) -> None:
    """A second SIGCONT, of a body that took long, would meet the next halt."""
    child = _Halted()

    async def sleep() -> None:
        async with child.asleep():
            if outlasts_its_sleep:
                assert child.woken.wait(HANG_S)

    asyncio.run(sleep())
    assert child.wakes == 1
