"""How a good client fares beside each attack: ``python tools/bench/attacks.py``.

The code is in ``penstock_tools.bench.attacks``.
"""

from __future__ import annotations

import sys

from penstock_tools.bench.attacks import main

if __name__ == "__main__":
    sys.exit(main())
