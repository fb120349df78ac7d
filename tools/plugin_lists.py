"""Brings the lists of plugins in pyproject.toml up to date, for mypy and import-linter, which know no patterns.

Run it after a folder under plugins/ has come or gone; with ``--check`` it changes nothing, and its exit code is 1 if
something would change. The build needs no list: hatch_build.py looks at the folders.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "pyproject.toml"
#: The entries in front of the plugins, where a list has any, stay; each run of lines like these is written anew.
_RUNS = (
    (re.compile(r'(?:    "\$MYPY_CONFIG_FILE_DIR/plugins/\w+",\n)+'), "$MYPY_CONFIG_FILE_DIR/plugins/{}"),
    (re.compile(r'(?:    "penstock_(?!conformance"|tools")\w+",\n)+'), "penstock_{}"),
)


def plugins(root: Path) -> list[str]:
    """The names of the plugins in the tree."""
    return sorted(path.parts[-3] for path in root.glob("plugins/*/penstock_*/__init__.py"))


def up_to_date(text: str, names: list[str]) -> str:
    """``text``, a pyproject.toml, with every list of plugins as it ought to be."""
    for run, entry in _RUNS:
        lines = "".join(f'    "{entry.format(name)}",\n' for name in names)
        text = run.sub(lambda _, lines=lines: lines, text)  # type: ignore[misc]
    return text


def main() -> int:
    """Write, or check; the exit code."""
    text = PROJECT.read_text()
    wanted = up_to_date(text, plugins(ROOT))
    if text != wanted and "--check" not in sys.argv:
        PROJECT.write_text(wanted)
    return int(text != wanted and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
