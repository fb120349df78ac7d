"""What ``penstock plugin new`` writes works as it is: its own tests pass, and with them level 1 of its contract."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from tests.patience import HANG_S

from penstock_tools.scaffold import KINDS, write_package

#: The clauses of level 1 sync thousands of small files; where they are in memory that takes a tenth of the time.
_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each test of each package said, by the test's class name and name; one run of pytest for all."""
    folder = tmp_path_factory.mktemp("packages")
    for kind in KINDS:
        _install(kind, f"my_{kind}", folder / kind)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(folder / kind) for kind in KINDS)}
    if _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK):
        environment["TMPDIR"] = str(_MEMORY)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(folder)),
            *("--import-mode=importlib", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}"),
            *(f"--junit-xml={folder / 'results.xml'}", *(str(folder / kind / "tests") for kind in KINDS)),
        ],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert (folder / "results.xml").is_file(), done.stdout + done.stderr
    cases = ElementTree.parse(folder / "results.xml").iter("testcase")
    return {
        f"{case.get('classname')}.{case.get('name')}": "\n".join(part.text or part.tag for part in case)
        for case in cases
    }


def _install(kind: str, name: str, place: Path) -> None:
    """Write the package, and what ``pip install -e`` would tell Python of it."""
    write_package(kind, name, place)
    project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
    told = place / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    entry_points = project["entry-points"]["penstock.plugins"].items()
    lines = ["[penstock.plugins]", *(f"{name} = {module}" for name, module in entry_points)]
    (told / "entry_points.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_its_tests_and_level_1(kind: str, outcomes: dict[str, str]) -> None:
    mine = {name: fault for name, fault in outcomes.items() if name.startswith(f"{kind}.tests.")}
    assert [f"{name}: {fault}" for name, fault in mine.items() if fault] == []
    assert len(mine) >= 2
    of_contract = f"{kind}.tests.test_conformance.test_level_1_of_the_contract_holds"
    assert (of_contract in mine) == (kind != "observer")
