"""What the figures of benchmarks are judged by."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from penstock_tools.bench.cold_reads import ColdReads
from penstock_tools.bench.cold_reads import report as report_cold_reads
from penstock_tools.bench.lake import Lake
from penstock_tools.bench.lake import report as report_lake
from penstock_tools.bench.server import machine_facts
from penstock_tools.bench.start import BUDGET_MS, Start, median_start
from penstock_tools.bench.start import report as report_starts
from penstock_tools.bench.uploads import Uploads
from penstock_tools.bench.uploads import report as report_uploads


def reads(reading_p99_ms: list[float], reading_p50_ms: float = 1.2) -> ColdReads:
    return ColdReads(
        quiet_p50_ms=[1.0] * 3,
        quiet_p99_ms=[2.0, 5.0, 3.0],
        reading_p50_ms=[reading_p50_ms] * 3,
        reading_p99_ms=reading_p99_ms,
        read_megabytes_per_s=100.0,
    )


def test_noise_is_the_spread_of_the_quiet_windows_and_not_their_worst() -> None:
    assert reads([4.0, 4.5, 90.0]).is_met
    assert not reads([4.6, 4.6, 1.0]).is_met


def test_a_cold_reader_is_judged_by_p50_too() -> None:
    assert reads([3.0] * 3, reading_p50_ms=1.3).is_met
    assert not reads([3.0] * 3, reading_p50_ms=1.31).is_met


def test_ratio_is_between_the_medians() -> None:
    assert reads([6.0, 1.0, 9.0]).ratio == 2.0
    assert "with / without: p50 1.20, p99 2.00" in report_cold_reads(reads([6.0, 1.0, 9.0]))
    assert report_cold_reads(reads([6.0, 1.0, 9.0])).endswith("MISSED")
    assert report_cold_reads(reads([3.0, 1.0, 9.0])).endswith("met")


def test_what_the_reader_does_to_a_bare_server_is_told_beside_it() -> None:
    floor = reads([3.0] * 3, reading_p50_ms=1.1)
    lines = report_cold_reads(replace(reads([6.0, 1.0, 9.0]), floor=floor)).splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        ["without", "reader"],
        ["with", "catch-up"],
        ["bare", "server,"],
        ["bare", "server,"],
    ]
    assert lines[5].startswith("bare server, with / without: p50 1.10, p99 1.00, reader at 100 MB/s")
    assert lines[6].endswith("MISSED"), "the aim is the aim, whatever the machine makes of it"


def test_a_reader_that_gets_less_than_it_wants_is_told_of() -> None:
    wants = replace(reads([3.0] * 3), wanted_megabytes_per_s=105.0)
    assert "reader at 100 MB/s; aim" in report_cold_reads(wants)
    lines = report_cold_reads(replace(wants, wanted_megabytes_per_s=106.0, floor=replace(wants)))
    assert "reader at 100 MB/s, not at the 106 that it was to have; aim" in lines
    assert "reader at 100 MB/s: no broker" in lines


@pytest.mark.skipif(sys.platform != "linux", reason="priorities are Linux's")
def test_who_gives_way_has_the_lowest_priority_and_so_have_its_threads() -> None:
    program = (
        "import os, threading\n"
        "from penstock_tools.bench.priority import give_way\n"
        "give_way()\n"
        "def say(): print(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))\n"
        "threading.Thread(target=say).start()\n"
    )
    # from an ordinary priority, whatever that of the tests is
    ordinary = "import os; os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))\n"
    said = subprocess.run(
        [sys.executable, "-c", ordinary + program], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["19"]


@pytest.mark.parametrize(("with_p99_ms", "word"), [(4.5, "within"), (4.6, "more than")])
def test_a_table_is_held_against_the_noise_of_windows_without_one(with_p99_ms: float, word: str) -> None:
    found = Lake(
        without_p50_ms=[1.0] * 3,
        without_p99_ms=[2.0, 5.0, 3.0],
        with_p50_ms=[1.0] * 3,
        with_p99_ms=[with_p99_ms] * 3,
        neutral_p50_ms=[1.0] * 3,
        neutral_p99_ms=[3.6] * 3,
        table_cpu_per_s=0.125,
        table_bytes_per_s=2_500_000,
        late_s=[1.0],
        interval_s=2.0,
        rows=1,
        without_cpu_s=1.0,
        with_cpu_s=2.0,
        neutral_cpu_s=1.0,
    )
    lines = report_lake(found).splitlines()
    assert lines[-2].startswith("p99 beside a neutral process / without: 1.20; ")
    assert lines[-2].endswith(" 0.12 s of a processor and 2.5 MB a second")
    assert lines[-3] == f"noise: windows without a table differ by 1.50 ms; the difference is {word} that"
    assert lines[-1].endswith("MISSED"), "the aim is the aim, whatever the noise"


def test_uploads_are_judged_by_the_medians_of_their_windows() -> None:
    found = Uploads(
        without_p50_ms=[1.0] * 3,
        without_p99_ms=[2.0, 5.0, 3.0],
        without_max_ms=[9.0] * 3,
        with_p50_ms=[1.0] * 3,
        with_p99_ms=[3.9, 3.0, 90.0],
        with_max_ms=[99.0] * 3,
        objects=7,
    )
    assert found.ratio == 1.3
    assert found.is_met
    assert report_uploads(found).endswith("1.30, 7 objects; aim (at most 1.3): met")


def test_budget_counts_from_broker_to_ack_without_the_import() -> None:
    good = Start(import_ms=900, start_ms=BUDGET_MS - 20, first_ack_ms=19)
    bad = Start(import_ms=0, start_ms=BUDGET_MS, first_ack_ms=1)
    cold, warm = report_starts({"cold": [good], "warm": [bad]}).splitlines()[1:]
    assert cold.endswith(" met")
    assert warm.endswith(" MISSED")


def test_median_start_is_one_that_was() -> None:
    starts = [Start(import_ms=0, start_ms=ms, first_ack_ms=0) for ms in (30, 10, 20)]
    assert median_start(starts) is starts[2]


def test_machine_facts_name_what_figures_depend_on(tmp_path: Path) -> None:
    facts = machine_facts(tmp_path)
    assert facts["processors"] >= 1
    assert facts["memoryMB"] > 100
    assert all(
        facts[key] for key in ("system", "processor", "python", "penstock", "filesystem", "librdkafka")
    )
