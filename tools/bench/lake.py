"""The lake beside producing: ``python tools/bench/lake.py`` is ``penstock bench lake``.

The code is in ``penstock_tools.bench.lake``.
"""

from __future__ import annotations

import sys

from penstock_tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "lake", *sys.argv[1:]]))
