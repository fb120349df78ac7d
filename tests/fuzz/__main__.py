"""Fuzz a broker for as long as you like: ``python -m tests.fuzz --seconds 3600 --seed 7``.

A finding is printed with the frames that brought it about, made smaller where that is cheap, and saved;
``--replay FILE`` sends it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.run import Finding, Fuzzer, GoodClient, load_case, save_case, statistics
from tests.integration.conftest import ServeProcess

SETTINGS = ("memory.limit=256MiB", "groups.initial_rebalance_delay=50ms", "groups.session_timeout_min=100ms")


def main() -> int:
    """1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="what is drawn (default 1)")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="where cases are saved")
    parser.add_argument("--keep-going", action="store_true", help="go on after a finding")
    parser.add_argument("--replay", type=Path, help="send this case and nothing else")
    parser.add_argument("--codes", action="store_true", help="print which codes were answered how often")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-fuzz-") as directory:
        broker = ServeProcess(Path(directory) / "data", SETTINGS, ("--log-level", "debug"))
        broker.start()
        try:
            found = _fuzz(broker, arguments)
        finally:
            if broker.running:
                broker.terminate()
    return 1 if found else 0


def _fuzz(broker: ServeProcess, arguments: argparse.Namespace) -> int:
    fuzzer = Fuzzer(broker, arguments.seed)
    if arguments.replay is not None:
        finding = fuzzer.send(load_case(arguments.replay))
        print(finding or "nothing is wrong")
        return int(finding is not None)
    good = GoodClient(broker)
    good.start()
    before = statistics(broker)
    known: set[str] = set()
    number = 0
    until = time.monotonic() + arguments.seconds
    while time.monotonic() < until:
        finding = fuzzer.run(number)
        number += 1
        if finding is not None and finding.signature not in known:
            known.add(finding.signature)
            _report(fuzzer, finding, arguments)
            if not arguments.keep_going:
                break
        if not broker.running:
            break
    good.stop()
    if good.fault:
        known.add(good.fault)
        print(f"the well-behaved client beside it failed: {good.fault}")
    print(
        f"cases={number} requests={fuzzer.sent} answers={fuzzer.answered} closed={fuzzer.closed} "
        f"good_rounds={good.rounds} findings={len(known)}"
    )
    if arguments.codes:
        for (api_key, code), times in sorted(fuzzer.codes.items()):
            print(f"  api_key={api_key} code={code} answers={times}")
    if broker.running:
        after = statistics(broker)
        for key in ("resident_bytes", "memory_used_bytes", "descriptors"):
            print(f"{key}: {before[key]} -> {after[key]}")
    return len(known)


def _report(fuzzer: Fuzzer, finding: Finding, arguments: argparse.Namespace) -> None:
    small = fuzzer.minimise(finding)
    arguments.findings.mkdir(exist_ok=True)
    path = arguments.findings / f"seed-{arguments.seed}-case-{finding.case.number}.json"
    save_case(small.case, path)
    print(f"{small}\nsaved: python -m tests.fuzz --replay {path}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
