"""Metadata: a log of small commands, folded by a deterministic state machine into the image.

``commands`` has a class for each thing that can happen, with its fold. ``image`` is what they make, a table per
domain (``nodes``, ``topics``, ``streams``, ``objects``, ``producer_ids``), and ``deltas`` says what an entry
changed in it; all of that is pure. ``service`` owns the log: it batches commands into entries, appends them by
compare-and-append, and keeps the image current.
"""

from __future__ import annotations
