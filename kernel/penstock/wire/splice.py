"""Responses with an array that is encoded in pieces, since it takes long, or is the same again and again."""

from __future__ import annotations

__all__ = ("ArraySplice", "EncodedBody")

from collections.abc import Iterable

import msgspec

from penstock.wire._runtime import Buffer, encode_uvarint


class EncodedBody(msgspec.Struct):
    """A response's body that is encoded already, as buffers that follow each other."""

    buffers: list[Buffer]
    #: Whether the first buffer begins with ``throttle_time_ms``.
    starts_with_throttle: bool = False

    def throttled(self, throttle_ms: int) -> EncodedBody:
        """A body that also says for how long its client is throttled, if it has a place for that."""
        if not self.starts_with_throttle:
            return self
        first = throttle_ms.to_bytes(4, "big") + self.buffers[0][4:]
        return EncodedBody([first, *self.buffers[1:]], self.starts_with_throttle)


class ArraySplice:
    """The place of an array in encoded bytes, so that its elements can be exchanged without encoding the rest again.

    Made from two encodings that differ in nothing but the array: without an element (``empty``), and with one.
    The first byte that differs is then the last one of the array's count, whatever comes before and after it.
    ``flexible`` says how the count is written: as an unsigned varint of one more (KIP-482), or as an int32.
    """

    __slots__ = ("_flexible", "_head", "_tail")

    def __init__(self, empty: bytes, one: bytes, *, flexible: bool) -> None:
        after = 1 + next(i for i, (a, b) in enumerate(zip(empty, one, strict=False)) if a != b)
        self._flexible = flexible
        self._head = empty[: after - (1 if flexible else 4)]
        self._tail = empty[after:]

    def _count(self, count: int) -> bytes:
        if not self._flexible:
            return count.to_bytes(4, "big")
        encoded = bytearray()
        encode_uvarint(encoded, count + 1)
        return bytes(encoded)

    def elements(self, encoded: bytes, count: int) -> bytes:
        """The bytes of the ``count`` elements in an encoding that differs only in the array."""
        return encoded[len(self._head) + len(self._count(count)) : len(encoded) - len(self._tail)]

    def around(self, empty: bytes, count: int) -> tuple[bytes, bytes]:
        """The bytes before and behind ``count`` elements that are to be added to ``empty``.

        That is an encoding without elements, which may differ from those that this was made of in front of the array.
        """
        return empty[: len(empty) - len(self._tail) - len(self._count(0))] + self._count(count), self._tail

    def join(self, count: int, elements: Iterable[bytes]) -> list[bytes]:
        """An encoding with ``count`` elements; ``elements`` has them in as many pieces as you like."""
        return [self._head, self._count(count), *elements, self._tail]
