"""How a good client fares beside each attack: ``python bench/attacks.py``.

The code is in ``penstock.bench.attacks``.
"""

from __future__ import annotations

import sys

from penstock.bench.attacks import main

if __name__ == "__main__":
    sys.exit(main())
