"""The pace of uploads, on a virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from penstock.stream.pacer import PRESSURE_MAX, Pacer

MIB = 2**20
PIECE = MIB


class Broker:
    """Data come in at a rate that may change, and are uploaded in blocks; those that wait for their turn press."""

    def __init__(self, intake: Callable[[float], float], block_bytes: int = 64 * MIB) -> None:
        self.now = 0.0
        self.taken = 0.0
        self.uploaded = 0
        self.starts: list[float] = []
        self._intake = intake
        self._block_bytes = block_bytes
        self.pacer = Pacer(0.0)
        self.behind_max = 0.0

    def run(self, seconds: float, put_s: float = 0.001) -> None:
        """Blocks are put one after the other; a block is begun when it is full."""
        end = self.now + seconds
        while self.now < end:
            if self.taken - self.uploaded < self._block_bytes:
                self._pass(0.01)
                continue
            for _ in range(self._block_bytes // PIECE):
                full = int(self.taken // self._block_bytes) - self.uploaded // self._block_bytes
                pressure = max(0, full - 1)
                self._pass(self.pacer.pause_s(PIECE, self.now, int(self.taken), pressure))
                self.starts.append(self.now)
                self._pass(put_s)
                self.uploaded += PIECE
                self.behind_max = max(self.behind_max, self.taken - self.uploaded)

    def _pass(self, seconds: float) -> None:
        self.taken += self._intake(self.now) * seconds
        self.now += seconds


@pytest.mark.parametrize("megabytes_per_s", [1, 20, 200])
def test_uploads_go_little_faster_than_intake_and_are_done_before_the_next_block_is_full(
    megabytes_per_s: int,
) -> None:
    broker = Broker(lambda _: megabytes_per_s * 1e6)
    broker.run(600 / megabytes_per_s + 30)
    assert broker.behind_max <= 2 * 64 * MIB
    steady = [start for start in broker.starts if start > broker.now / 2]
    rate = max(1.3 * megabytes_per_s * 1e6, 8.1 * MIB)
    for first, last in zip(steady, steady[8:], strict=False):
        assert rate * (last - first) + rate * 0.02 + PIECE >= 8 * PIECE, "a burst takes the disk from the WAL"


def test_what_is_lost_while_the_disk_is_slow_is_made_up_for_by_a_short_burst() -> None:
    broker = Broker(lambda _: 20e6)
    broker.run(20)
    broker.now += 5  # a stall: nothing comes in either
    before = len(broker.starts)
    broker.run(10)
    starts = broker.starts[before:]
    burst = sum(1 for start in starts if start < starts[0] + 0.05)
    assert burst <= 10


def test_intake_that_grows_at_once_is_caught_up_with() -> None:
    broker = Broker(lambda now: 5e6 if now < 30 else 100e6)
    broker.run(60)
    assert broker.behind_max <= 3 * 64 * MIB
    assert broker.taken - broker.uploaded <= 2 * 64 * MIB


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_in_no_more_than_some_blocks_wait(seed: int) -> None:
    random = Random(seed)
    rates = [random.choice([0.0, 1e5, 5e6, 50e6, 300e6]) for _ in range(200)]
    broker = Broker(lambda now: rates[int(now) % len(rates)])
    broker.run(120)
    assert broker.behind_max <= 8 * 64 * MIB


def test_pressure_makes_uploads_faster_and_ends_all_pauses_at_last() -> None:
    def second_pause(pressure: float) -> float:
        pacer = Pacer(0.0)
        assert pacer.pause_s(PIECE, 0.0, 0, pressure) == 0
        return pacer.pause_s(PIECE, 0.0, 0, pressure)

    assert second_pause(0) == pytest.approx(2 * second_pause(1))
    assert second_pause(PRESSURE_MAX) == 0


def test_an_upload_that_was_hurried_leaves_no_debt() -> None:
    pacer = Pacer(0.0)
    for _ in range(100):
        assert pacer.pause_s(PIECE, 0.0, 0, PRESSURE_MAX) == 0
    pacer.pause_s(PIECE, 0.0, 0, 0)
    assert pacer.pause_s(PIECE, 0.0, 0, 0) < 1


def test_a_faster_pace_puts_more_in_a_burst_and_all_of_it_when_nothing_is_put_off() -> None:
    def burst_bytes(megabytes_per_s: float, pressure: float) -> int:
        pacer = Pacer(0.0)
        for second in range(1, 30):
            pacer.pause_s(PIECE, float(second), int(second * megabytes_per_s * 1e6), pressure)
        return pacer.burst_bytes

    assert Pacer(0.0).burst_bytes == 0
    assert burst_bytes(20, 0) < PIECE, "an upload beside a moderate load goes piece by piece"
    assert 4 * PIECE < burst_bytes(400, 0) < 10 * PIECE
    assert burst_bytes(400, 1) > burst_bytes(400, 0)
    assert burst_bytes(1, PRESSURE_MAX) > 2**40
