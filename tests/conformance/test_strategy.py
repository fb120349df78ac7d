"""Whole brokers on chosen plugins: the kind ``strategy`` lets sound ones pass and finds broken ones out.

All clauses on all of them take minutes: only the full run tries them (``tests/depth.py``).
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.depth import FULL
from tests.integration.conftest import penstock
from tests.keeper import in_memory
from tests.patience import HANG_S

from penstock_tools.cli import main


def conformance(*arguments: str) -> subprocess.CompletedProcess[str]:
    return penstock("conformance", *arguments)


def strategy(report: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    memory = in_memory()  # brokers sync a lot
    place = ["--work-dir", str(memory)] if memory else []
    return conformance("strategy", "--report", str(report), "--deadline", str(HANG_S / 3), *place, *arguments)


_PLUGINS = Path(__file__).with_name("_plugins")
_SHARED = ("--set", "object_store.url=file://{dir}/objects", "--set")


@pytest.mark.parametrize(
    ("arguments", "clauses"),
    [
        pytest.param((), "kill_during_an_outage", id="wal_block"),
        pytest.param((*_SHARED, "wal.plugin=wal_s3"), "second_owner", id="wal_s3"),
        pytest.param(
            (*_SHARED, "wal.plugin=wal_s3express_replicated"),
            "kill_during_an_outage",
            id="wal_s3express_replicated",
        ),
        # what broken logs are made of, or they are caught for what isn't their defect
        pytest.param(
            ("--plugins-dir", str(_PLUGINS), *_SHARED, "wal.plugin=plain_store_wal"),
            "takeovers",
            marks=pytest.mark.full,
            id="plain_store_wal",
        ),
    ],
)
def test_a_strategy_conforms(arguments: tuple[str, ...], clauses: str, tmp_path: Path) -> None:
    """The rest of the clauses is tried in the full run."""
    done = strategy(tmp_path / "report.json", *arguments, *(() if FULL else ("-k", clauses)))
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["result"] == "pass"
    assert report["partial"] is not FULL
    chosen = f"wal.plugin={report['effective_settings']['wal.plugin']}"
    assert chosen in (arguments or ("wal.plugin=wal_block",))
    assert report["effective_settings"]["groups.initial_rebalance_delay"] == "0ms"
    assert report["versions"]["confluent-kafka"]


def test_a_broker_on_a_wal_that_acknowledges_too_early_does_not_conform(tmp_path: Path) -> None:
    """The clause is about records and clients; that the plugin is at fault needn't be known."""
    done = strategy(
        tmp_path / "report.json",
        *("-p", "penstock_conformance.mutants", "--set", "wal.plugin=mutant", "--set", "wal.capacity=64MiB"),
        *("--set", "wal.defect=acks_before_durable", "-k", "once_and_in_order"),
    )
    assert done.returncode == 1, done.stdout[-4000:] + done.stderr[-2000:]
    clause = json.loads((tmp_path / "report.json").read_text())["clauses"][0]
    # noticed by the broker when it starts, by the client that counts, or by the producer that goes on
    assert clause["outcome"] == "fail", clause


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--set", "wal.plugin=wal_nothing"), "no plugin of this kind has this name"),
        (("--config", "/nowhere.toml"), "configuration file not found"),
        (("--set", "wal.capacity=lots"), "capacity"),
    ],
)
def test_what_cant_be_tried_is_told_in_one_sentence(
    arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["conformance", "strategy", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


# -- the report, once more


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("reported") / "report.json"
    done = conformance(
        *("run", "partitioner", "--plugin", "partitioner", "--level", "1", "-k", "range", "--seed", "7"),
        *("--report", str(path)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return path.read_text()


@pytest.fixture
def report(reported: str, tmp_path: Path) -> Path:
    path = tmp_path / "report.json"
    path.write_text(reported)
    return path


def changed(path: Path, **fields: Any) -> Path:
    document = json.loads(path.read_text())
    document.update(fields)
    path.write_text(json.dumps(document))
    return path


def test_a_report_is_repeated_by_one_command(report: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.json"
    done = conformance("repeat", str(report), "--report", str(again))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not as reported" not in done.stdout
    first, second = json.loads(report.read_text()), json.loads(again.read_text())
    assert first["partial"] is True
    for same in ("verdict", "selection", "seed", "effective_settings", "versions", "deadlines_s", "target"):
        assert first[same] == second[same]


def test_an_outcome_that_isnt_as_reported_is_told(report: Path) -> None:
    clauses = json.loads(report.read_text())["clauses"]
    clauses[0]["outcome"] = "unclaimed"
    done = conformance("repeat", str(changed(report, clauses=clauses, versions={"penstock": "0.0.1"})))
    assert done.returncode == 1
    assert f"not as reported: {clauses[0]['name']}: unclaimed then, pass now" in done.stdout
    assert "not as reported: versions penstock: 0.0.1 then, " in done.stdout


def test_secrets_that_a_report_masks_are_asked_for(report: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = json.loads(report.read_text())["target"]
    target["settings"] = {"secret_key": "***"}
    assert main(["conformance", "repeat", str(changed(report, target=target))]) == 2
    assert "give these again with --set: keys=secret_key" in capsys.readouterr().err


def test_what_is_no_report_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    for text, sentence in (("{}", "isn't a report that can be repeated"), ("", "the report can't be read")):
        path.write_text(text)
        assert main(["conformance", "repeat", str(path)]) == 2
        assert sentence in capsys.readouterr().err
