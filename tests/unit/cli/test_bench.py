"""``penstock bench`` where no broker is needed: mistakes, and pages from files."""

from __future__ import annotations

import importlib.util
import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from penstock_tools.bench.cold_reads import ColdReads
from penstock_tools.bench.results import result_of
from penstock_tools.bench.start import Start
from penstock_tools.bench.workload import Workload
from penstock_tools.cli import main

SMOKE = Path(__file__).parents[3] / "tools/bench/workloads" / "smoke.yaml"


def run_file(tmp_path: Path, label: str) -> str:
    path = tmp_path / f"{label}.json"
    path.write_text(json.dumps(result_of(Workload(name="try"), [], {"label": label})))
    return str(path)


def test_compare_lays_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html = tmp_path / "page.html"
    runs = [run_file(tmp_path, "before"), run_file(tmp_path, "after")]
    assert main(["bench", "compare", *runs, "-o", str(html), "--title", "Side by side"]) == 0
    assert f"wrote {html}" in capsys.readouterr().out
    text = html.read_text()
    assert "<h1>Side by side</h1>" in text
    assert "<th>before</th><th>after</th>" in text


def test_compare_refuses_what_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text("{}")
    assert main(["bench", "compare", str(other), "-o", str(tmp_path / "page.html")]) == 2
    assert "this is no result of penstock bench" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_mistake_in_any_workload_stops_before_the_first_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("topic: 1\n")
    assert main(["bench", str(SMOKE), str(bad), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"penstock: {bad}: topic is no key, the nearest key is topics: value=1\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("duration", "sentence"), [("5", "not a duration"), ("0s", "must be more than nothing")]
)
def test_impossible_duration_is_refused(
    duration: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--duration", duration, str(SMOKE), "--out", str(tmp_path)]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["confluent_kafka", "yaml"])
def test_missing_extra_says_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == missing else find(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    assert main(["bench", str(SMOKE)]) == 2
    assert "pip install 'penstock[bench]'" in capsys.readouterr().err


def canned_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of a broker that meets its budgets but for cold reads."""
    rows = [
        {
            "case": "200 KiB",
            "ratio": 0.8,
            "ratio_with_objects": 0.9,
            "penstock": [{"requests_per_s": 4000.0}],
            "floor": [],
        },
        {
            "case": "1 KiB",
            "ratio": 0.4,
            "ratio_with_objects": 0.9,
            "penstock": [{"requests_per_s": 30_000.0}],
            "floor": [],
        },
        {
            "case": "1 KiB, depth 1",
            "ratio": 1.3,
            "ratio_with_objects": 0.9,
            "penstock": [{"requests_per_s": 900.0}],
            "floor": [],
        },
    ]
    start = Start(import_ms=400, start_ms=150, first_ack_ms=10)
    cold = ColdReads(
        quiet_p50_ms=[1.0, 1.1, 1.2],
        quiet_p99_ms=[2.0, 3.0, 4.0],
        reading_p50_ms=[1.0, 1.1, 1.2],
        reading_p99_ms=[4.0, 9.0, 12.0],
        read_megabytes_per_s=80.0,
    )
    monkeypatch.setattr("penstock_tools.bench.floor.compare", lambda *_: rows)
    monkeypatch.setattr(
        "penstock_tools.bench.start.measure_starts", lambda *_: {"cold": [start], "warm": [start]}
    )
    monkeypatch.setattr("penstock_tools.bench.cold_reads.measure_cold_reads", lambda *_, **__: cold)


def test_budgets_are_all_judged(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    canned_measurements(monkeypatch)
    assert main(["bench", "budgets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = [line.split()[-1] for line in lines if line.endswith(("met", "MISSED"))]
    assert verdicts == ["met", "met", "met", "met", "met", "MISSED"]
    assert any(
        line.split() == ["cold", "400", "ms", "150", "ms", "10", "ms", "160", "ms", "met"] for line in lines
    )
    assert any(line.startswith("with / without: p50 1.00, p99 3.00, reader at 80 MB/s") for line in lines)


@pytest.mark.parametrize("command", ["floor", "start", "cold-reads"])
def test_figures_go_into_a_file(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    canned_measurements(monkeypatch)
    path = tmp_path / "figures.json"
    assert main(["bench", command, "--json", str(path), "--dir", str(tmp_path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["machine"]["processors"] > 0
    assert len(figures) > 1
    assert f"wrote {path}" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["figures.json"]


def test_figures_take_no_configuration_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text("")
    assert main(["-c", str(path), "bench", "floor"]) == 2
    assert "this measures with --set only" in capsys.readouterr().err


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    for command in ("run", "compare", "floor", "start", "cold-reads", "budgets"):
        assert command in shown


def test_a_file_that_is_there_is_left_as_it_is_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes"
    path.write_text("a user's")
    for arguments in (["floor", "--json", str(path)], ["compare", "run.json", "-o", str(path)]):
        assert main(["bench", *arguments]) == 2
        assert (
            capsys.readouterr().err == f"penstock: file is there already, it is left as it is: path={path}\n"
        )
    assert path.read_text() == "a user's"


@pytest.mark.parametrize("command", ["floor", "start", "cold-reads"])
@pytest.mark.parametrize("option", ["--dir", "--json"])
def test_places_that_are_not_there_are_told_before_anything_is_measured(
    command: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", command, option, str(tmp_path / "none" / "x")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("penstock: ")
    assert captured.err.count("\n") == 1
    assert str(tmp_path / "none") in captured.err
    assert captured.out == ""


def test_output_directory_that_cannot_be_made_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["bench", str(SMOKE), "--out", str(tmp_path / "file" / "x")]) == 2
    assert (
        capsys.readouterr().err
        == f"penstock: --out can't be made, Not a directory: path={tmp_path / 'file' / 'x'}\n"
    )
