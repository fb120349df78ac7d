"""How the sizes of the log follow from its settings, and what they must leave to each other. Pure."""

from __future__ import annotations

__all__ = ("LogSizes", "plugin_sizes")

from dataclasses import dataclass
from fractions import Fraction

from penstock.spi import PluginSizes, SettingSize
from penstock_wal_block._format import BLOCK_BYTES, area_bytes
from penstock_wal_block._settings import Settings
from penstock_wal_block._stripe import STRIPE_BYTES

#: An entry or a group is at most this part of the ring, so that one never waits for all others to be trimmed.
_RING_PART = 4
#: In a shared log each take-over leaves alone for a while what was on its way, which is of that size.
_SHARED_RING_PART = 16
#: Larger pieces are hardly written faster.
_BUFFER_BYTES_MIN = 2**20
#: Each device of a striped log has two buffers for each thread: for what the thread writes itself, and for what
#: others write for it at the same time.
_MEMBER_BUFFER_BYTES_MIN = 2**18
#: Framing and fillers of a group that holds one largest entry: a group header, an entry header, a page of filler
#: before the entry, and what aligns the end.
_FRAMING_BYTES = 4 * BLOCK_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSizes:
    """The sizes of an open log, in bytes."""

    #: What groups are written to: the capacity without the header area, in whole blocks.
    ring: int
    group: int
    entry: int
    #: From the oldest group in flight to the end of the newest; no group begins beyond it.
    span: int
    #: Recovery looks so far past a hole for a group that proves a loss.
    window: int
    #: The bounce buffer of each writer thread, and of all.
    buffer: int
    buffers: int

    @classmethod
    def of(cls, settings: Settings) -> LogSizes:
        """What ``settings`` come to."""
        count = max(1, len(settings.paths))
        unit = STRIPE_BYTES if settings.paths else BLOCK_BYTES
        ring = (settings.capacity // count - area_bytes(shared=settings.shared)) // unit * unit * count
        part = ring // ring_part(settings)
        entry = min(settings.entry_bytes_max, part)
        group = min(settings.group_bytes_max, part) // BLOCK_BYTES * BLOCK_BYTES
        share = group // settings.groups_in_flight_max // BLOCK_BYTES * BLOCK_BYTES
        buffer = min(group, max(share, _BUFFER_BYTES_MIN))
        if settings.paths:
            buffer = max(buffer, 2 * count * _MEMBER_BUFFER_BYTES_MIN)
        span = max(group, entry)
        return cls(
            ring=ring,
            group=group,
            entry=entry,
            span=span,
            window=span + _FRAMING_BYTES,
            buffer=buffer,
            buffers=settings.groups_in_flight_max * buffer,
        )

    def __post_init__(self) -> None:
        assert 0 < self.group <= self.ring // _RING_PART, "several groups fit the ring"
        assert self.group % BLOCK_BYTES == self.buffer % BLOCK_BYTES == 0, "direct writes are of whole blocks"
        assert 0 < self.entry <= self.ring // _RING_PART, "several entries fit the ring"
        assert self.window >= self.span + _FRAMING_BYTES, (
            "a group that begins when a missing one is confirmed is behind what was in flight, and in the window"
        )
        assert self.window <= self.ring // 2, (
            "the window doesn't lead around the ring to the groups before the hole"
        )


def ring_part(settings: Settings) -> int:
    """The largest group is the ring divided by this."""
    return _SHARED_RING_PART if settings.shared else _RING_PART


def plugin_sizes(settings: Settings) -> PluginSizes:
    """See ``PluginSpec.sizes``."""
    sizes = LogSizes.of(settings)
    if sizes.entry < settings.entry_bytes_max:
        entry = SettingSize(sizes.entry, "capacity", Fraction(ring_part(settings)))
    else:
        entry = SettingSize(sizes.entry, "entry_bytes_max")
    if sizes.buffers <= sizes.group:
        memory = SettingSize(sizes.buffers, "group_bytes_max")
    else:
        memory = SettingSize(sizes.buffers, "groups_in_flight_max", Fraction(1, sizes.buffer))
    return PluginSizes(entry=entry, memory=memory)
