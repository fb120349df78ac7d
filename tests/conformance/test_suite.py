"""The suite as a tool: the command, the report, the pytest way in, and plugins that hang or lie."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tests.patience import HANG_S

import penstock_conformance
import penstock_conformance.reference
import penstock_conformance.test_partitioner as clauses_of_partitioner
from penstock_conformance import KINDS
from penstock_conformance._body import check_body, make_body
from penstock_conformance.mutants import MUTANTS
from penstock_tools.cli import main

_FOLDER = Path(inspect.getfile(penstock_conformance)).parent

_REFUSING_STORE = '''
"""A store that claims nothing and refuses one thing too few; and one that hangs."""
from contextlib import asynccontextmanager
from dataclasses import replace

import time

import anyio
from penstock.errors import InvalidRequestError
from penstock.hookspecs import hookimpl
from penstock.spi.object_store import ObjectStoreCapabilities, ObjectStoreSpec
from penstock.spi.partitioner import PartitionerCapabilities, PartitionerSpec
from penstock_conformance.reference._object_store import DirectoryStore
from penstock_conformance.reference._partitioner import PlainPartitioner
from penstock_conformance.reference._plugin import NoSettings

class Modest(DirectoryStore):
    capabilities = ObjectStoreCapabilities(compare_and_swap=False, durable=False)
    async def put_if_absent(self, key, body):
        raise InvalidRequestError("not here")
    async def create_multipart(self, key):
        raise InvalidRequestError("not here")

class Stuck(PlainPartitioner):
    def choose(self, topic, key, size_bytes, partition_count):
        if partition_count < 1:
            time.sleep(1000)
        return super().choose(topic, key, size_bytes, partition_count)

@asynccontextmanager
async def open_store(settings, services):
    yield Modest(services.data_dir / "objects")

@asynccontextmanager
async def open_partitioner(settings, services):
    yield Stuck()

@hookimpl
def penstock_register_object_store():
    return ObjectStoreSpec(name="modest", summary="", settings=NoSettings,
        capabilities=Modest.capabilities, open=open_store)

@hookimpl
def penstock_register_partitioner():
    return PartitionerSpec(name="stuck", summary="", settings=NoSettings,
        capabilities=PartitionerCapabilities(), open=open_partitioner)
'''


def _run(tmp_path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "conformance", "run", *arguments, "--report", str(report)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
        cwd=tmp_path,
    )
    return done, json.loads(report.read_text()) if report.exists() else {}


@pytest.fixture
def plugins_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "plugins"
    directory.mkdir()
    (directory / "modest_store.py").write_text(_REFUSING_STORE)
    return directory


def test_unclaimed_capabilities_are_told_and_must_be_refused(tmp_path: Path, plugins_dir: Path) -> None:
    """An unclaimed capability that works is reported; a method of it that isn't refused is a failure."""
    done, report = _run(
        tmp_path,
        "object_store",
        "--plugin",
        "modest",
        "--plugins-dir",
        str(plugins_dir),
        "--level",
        "1",
        "--deadline",
        str(HANG_S),
    )
    outcomes = {clause["name"]: clause["outcome"] for clause in report["clauses"]}
    assert done.returncode == 1
    assert outcomes["unclaimed_put_if_absent_is_refused"] == "pass"
    assert outcomes["unclaimed_multipart_is_refused"] == "pass"
    assert outcomes["unclaimed_compare_and_swap_is_refused"] == "fail"
    assert outcomes["put_if_absent_creates_once"] == "unclaimed"
    assert outcomes["swap_needs_the_current_token"] == "unclaimed_passes"
    assert outcomes["objects_outlive_the_opener"] == "unclaimed_passes"
    assert "but passes" in done.stdout
    assert [name for name, outcome in outcomes.items() if outcome == "fail"] == [
        "unclaimed_compare_and_swap_is_refused"
    ]


def test_plugin_that_blocks_the_loop_fails(tmp_path: Path, plugins_dir: Path) -> None:
    """A plugin that hangs fails its clause; the others are still tried."""
    done, report = _run(
        tmp_path,
        *("partitioner", "--plugin", "stuck", "--plugins-dir", str(plugins_dir), "--deadline", "0.5"),
    )
    outcomes = {clause["name"]: clause["outcome"] for clause in report["clauses"]}
    assert done.returncode == 1
    assert [name for name, outcome in outcomes.items() if outcome == "fail"] == ["no_partitions_is_refused"]
    assert len(outcomes) >= 10


def test_report_says_what_was_tried(tmp_path: Path) -> None:
    """Plugin, version, SPI, settings without secrets, machine, levels, seed, and each clause with its rule."""
    done, report = _run(
        tmp_path,
        *("wal", "--plugin", "reference", "-p", "penstock_conformance.reference", "--level", "1"),
        *("--set", "capacity=1MiB", "--seed", "7", "-k", "new_log or full_log"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["plugin"]["name"] == "reference"
    assert report["plugin"]["spi_version"] == 2
    assert report["settings"] == {"capacity": "1MiB"}
    assert report["capabilities"]["fencing"] is True
    assert (report["seed"], report["levels"], report["rounds"]) == (7, [1], 1)
    assert {clause["name"] for clause in report["clauses"]} == {
        "full_log_refuses_until_trimmed",
        "new_log_is_empty",
    }
    assert all(clause["rule"] and clause["outcome"] == "pass" for clause in report["clauses"])
    assert report["machine"]["cpus"] >= 1


def test_suite_runs_under_a_foreign_pytest(tmp_path: Path) -> None:
    """The importable way in, in any order, from any directory, beside a project's own settings."""
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '-q'\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "penstock_conformance.plugin"),
            *("--pyargs", "penstock_conformance", "--penstock-kind=log_cache", "--penstock-plugin=reference"),
            *("--penstock-module=penstock_conformance.reference", "--penstock-report=out.json"),
        ],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["counts"] == {"pass": 10}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense", "--plugin", "x"), "choose from"),
        (("wal", "--plugin", "wal_blok"), "wal_block"),
        (("wal", "--plugin", "wal_block", "--set", "capacty=4MiB"), "capacity"),
        (("wal", "--plugin", "wal_block", "--set", "capacity"), "key=value"),
        (("partitioner", "--plugin", "partitioner", "-k", "no_such_clause"), "no clause is selected"),
    ],
)
def test_mistakes_of_the_user_are_one_sentence(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and a sentence that names what is wrong."""
    if "no_such_clause" in arguments:
        done = subprocess.run(
            [sys.executable, "-m", "penstock", "conformance", "run", *arguments],
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
        )
        code, text = done.returncode, done.stderr
    else:
        code, text = main(["conformance", "run", *arguments]), capsys.readouterr().err
    assert code == 2
    assert words in text
    assert "Traceback" not in text


def test_every_clause_says_its_rule() -> None:
    """One module per kind; each clause is a coroutine with a docstring, and its name is unique in its kind."""
    for kind in KINDS:
        tree = ast.parse(_clauses_of(kind).replace("from __future__ import annotations", ""))
        functions = [node for node in tree.body if isinstance(node, ast.AsyncFunctionDef)]
        clauses = [node for node in functions if node.name.startswith("test_")]
        assert len(clauses) >= 10, f"few clauses: kind={kind}"
        assert len({node.name for node in clauses}) == len(clauses)
        for node in clauses:
            assert ast.get_docstring(node), f"a clause without its rule: {kind} {node.name}"


def _clauses_of(kind: str) -> str:
    """The modules with the clauses of a kind, one behind the other."""
    modules = (_FOLDER / f"test_{kind}.py", *_FOLDER.glob(f"test_{kind}_*.py"))
    return "\n".join(module.read_text() for module in modules)


def test_mutants_name_clauses_that_exist() -> None:
    """A renamed clause can't leave a mutant behind."""
    for mutant in MUTANTS.values():
        text = _clauses_of(mutant.kind)
        for name in mutant.caught_by:
            assert f"async def test_{name}(" in text, f"no such clause: {mutant.kind} {name}"


def test_every_clause_catches_a_mutant() -> None:
    """A clause that can't fail proves nothing."""
    # These need other claims than the mutants make; test_unclaimed_capabilities_... is the proof of their like.
    exempt = {"unclaimed_put_if_absent_is_refused", "unclaimed_compare_and_swap_is_refused"}
    exempt |= {"unclaimed_multipart_is_refused", "unclaimed_seal_is_refused", "unclaimed_readahead_is_zero"}
    exempt |= {"news_of_others_arrive"}
    for kind in KINDS:
        tree = ast.parse((_FOLDER / f"test_{kind}.py").read_text())
        clauses = {
            node.name.removeprefix("test_")
            for node in tree.body
            if isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test_")
        }
        caught = {name for mutant in MUTANTS.values() if mutant.kind == kind for name in mutant.caught_by}
        assert clauses - caught - exempt == set(), f"clauses without a mutant: kind={kind}"


def test_suite_is_not_loaded_into_every_pytest() -> None:
    """The clauses are chosen with ``-p``; without it their fixture isn't even there."""
    assert clauses_of_partitioner.KIND == "partitioner"
    script = (
        "import sys, pytest; pytest.main(['--version']); print('penstock_conformance.plugin' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=True,
    )
    assert done.stdout.strip().endswith("False")


def test_body_tells_whole_from_torn() -> None:
    """The bytes that the crash clauses go by: any change of one is noticed."""
    body = make_body(3, 9, 500)
    assert check_body(body) == (3, 9)
    other = make_body(3, 10, 500)
    for broken in (
        body[:-1],
        body + b"x",
        body[:250] + other[250:],
        body[:40] + b"!" + body[41:],
        b"",
        body[:10],
    ):
        with pytest.raises(AssertionError):
            check_body(broken)
