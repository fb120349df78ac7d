"""The default run and the full one (``tests/depth.py``)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.depth import NUMBERS
from tests.patience import HANG_S

REPOSITORY = Path(__file__).parents[2]
_TESTS = """
from pathlib import Path

import pytest
from tests.depth import how_many, in_full

@pytest.mark.parametrize("variant", ["one", *in_full("two", "three")])
def test_it(variant: str) -> None:
    print("tried", variant, how_many("fuzz_cases"), how_many("wal_lives"))
"""


def test_every_number_is_used_and_the_full_run_has_no_smaller_one() -> None:
    sources = [*REPOSITORY.glob("tests/**/*.py"), *REPOSITORY.glob("plugins/*/tests/*.py")]
    text = "".join(path.read_text(encoding="utf-8") for path in sources if path.name != Path(__file__).name)
    assert set(re.findall(r'\b(?:how_many|seeds)\("(\w+)"\)', text)) == set(NUMBERS)
    assert all(0 < default <= full for default, full in NUMBERS.values())


@pytest.mark.parametrize(
    ("options", "tried", "told"),
    [
        (["--depth", "fuzz_cases=7", "-n1"], ["one"], "2 repeats were left out; --full runs them, too"),
        (["--full"], ["one", "two", "three"], "depth: full"),
    ],
)
def test_a_run_tells_what_it_leaves_out(
    options: list[str], tried: list[str], told: str, tmp_path: Path
) -> None:
    (tmp_path / "test_it.py").write_text(_TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-rP",
        "-W",
        "ignore",
        "-c",
        str(REPOSITORY / "pyproject.toml"),
    ]
    done = subprocess.run(
        [*command, "--rootdir", str(REPOSITORY), "-p", "tests.run", *options, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    fuzz_cases, wal_lives = (NUMBERS[name]["--full" in options] for name in ("fuzz_cases", "wal_lives"))
    if "--depth" in options:
        fuzz_cases = 7
    found = [line for line in done.stdout.splitlines() if line.startswith("tried")]
    assert found == [f"tried {variant} {fuzz_cases} {wal_lives}" for variant in tried]
    assert told in done.stdout
