"""Self-describing bytes: what was written can be told whole from torn, and newer from older."""

from __future__ import annotations

__all__ = ("Label", "check_body", "make_body")

import random
import struct
from typing import NamedTuple

from crc32c import crc32c

from penstock.spi.plugin import Buffer

_HEAD = struct.Struct(">4sQQII")
_MAGIC = b"PCBY"


class Label(NamedTuple):
    """Who wrote it, and the how-manieth it was."""

    owner: int
    sequence: int


def make_body(owner: int, sequence: int, size: int) -> bytes:
    """``size`` bytes, at least 28, that no other owner and sequence has."""
    fill = random.Random(f"{owner}/{sequence}").randbytes(max(0, size - _HEAD.size))
    return _HEAD.pack(_MAGIC, owner, sequence, len(fill), crc32c(fill)) + fill


def check_body(data: Buffer) -> Label:
    """The label of a body that is whole; anything else breaks the clause."""
    raw = bytes(data)
    assert len(raw) >= _HEAD.size, f"bytes are missing: got {len(raw)}"
    magic, owner, sequence, length, crc = _HEAD.unpack_from(raw)
    fill = raw[_HEAD.size :]
    assert magic == _MAGIC, "these bytes were never written"
    assert len(fill) == length, f"not whole: {len(fill)} of {length} bytes of sequence={sequence}"
    assert crc32c(fill) == crc, f"bytes are a mixture or damaged: sequence={sequence}"
    return Label(owner, sequence)
