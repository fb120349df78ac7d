"""The suite as a tool: the command, the report, the pytest way in, and plugins that hang or lie."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from tests.integration.conftest import penstock
from tests.patience import HANG_S

import penstock_conformance.test_partitioner as clauses_of_partitioner
from penstock.errors import FullError, InvalidRequestError
from penstock.spi import SPI_VERSION
from penstock_conformance import KINDS, Target
from penstock_conformance import plugin as suite
from penstock_conformance._body import check_body, make_body
from penstock_conformance._catalogue import clause_files, clause_names
from penstock_conformance._clause import Clause, MissedDeadline
from penstock_conformance._report import ClauseResult, Report
from penstock_conformance.mutants import MUTANTS
from penstock_tools.cli import main

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


_FAILING_STORE = """
from penstock.errors import UnavailableError
from penstock.hookspecs import hookimpl
from penstock.spi import Settings
from penstock.spi.object_store import ObjectStoreSpec
from penstock_conformance.reference._object_store import STORE_CAPABILITIES, DirectoryStore
from penstock_conformance.reference._plugin import closing

opened = 0

class Way(Settings):
    way: str

class Failing(DirectoryStore):
    def __init__(self, way, path):
        global opened
        super().__init__(path)
        opened += 1
        self.way, self.number, self.gets = way, opened, 0

    def close(self):
        pass

    async def get(self, key, start=0, end=None):
        self.gets += 1
        fails = {
            "once": self.number == 3 and self.gets == 4,
            "anywhere": self.gets == 2 * self.number,
            "there": self.gets == 4,
        }
        if fails[self.way]:
            raise UnavailableError("not now")
        return await super().get(key, start, end)

@hookimpl
def penstock_register_object_store():
    return ObjectStoreSpec(name="failing", summary="", settings=Way, capabilities=STORE_CAPABILITIES,
        open=closing(lambda settings, services: Failing(settings.way, services.data_dir)))
"""


def _run(tmp_path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    report = tmp_path / "report.json"
    with contextlib.chdir(tmp_path):
        done = penstock("conformance", "run", *arguments, "--report", str(report))
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
        *("--level", "1", "--deadline", str(HANG_S)),
        *("-k", "unclaimed or put_if_absent or swap or outlive or range"),
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
        "unclaimed_append_is_refused",
        "unclaimed_compare_and_swap_is_refused",
    ]


@pytest.mark.parametrize(("way", "outcome"), [("once", "pass"), ("anywhere", "undecided"), ("there", "fail")])
def test_a_store_that_fails_for_now_is_tried_again(tmp_path: Path, way: str, outcome: str) -> None:
    """Every call may: a clause is begun anew; where it broke off each time, in another place, nothing is known."""
    (tmp_path / "failing_store.py").write_text(_FAILING_STORE)
    done, report = _run(
        tmp_path,
        *("object_store", "--plugin", "failing", "--plugins-dir", str(tmp_path), "--set", f"way={way}"),
        *("-k", "get_returns_the_asked_range", "--deadline", str(HANG_S)),
    )
    assert [clause["outcome"] for clause in report["clauses"]] == [outcome], done.stdout
    assert ("not now" in report["clauses"][0]["detail"]) == (outcome != "pass")


def test_missed_deadline_is_an_outcome_of_its_own(tmp_path: Path, plugins_dir: Path) -> None:
    """A plugin that hangs proves nothing by it, and breaks nothing; the other clauses are still tried."""
    done, report = _run(
        tmp_path,
        *("partitioner", "--plugin", "stuck", "--plugins-dir", str(plugins_dir), "--deadline", "0.5"),
    )
    outcomes = {clause["name"]: clause["outcome"] for clause in report["clauses"]}
    assert done.returncode == 3
    assert outcomes["no_partitions_is_refused"] == "deadline"  # others may, too, on a busy machine
    assert "fail" not in outcomes.values()
    assert len(outcomes) >= 10
    assert report["result"] == "undecided"
    assert report["verdict"].startswith("undecided: ")


def test_report_says_what_was_tried(tmp_path: Path) -> None:
    """Plugin, version, SPI, settings without secrets, machine, levels, seed, and each clause with its rule."""
    done, report = _run(
        tmp_path,
        *("wal", "--plugin", "reference", "-p", "penstock_conformance.reference", "--level", "1"),
        *("--set", "capacity=1MiB", "--seed", "7", "-k", "new_log or full_log"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["plugin"]["name"] == "reference"
    assert report["plugin"]["spi_version"] == SPI_VERSION
    assert report["settings"] == {"capacity": "1MiB"}
    assert report["capabilities"]["fencing"] is True
    assert (report["seed"], report["levels"], report["rounds"]) == (7, [1], 1)
    assert {clause["name"] for clause in report["clauses"]} == {
        "full_log_refuses_until_trimmed",
        "new_log_is_empty",
    }
    assert all(clause["rule"] and clause["outcome"] == "pass" for clause in report["clauses"])
    assert report["machine"]["cpus"] >= 1


def test_report_records_what_decides_it(tmp_path: Path) -> None:
    """Selection, deadlines, effective settings, medium, versions, and the command for the same run again."""
    options = ("--plugin", "reference", "-p", "penstock_conformance.reference")
    done, report = _run(
        tmp_path,
        *("metadata_log", *options, "--level", "1", "--seed", "7", "-k", "gaps_are_refused"),
        *("--deadline", str(HANG_S), "--work-dir", str(tmp_path)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["selection"]["levels"] == [1]
    assert report["selection"]["select"] == "gaps_are_refused"
    assert "newest_snapshot_comes_back" in report["selection"]["left_out"]
    assert report["deadlines_s"] == {"1": HANG_S}
    assert report["clauses"][0]["deadline_s"] == HANG_S
    assert report["medium"]["work_dir"] == str(tmp_path)
    assert report["medium"]["location"].startswith(str(tmp_path))
    assert set(report["versions"]) == {"spi", "suite", "penstock", "pytest", "anyio"}
    assert report["command"].startswith("penstock conformance run metadata_log --plugin reference -p ")
    assert report["command"].endswith(
        f" --level 1 -k gaps_are_refused --rounds 1 --seed 7 --deadline {HANG_S:g} --work-dir {tmp_path}"
    )


def test_report_has_the_settings_as_the_plugin_got_them(tmp_path: Path) -> None:
    """Defaults are among them: they decide what came out."""
    options = ("--plugin", "reference", "-p", "penstock_conformance.reference")
    _, report = _run(tmp_path, *("wal", *options, "--level", "1", "-k", "new_log_is_empty"))
    assert report["settings"] == {}
    assert report["effective_settings"]["capacity"]


def test_partial_run_says_that_it_is_partial(tmp_path: Path) -> None:
    """In the report, and in the verdict; a whole one says nothing of it."""
    options = ("log_cache", "--plugin", "reference", "-p", "penstock_conformance.reference")
    done, report = _run(tmp_path, *options, "-k", "statistics_add_up")
    total = len(clause_names("log_cache"))
    assert report["partial"] is True
    assert report["verdict"] == f"conforms; partial, 1 of {total} clauses were tried"
    assert f"partial, 1 of {total}" in done.stdout
    _, report = _run(tmp_path, *options)
    assert report["partial"] is False
    assert report["verdict"] == "conforms"


def test_clauses_that_are_named_are_all_that_is_looked_at() -> None:
    """Those and no others are tried, and modules of their kind without any of them aren't imported."""
    chosen = ["missing_object_is_not_found", "objects_outlive_the_opener"]
    script = (
        "import json, sys\n"
        "from penstock_conformance import Target, run\n"
        'target = Target(kind="object_store", plugin="reference", modules=("penstock_conformance.reference",))\n'
        "report = run(target, clauses=sys.argv[1:])\n"
        'modules = {name.rpartition(".")[2] for name in sys.modules}\n'
        "tried = [clause.name for clause in report.clauses]\n"
        'print(json.dumps([report.result, tried, [name for name in modules if name.startswith("test_")]]))\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *chosen], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert json.loads(done.stdout) == ["pass", chosen, ["test_object_store"]], done.stdout + done.stderr


def test_clauses_that_cannot_apply_are_in_the_verdict() -> None:
    """How many, and of which level."""
    report = _report_of(("a", 1, "pass"), ("b", 3, "not_applicable"), ("c", 3, "pass"))
    assert report.verdict.startswith("conforms, 1 of 2 crash clauses not applicable")


def test_the_first_opening_is_not_interrupted_in_its_imports() -> None:
    """A module that is cut off in the middle stays half imported, and all clauses after it would fail for that."""
    ended = []

    async def opens() -> None:
        time.sleep(0.05)  # noqa: ASYNC251 - as an import that takes long, it lets nobody go on
        ended.append(True)
        await anyio.lowlevel.checkpoint()

    with pytest.raises(MissedDeadline, match="didn't end within"):
        suite._run(opens, 0.0, grace_s=suite._IMPORT_S)
    assert ended


@pytest.mark.parametrize(
    "error",
    [
        FullError("it has no room"),
        InvalidRequestError("the entry is too large"),
        AssertionError(
            "the child process failed: Traceback...\npenstock.errors.InvalidRequestError: too large"
        ),
    ],
)
def test_a_clause_that_meets_the_limits_of_a_tiny_log_accuses_nobody(error: Exception) -> None:
    """No contract says how much a log takes; of one that takes what clauses append they are errors."""

    async def appends(_: object) -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    for limits, is_tiny in (((1 << 19, 1 << 20), True), ((0, 4096), True), ((1 << 20, 1 << 14), False)):
        report = _report_of(("a", 1, ""))
        report.capacity_bytes, report.capabilities = limits[0], {"entry_bytes_max": limits[1]}
        (result,) = report.clauses
        surroundings: Any = SimpleNamespace(target=report.target)
        with contextlib.nullcontext() if is_tiny else pytest.raises(type(error)):
            suite._run_clause(appends, surroundings, Clause(), result, report)
        assert result.outcome == ("not_applicable" if is_tiny else "")


def test_missed_deadline_is_named_in_the_verdict() -> None:
    """Neither proved nor broken: which clause it was."""
    report = _report_of(("a", 1, "pass"), ("b", 1, "deadline"))
    assert report.result == "undecided"
    assert report.verdict.startswith("undecided: 1 clause missed its deadline (b)")


def test_clause_that_broke_off_is_named_in_the_verdict() -> None:
    """What isn't under test ended it: nothing is proved, nobody is accused."""
    report = _report_of(("a", 1, "pass"), ("b", 1, "undecided"))
    assert report.result == "undecided"
    assert report.verdict.startswith("undecided: 1 clause broke off (b)")


def test_failure_goes_before_a_missed_deadline() -> None:
    """What is broken is broken, whatever else wasn't decided."""
    report = _report_of(("a", 1, "pass"), ("b", 1, "fail"), ("c", 1, "deadline"))
    assert report.result == "fail"
    assert report.verdict.startswith("does not conform: 1 clause fails (b)")


def test_nothing_proved_is_no_conformity() -> None:
    """Clauses that can't be tried prove nothing."""
    report = _report_of(("a", 1, "not_applicable"))
    assert not report.passed
    assert report.verdict.startswith("undecided: no clause proved anything")


def _report_of(*clauses: tuple[str, int, str]) -> Report:
    target = Target(kind="log_cache", plugin="reference", modules=("penstock_conformance.reference",))
    report = Report(target, target.info(target.registry()))
    for name, level, outcome in clauses:
        report.add(ClauseResult(name=name, rule="", level=level, capability="", outcome=outcome))
    return report


def test_bare_assertion_says_what_was_expected(tmp_path: Path, plugins_dir: Path) -> None:
    """An assertion without words tells its own text, and the values."""
    done, report = _run(
        tmp_path,
        *("partitioner", "--plugin", "mutant", "-p", "penstock_conformance.mutants"),
        *("--set", "defect=moves_keys_with_the_load", "-k", "news_move_no_key", "--deadline", str(HANG_S)),
    )
    assert done.returncode == 1
    assert report["clauses"][0]["detail"].startswith("expected [partitioner.choose(")


def test_suite_runs_under_a_foreign_pytest(tmp_path: Path) -> None:
    """The importable way in, in any order, from any directory, beside a project's own settings."""
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = '-q'\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "penstock_conformance.plugin"),
            *("--pyargs", "penstock_conformance", "--penstock-kind=log_cache", "--penstock-plugin=reference"),
            *("--penstock-module=penstock_conformance.reference", "--penstock-report=out.json"),
            f"--penstock-deadline={HANG_S / 3}",
        ],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["counts"] == {
        "pass": len(clause_names("log_cache"))
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nonsense", "--plugin", "x"), "choose from"),
        (("wal", "--plugin", "wal_blok"), "wal_block"),
        (("wal", "--plugin", "wal_block", "--set", "capacty=4MiB"), "capacity"),
        (("wal", "--plugin", "wal_block", "--set", "capacity"), "key=value"),
        (("partitioner", "--plugin", "partitioner", "-k", "no_such_clause"), "no clause is selected"),
        (("partitioner", "--plugin", "partitioner", "--report", "/proc/none/x"), "path=/proc/none"),
        (
            ("partitioner", "--plugin", "partitioner", "--report", "/proc"),
            "a new file, or one to write over: path=/proc",
        ),
        (("partitioner", "--plugin", "partitioner", "--work-dir", "/proc/none"), "path=/proc/none"),
    ],
)
def test_mistakes_of_the_user_are_one_sentence(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and a sentence that names what is wrong."""
    if "no_such_clause" in arguments:
        done = penstock("conformance", "run", *arguments)
        code, text = done.returncode, done.stderr
    else:
        code, text = main(["conformance", "run", *arguments]), capsys.readouterr().err
    assert code == 2
    assert words in text
    assert "Traceback" not in text


def test_every_clause_says_its_rule() -> None:
    """One module per kind; each clause is a coroutine with a docstring, and its name is unique in its kind."""
    for kind in KINDS:
        bodies = [node for path in clause_files(kind) for node in ast.parse(path.read_text()).body]
        functions = [node for node in bodies if isinstance(node, ast.AsyncFunctionDef)]
        clauses = [node for node in functions if node.name.startswith("test_")]
        assert len(clauses) >= 10, f"few clauses: kind={kind}"
        assert len({node.name for node in clauses}) == len(clauses)
        for node in clauses:
            assert ast.get_docstring(node), f"a clause without its rule: {kind} {node.name}"


def test_mutants_name_clauses_that_exist() -> None:
    """A renamed clause can't leave a mutant behind."""
    for mutant in MUTANTS.values():
        for name in mutant.caught_by:
            assert name in clause_names(mutant.kind), f"no such clause: {mutant.kind} {name}"


def test_every_clause_catches_a_mutant() -> None:
    """A clause that can't fail proves nothing."""
    # These need other claims than the mutants make; test_unclaimed_capabilities_... is the proof of their like.
    exempt = {
        "unclaimed_put_if_absent_is_refused",
        "unclaimed_compare_and_swap_is_refused",
        "unclaimed_append_is_refused",
    }
    exempt |= {
        "unclaimed_multipart_is_refused",
        "unclaimed_start_of_a_listing_is_refused",
        "unclaimed_seal_is_refused",
        "unclaimed_readahead_is_zero",
    }
    exempt |= {"news_of_others_arrive", "maintenance_that_is_not_claimed_is_refused"}
    for kind in KINDS:
        clauses = set(clause_names(kind))
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


_ONE_FOR_ALL = """
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from penstock.hookspecs import hookimpl
from penstock.spi import Settings as BaseSettings
from penstock_conformance.reference import _wal

plain = _wal.penstock_register_wal()

class Settings(BaseSettings):
    place: str
    name: str = "{services.cluster_id}"
    login: str = Field(default="", json_schema_extra={"secret": True})

@asynccontextmanager
async def open_wal(settings, services):
    place = Path(settings.place) / settings.name.format(services=services).strip("/")
    place.mkdir(exist_ok=True, parents=True)
    async with plain.open(plain.settings(), replace(services, data_dir=place)) as wal:
        yield wal

@hookimpl
def penstock_register_wal():
    capabilities = replace(plain.capabilities, identity=False)
    return replace(plain, name="one_for_all", settings=Settings, open=open_wal, capabilities=capabilities,
                   identify=None, read=None, describe=None)
"""


@pytest.mark.parametrize("name", ["always the same", "{services.cluster_id}"])
def test_a_log_that_is_one_for_all_clauses_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    """A log that isn't in the data directory is named after its cluster, or by a setting with {dir}."""
    (tmp_path / "one_for_all.py").write_text(_ONE_FOR_ALL)
    done, report = _run(
        tmp_path,
        *("wal", "--plugin", "one_for_all", "--plugins-dir", str(tmp_path), "-k", "new_log or describing"),
        *("--set", f"place={tmp_path}", "--set", f"name={name}", "--set", "login=sesame"),
    )
    if name == "always the same":
        assert done.returncode == 2
        assert "put {dir} into the setting that says where it is" in done.stderr
        return
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 clause not applicable: the plugin can't describe a log from outside" in done.stdout
    # what a plugin marks as secret is in no report
    assert "sesame" not in json.dumps(report)
    assert report["settings"]["login"] == report["effective_settings"]["login"] == "***"


def test_a_script_without_a_guard_runs_the_suite_once(tmp_path: Path) -> None:
    """Child processes don't run the script that runs the suite, as multiprocessing does unless it is guarded."""
    script = tmp_path / "prove.py"
    script.write_text(
        "from penstock_conformance import Target, run\n"
        'target = Target(kind="object_store", plugin="reference", modules=("penstock_conformance.reference",))\n'
        'print(run(target, select="objects_outlive_the_opener").result)\n'
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert done.stdout.splitlines() == ["pass"], done.stdout + done.stderr
