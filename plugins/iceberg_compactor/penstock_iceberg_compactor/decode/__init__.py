"""Records to Arrow: what a topic's keys and values are, decoded column by column."""

from __future__ import annotations

__all__ = (
    "Change",
    "Comparison",
    "Conflict",
    "Conformed",
    "Decoded",
    "Decoder",
    "Failure",
    "Fitter",
    "JsonDecoder",
    "Limits",
    "PlainDecoder",
    "compare",
    "conform",
    "plain",
)

from penstock_iceberg_compactor.decode._arrow import plain
from penstock_iceberg_compactor.decode._decoder import Decoded, Decoder, Failure, PlainDecoder
from penstock_iceberg_compactor.decode._json import JsonDecoder
from penstock_iceberg_compactor.decode._shapes import Fitter, Limits
from penstock_iceberg_compactor.decode.evolution import (
    Change,
    Comparison,
    Conflict,
    Conformed,
    compare,
    conform,
)
