"""Packages of plugins that tests write: what installing them would do, and what their own tests say."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from tests.keeper import in_memory
from tests.patience import HANG_S


def tell_python(place: Path) -> None:
    """What ``pip install -e`` would tell Python of a package; with the folder on its path it is installed."""
    project = tomllib.loads((place / "pyproject.toml").read_text())["project"]
    told = place / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    entry_points = project["entry-points"]["penstock.plugins"].items()
    lines = ["[penstock.plugins]", *(f"{name} = {module}" for name, module in entry_points)]
    (told / "entry_points.txt").write_text("\n".join(lines) + "\n")


def results_of(packages: Sequence[Path], *arguments: str) -> dict[str, str]:
    """What each test of the packages said, by ``FOLDER.tests.MODULE.NAME``; empty if it passed."""
    folder = packages[0].parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, packages))}
    if memory := in_memory():  # clauses sync thousands of small files, which takes a tenth of the time there
        environment["TMPDIR"] = str(memory)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", str(folder)),
            *("--import-mode=importlib", "-p", "no:cacheprovider", f"--basetemp={folder / 'tmp'}"),
            *(f"--junit-xml={folder / 'results.xml'}", *(str(package / "tests") for package in packages)),
            *arguments,
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
