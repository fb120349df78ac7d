"""A broker's engine, metadata and real WAL plugins in simulated time, with faults, kills and takeovers (I1 to I11).

``pytest --depth wal_lives=1000`` runs more histories; one is replayed by ``penstock conformance simulate --seed N``.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from random import Random

import anyio
import pytest
from penstock_wal_block._device import Device
from penstock_wal_block._lone import LoneWrites
from tests.depth import FULL, in_full, seeds
from tests.patience import HANG_S
from tests.simulation.seeded_bugs import BUGS

from penstock.errors import UnavailableError
from penstock_conformance.simulation import STRATEGIES, Outcome, simulate
from penstock_conformance.simulation._block import SimulatedDevice, _Disk
from penstock_conformance.simulation._loop import SimulatedLoop, run_simulated
from penstock_conformance.simulation._threads import SimulatedWriter, Turns

#: The contract with ourselves: a bug that takes more histories to be found might as well not be looked for.
_BUG_SEEDS = 500
#: Bugs that are found within a few histories; the full run looks for the others, too.
_QUICK = ("trims_what_is_not_uploaded", "takes_any_object_for_its_own", "trims_one_too_many")
_BUGS = [(strategy, name) for strategy, bugs in BUGS.items() for name in bugs]


def _digest(outcome: Outcome) -> str:
    return hashlib.sha256("\n".join(outcome.trace).encode()).hexdigest()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_history_breaks_no_promise(strategy: str) -> None:
    counts: dict[str, int] = {}
    for seed in seeds("wal_lives"):
        outcome = simulate(strategy, seed)
        assert outcome.failure == "", "\n".join([*outcome.trace[-60:], outcome.failure])
        for word, count in outcome.counts.items():
            counts[word] = counts.get(word, 0) + count
    # two histories may be of those in which next to nothing is uploaded
    rare = ("flushed", "stop", "cut", "takeover") if FULL else ()
    for word in ("acked", "kill", "open", "ended", "checked", *rare):
        assert counts.get(word, 0) >= 2, f"the histories are idle: {word} {counts}"


def test_the_simulated_disk_has_all_that_a_log_asks_of_its_device() -> None:
    asked = {name for name in vars(Device) if not name.startswith("_")}
    has = {
        *dir(SimulatedDevice),
        *SimulatedDevice.__init__.__code__.co_names,
    }  # methods, and what it is given
    assert asked - has == set()


def test_a_failed_sync_of_the_simulated_disk_is_told_once_over_each_descriptor_as_linux_does() -> None:
    with closing(SimulatedLoop()) as loop, ThreadPoolExecutor(1) as other:
        disk = _Disk(loop, Random(0), 2**16)
        device = SimulatedDevice(disk, None, shared=False)
        device.write(8192, [b"ours"], 4)
        other.submit(device.write, 12288, [b"theirs"], 6).result()
        disk.is_failing = True
        with pytest.raises(OSError, match="the disk failed"):
            device.sync()
        disk.is_failing = False
        assert not any(disk.seen), "it took the writes of both with it"
        with pytest.raises(OSError, match="the disk failed before"):
            other.submit(device.sync).result()
        device.sync()
        other.submit(device.sync).result()
        with pytest.raises(OSError, match="the disk failed before"):
            device.write_header_slot(0, bytes(4096))


def test_a_simulated_opening_waits_for_the_locks_of_another_one_of_its_process() -> None:
    """As those of Linux on open files: a replica that returns must not be written by its opening before."""

    async def main(loop: SimulatedLoop) -> None:
        disk, SimulatedWriter.turns = _Disk(loop, Random(0), 2**20), Turns(loop, Random(0))
        before, after = (SimulatedDevice(disk, None, shared=False) for _ in range(2))

        def take_both() -> bool:
            try:
                with before.data_lock(), after.data_lock():
                    return True
            except UnavailableError:
                return False

        assert not await SimulatedWriter.run_in_turn(take_both)
        assert (before.claim(7), after.claim(7), after.claim(8)) == (True, False, True)
        before.close()
        assert (after.is_free(7), after.is_free(8)) == (True, False)
        SimulatedWriter.turns.close()

    run_simulated(main, 0)


def test_an_access_to_a_simulated_disk_ends_soon_once_the_disk_is_fast_again() -> None:
    async def main(loop: SimulatedLoop) -> None:
        disk, SimulatedWriter.turns = _Disk(loop, Random(0), 2**20), Turns(loop, Random(0))
        disk.slowness = 1_000_000.0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(SimulatedWriter.run_in_turn, disk.wait, 0)
            await anyio.sleep(1)
            disk.slowness, fast_s = 1.0, loop.time()
        assert 0 < loop.time() - fast_s < 1  # simulated time
        SimulatedWriter.turns.close()

    run_simulated(main, 0)


def test_a_simulated_log_that_would_be_written_by_the_loop_is_written_by_threads_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Time stands still on the event loop, so nothing can wait for the disk there."""
    monkeypatch.setattr(LoneWrites, "on_loop", lambda lone, group_bytes: True)
    outcome = simulate("wal_block", 0)
    assert outcome.failure == "", "\n".join([*outcome.trace[-60:], outcome.failure])


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    """What another process makes of the seed, where sets are in another order, by strategy."""
    script = (
        "import json; from tests.simulation.test_deterministic_simulation import STRATEGIES, _digest, simulate; "
        "print(json.dumps({strategy: _digest(simulate(strategy, 3)) for strategy in STRATEGIES}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
        env={**os.environ, "PYTHONHASHSEED": "5"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_seed_gives_the_same_trace_in_every_process(
    strategy: str, elsewhere: dict[str, str]
) -> None:
    first, second = simulate(strategy, 3), simulate(strategy, 3)
    assert first.trace == second.trace
    assert _digest(first) == elsewhere[strategy]


@pytest.mark.parametrize(
    ("strategy", "name"),
    [one for bug in _BUGS for one in ([bug] if bug[1] in _QUICK else in_full(bug))],
)
def test_a_seeded_bug_is_found(strategy: str, name: str) -> None:
    for seed in range(_BUG_SEEDS):
        if simulate(strategy, seed, bug=BUGS[strategy][name]).failure:
            return
    pytest.fail(f"not found within {_BUG_SEEDS} histories")
