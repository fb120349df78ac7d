"""Clauses leave steps out where the medium is slow, and none where the machine is busy."""

from __future__ import annotations

from penstock_conformance._pace import Pace


class _Clock:
    now = 5.0

    def __call__(self) -> float:
        return self.now


def _steps_done(takes_s: list[float]) -> int:
    """How many of these steps a clause does that has ten seconds for them."""
    clock = _Clock()
    pace = Pace(10.0, len(takes_s), clock)
    done = 0
    for each in takes_s:
        if pace.is_over:
            break
        clock.now += each
        pace.step()
        done += 1
    return done


def test_quick_steps_are_all_done_however_long_a_few_of_them_take() -> None:
    """A machine that does something else for a minute isn't a slow medium."""
    assert _steps_done([0.01] * 100) == 100
    assert _steps_done([20.0, *[0.01] * 99]) == 100
    assert _steps_done([0.01, 0.01, 0.01, 60.0] * 20) == 80


def test_slow_steps_end_with_their_time() -> None:
    """The first step behind the ten seconds is left out; of very slow ones, the fourth."""
    assert _steps_done([1.0] * 100) == 11
    assert _steps_done([9.0] * 100) == 3
    assert _steps_done([60.0] * 100) == 1
