"""Uploads beside producing: ``python tools/bench/uploads.py`` is ``penstock bench uploads``.

The code is in ``penstock_tools.bench.uploads``.
"""

from __future__ import annotations

import sys

from penstock_tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "uploads", *sys.argv[1:]]))
