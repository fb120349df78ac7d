"""Where positions of the log are in the ring, around what an earlier owner may still write to. Pure.

A write that was on its way when its owner lost the log lands whenever it likes: nothing on a plain device stops it.
So a successor that can't tell whether the old owner is gone leaves alone what that one's groups in flight may reach
(a *zone*), and goes on behind it, lap after lap. Positions have no gap for that; only their places have.
"""

from __future__ import annotations

__all__ = ("RingMap", "Section", "Zone")

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class Zone(NamedTuple):
    """Bytes of the ring that nothing is written to any more."""

    offset: int
    length: int
    #: Of the owner that left it alone when it took over.
    epoch: int


class Section(NamedTuple):
    """Positions from ``position`` on are around the zones ``first`` to ``last``, without it."""

    position: int
    #: Where that position is, counted over the bytes of the ring outside of those zones.
    at: int
    first: int
    last: int


class _Arc(NamedTuple):
    """A run of usable bytes."""

    at: int
    offset: int
    length: int


@dataclass(frozen=True, eq=False)
class RingMap:
    """Positions to offsets in a ring of ``ring_bytes``; zones and sections in the order in which they came."""

    ring_bytes: int
    zones: tuple[Zone, ...] = ()
    sections: tuple[Section, ...] = (Section(0, 0, 0, 0),)
    _arcs: tuple[tuple[_Arc, ...], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        arcs = (_arcs(self.ring_bytes, self.zones[one.first : one.last]) for one in self.sections)
        object.__setattr__(self, "_arcs", tuple(arcs))

    @property
    def usable_bytes(self) -> int:
        """What is written from now on goes around so many bytes."""
        return _size(self._arcs[-1])

    @property
    def room_bytes(self) -> int:
        """How much there is room for from the start of the log on.

        A zone that is used again isn't as long as the log leads around it.
        """
        around = min(section.first for section in self.sections)
        return self.usable_bytes - sum(zone.length for zone in self.zones[around : self.sections[-1].first])

    def pieces(self, position: int, length: int) -> list[tuple[int, int]]:
        """Where ``length`` bytes from ``position`` on are: offset in the ring and length of each piece, in order."""
        if not self.zones and len(self.sections) == 1:  # as most logs are, on each group
            offset = (self.sections[0].at + position - self.sections[0].position) % self.ring_bytes
            if offset + length <= self.ring_bytes:
                return [(offset, length)]
        pieces: list[tuple[int, int]] = []
        while length > 0:
            number = max(0, bisect_right(self.sections, position, key=_position_of) - 1)
            section, arcs = self.sections[number], self._arcs[number]
            part = length
            if number + 1 < len(self.sections):
                part = min(length, self.sections[number + 1].position - position)
            index = (section.at + position - section.position) % _size(arcs)
            arc = arcs[bisect_right(arcs, index, key=_at_of) - 1]
            part = min(part, arc.at + arc.length - index)
            pieces.append((arc.offset + index - arc.at, part))
            position += part
            length -= part
        return pieces

    def around(self, first: int, end: int, last: int, *, epoch: int, kept: int) -> RingMap:
        """Whoever comes back may write [``first``, ``last``): the log goes on from ``end`` behind all that.

        Of what was left alone before, that of the last ``kept`` take-overs is.
        """
        zones = (*self.zones, *(Zone(*piece, epoch) for piece in self.pieces(first, last - first)))
        old = self.sections[-1]
        epochs = sorted({zone.epoch for zone in self.zones[old.first : old.last]})[-kept:]
        begin = next((n for n, zone in enumerate(zones) if n >= old.first and zone.epoch in epochs), old.last)
        place = self.pieces(last, 1)[0][0]
        index = _at_outside(self.ring_bytes, zones[begin:], place)
        sections = (one for one in self.sections if one.position < end)
        return replace(self, zones=zones, sections=(*sections, Section(end, index, begin, len(zones))))

    def trimmed(self, start: int) -> RingMap:
        """Without what no position from ``start`` on needs."""
        kept = max(0, bisect_right(self.sections, start, key=_position_of) - 1)
        if not kept:
            return self
        sections = self.sections[kept:]
        gone = min(section.first for section in sections)
        return replace(
            self,
            zones=self.zones[gone:],
            sections=tuple(one._replace(first=one.first - gone, last=one.last - gone) for one in sections),
        )


def _position_of(section: Section) -> int:
    return section.position


def _at_of(arc: _Arc) -> int:
    return arc.at


def _size(arcs: tuple[_Arc, ...]) -> int:
    return arcs[-1].at + arcs[-1].length


def _arcs(ring_bytes: int, zones: tuple[Zone, ...]) -> tuple[_Arc, ...]:
    arcs: list[_Arc] = []
    at = index = 0
    for zone in (*sorted(zones), Zone(ring_bytes, 0, 0)):
        if zone.offset > at:
            arcs.append(_Arc(index, at, zone.offset - at))
            index += zone.offset - at
        at = max(at, zone.offset + zone.length)
    assert arcs, "zones leave room in the ring"
    return tuple(arcs)


def _at_outside(ring_bytes: int, zones: tuple[Zone, ...], offset: int) -> int:
    for arc in _arcs(ring_bytes, zones):
        if arc.offset <= offset < arc.offset + arc.length:
            return arc.at + offset - arc.offset
    raise AssertionError("the log goes on outside of all zones")
