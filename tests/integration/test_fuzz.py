"""Requests of every API and version, right and wrong: each is answered, or ends its connection with a reason."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.depth import how_many, in_full
from tests.fuzz.run import Fuzzer, GoodClient, load_case, save_case, statistics
from tests.integration.conftest import ServeFactory, ServeProcess, penstock
from tests.patience import HANG_S

#: Of each seed. ``python -m tests.fuzz --seconds 3600 --seed 7`` takes as long as you like.
CASES = how_many("fuzz_cases")
MIB = 2**20
SETTINGS = ("memory.limit=256MiB", "groups.initial_rebalance_delay=50ms", "groups.session_timeout_min=100ms")


@pytest.mark.parametrize("seed", [1, *in_full(2, 3, 4)])
def test_no_request_shows_a_bug_or_disturbs_others(serve: ServeFactory, seed: int) -> None:
    """Nothing is logged as a bug, answers decode, a client beside it is served, and all is given back."""
    broker = serve(*SETTINGS, arguments=("--log-level", "debug"))
    fuzzer = Fuzzer(broker, seed)
    fuzzer.run(0)
    before = statistics(broker)
    good = GoodClient(broker)
    good.start()
    for number in range(1, CASES):
        finding = fuzzer.run(number)
        assert finding is None, f"python -m tests.fuzz --seed {seed} finds it too\n{finding}"
    good.stop()
    assert not good.fault, good.fault
    assert good.rounds
    assert fuzzer.answered, "some of it is well formed"
    prove_all_is_given_back(broker, before)
    assert broker.terminate() == 0
    prove_data_are_whole(broker)
    broker.start()
    again = GoodClient(broker)
    again.start()
    again.stop()
    assert not again.fault, again.fault


def prove_all_is_given_back(broker: ServeProcess, before: dict[str, Any]) -> None:
    """Connections, tasks and descriptors are as many as before; memory, records in the log cache too, is bounded."""
    deadline = time.monotonic() + HANG_S
    while True:
        now = statistics(broker)
        server = now["server"]
        left = {
            "connections": server["connections"],
            "requests": server["requests_in_flight"],
            "waiting": server["waiting_for_room"] + server["waiting_for_memory"] + server["preparing"],
            "fetches": now["fetch_in_flight_bytes"],
            "tasks": max(0, now["tasks"] - before["tasks"]),
            "descriptors": max(0, now["descriptors"] - before["descriptors"]),
        }
        if not any(left.values()):
            break
        assert time.monotonic() < deadline, f"not given back: {left}"
        time.sleep(0.2)
    assert now["resident_bytes"] < 256 * MIB


def prove_data_are_whole(broker: ServeProcess) -> None:
    """``penstock verify`` finds nothing."""
    done = penstock("verify", "--set", f"broker.data_dir={broker.data_dir}")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_finding_is_saved_and_sent_again(serve: ServeFactory, tmp_path: Path) -> None:
    """What ``--replay`` reads is what was sent."""
    fuzzer = Fuzzer(serve(*SETTINGS), 1)
    for number in range(3):
        case = fuzzer.draw(number)
        assert fuzzer.send(case) is None
        save_case(case, tmp_path / "case.json")
        again = load_case(tmp_path / "case.json")
        assert [[draw() for draw in frames] for frames in again.connections] == case.sent
        assert fuzzer.send(again) is None
    assert fuzzer.sent
