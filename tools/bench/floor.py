"""Penstock against the floor: ``python tools/bench/floor.py`` is ``penstock bench floor``.

The code is in ``penstock_tools.bench.floor``, so that an installed Penstock has it too; its names can be imported
from here by the other programs of this folder.
"""

from __future__ import annotations

__all__ = (
    "CASES",
    "RECORD_BYTES",
    "TOPIC",
    "VERSION",
    "Load",
    "Result",
    "compare",
    "create_topic",
    "floor_process",
    "measure",
    "penstock_process",
    "produce_frame",
    "produce_response",
    "serve_floor",
)

import sys

from penstock_tools.bench.floor import (
    CASES,
    RECORD_BYTES,
    TOPIC,
    VERSION,
    Load,
    Result,
    compare,
    create_topic,
    floor_process,
    measure,
    penstock_process,
    produce_frame,
    produce_response,
    serve_floor,
)
from penstock_tools.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", "floor", *sys.argv[1:]]))
