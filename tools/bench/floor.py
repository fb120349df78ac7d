"""Penstock against the floor: ``python tools/bench/floor.py`` is ``penstock bench floor``.

The code is in ``penstock_tools.bench.floor``.
"""

from __future__ import annotations

import sys

from penstock_tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "floor", *sys.argv[1:]]))
