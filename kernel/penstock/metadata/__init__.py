"""Metadata: a log of small commands, folded by a deterministic state machine into the image.

``commands`` says what can happen, ``image`` folds it (pure), ``service`` owns the log: it batches commands
into entries, appends them by compare-and-append, and keeps the image current.
"""

from __future__ import annotations
