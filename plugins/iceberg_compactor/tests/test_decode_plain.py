"""Keys and values as they are, and as text."""

from __future__ import annotations

from array import array

import pyarrow as pa
from penstock_iceberg_compactor.decode import PlainDecoder

from penstock.spi.lake import BinaryColumn


def _column(*items: bytes | None) -> BinaryColumn:
    ends = [0]
    for item in items:
        ends.append(ends[-1] + len(item or b""))
    valid = sum((item is not None) << at for at, item in enumerate(items))
    return BinaryColumn(
        b"".join(item or b"" for item in items),
        memoryview(array("i", ends)),
        valid.to_bytes(len(items) // 8 + 1, "little") if None in items else None,
    )


def test_raw_is_every_byte_as_it_is() -> None:
    decoded = PlainDecoder().decode(_column(b"\xff", None, b""))
    assert decoded.rows.equals(pa.array([b"\xff", None, b""], pa.binary()))
    assert decoded.indices.to_pylist() == [0, 1, 2]


def test_string_fails_where_it_isnt_utf_8() -> None:
    items = [f"é{number}".encode() for number in range(100)]
    items[40] = b"a\xff"
    decoded = PlainDecoder(text=True).decode(_column(*items, None))
    assert [(one.index, one.reason) for one in decoded.failures] == [(40, "it is no utf-8, from byte 1 on")]
    assert decoded.rows.type == pa.string()
    assert decoded.rows.to_pylist() == [f"é{number}" for number in range(100) if number != 40] + [None]


def test_no_records_are_no_rows() -> None:
    assert len(PlainDecoder(text=True).decode(_column()).rows) == 0
    assert len(PlainDecoder().decode(_column()).rows) == 0
