"""Start time: ``python tools/bench/start.py`` is ``penstock bench start``, of ``penstock_tools.bench.start``."""

from __future__ import annotations

import sys

from penstock_tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "start", *sys.argv[1:]]))
