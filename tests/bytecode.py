"""Compiled modules of a run that may not write them beside their sources: each is compiled once, or was already.

With ``PYTHONPYCACHEPREFIX`` Python looks for all of them below one directory, also for those that were compiled as a
package was installed. These are lent to it; what is missing or outdated is compiled there when it is imported.
"""

from __future__ import annotations

__all__ = ("lend_compiled",)

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path


def lend_compiled(prefix: Path, folders: Iterable[str]) -> None:
    """Have what is compiled beside the sources in ``folders`` be found below ``prefix``.

    By links: what Python writes takes a link's place, and never goes to where it leads.
    """
    tag = f".{sys.implementation.cache_tag}.pyc"
    for folder in folders:
        for place, _, files in os.walk(folder):
            if not place.endswith("__pycache__"):
                continue
            lent = Path(f"{prefix}{os.path.dirname(place)}")
            lent.mkdir(parents=True, exist_ok=True)
            for name in files:
                if name.endswith(tag):
                    with contextlib.suppress(FileExistsError):  # two folders may be one
                        os.symlink(f"{place}/{name}", f"{lent}/{name}")
