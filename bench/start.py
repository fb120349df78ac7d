"""Start time: ``python bench/start.py`` is ``penstock bench start``; the code is in ``penstock.bench.start``."""

from __future__ import annotations

import sys

from penstock.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "start", *sys.argv[1:]]))
