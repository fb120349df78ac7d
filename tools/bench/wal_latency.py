"""A log in a store that answers late: ``python tools/bench/wal_latency.py`` is ``penstock bench wal-latency``.

The code is in ``penstock_tools.bench.wal_latency``.
"""

from __future__ import annotations

import sys

from penstock_tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "wal-latency", *sys.argv[1:]]))
