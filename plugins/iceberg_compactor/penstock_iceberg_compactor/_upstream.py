"""What pyiceberg gets wrong and has mended since its last release, put right in its own classes until then."""

from __future__ import annotations

__all__ = ("read_whole_doubles",)

from typing import Any, cast

from pyiceberg.avro import STRUCT_DOUBLE
from pyiceberg.avro.reader import DoubleReader


def read_whole_doubles() -> None:
    """Doubles of manifests, which are values of partitions, with all their bits.

    pyiceberg's compiled decoder rounds them to 32 bits: 0.1 is another number then, 1e300 infinite. It looks for
    partitions by that, and writes it where it writes a manifest again, after which no reader finds these rows.
    Mended by https://github.com/apache/iceberg-python/pull/3808, after 0.12.0.
    """
    setattr(DoubleReader, "read", _whole_double)  # noqa: B010 - mypy knows no assignment to a method


def _whole_double(_reader: DoubleReader, decoder: Any) -> float:
    return cast(float, STRUCT_DOUBLE.unpack(decoder.read(STRUCT_DOUBLE.size))[0])
