"""Catch-up reads beside producing: ``python tools/bench/cold_reads.py`` is ``penstock bench cold-reads``.

The code is in ``penstock_tools.bench.cold_reads``.
"""

from __future__ import annotations

import sys

from penstock_tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "cold-reads", *sys.argv[1:]]))
