"""Records to Arrow: what a topic's keys and values are, decoded column by column."""

from __future__ import annotations

__all__ = (
    "Change",
    "Comparison",
    "DebeziumDecoder",
    "DecodeSettings",
    "FORMATS",
    "Conflict",
    "Conformed",
    "Decoded",
    "Decoder",
    "Failure",
    "Fitter",
    "JsonDecoder",
    "Limits",
    "OperationDecoder",
    "Outage",
    "PlainDecoder",
    "Schema",
    "SchemaRegistry",
    "TooManyError",
    "compare",
    "conform",
    "fault_of",
    "null_bytes",
    "open_decoder",
    "panics_caught",
    "plain",
)

from penstock_iceberg_compactor.decode._arrow import null_bytes, plain
from penstock_iceberg_compactor.decode._decoder import (
    Decoded,
    Decoder,
    Failure,
    PlainDecoder,
    TooManyError,
    panics_caught,
)
from penstock_iceberg_compactor.decode._json import JsonDecoder
from penstock_iceberg_compactor.decode._shapes import Fitter, Limits
from penstock_iceberg_compactor.decode.changes import DebeziumDecoder, OperationDecoder
from penstock_iceberg_compactor.decode.evolution import (
    Change,
    Comparison,
    Conflict,
    Conformed,
    compare,
    conform,
)
from penstock_iceberg_compactor.decode.registry import Outage, Schema, SchemaRegistry
from penstock_iceberg_compactor.decode.settings import FORMATS, DecodeSettings, fault_of, open_decoder
