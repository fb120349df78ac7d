"""Metadata log: a numbered sequence of small entries, appended by compare-and-append, with snapshots.

Indexes start at 1, have no gap and fit into 63 bits. An entry, once appended, never changes; it may vanish only below
a snapshot. Compare-and-append is what fences a deposed writer: whoever appends at an index first, wins.
"""

from __future__ import annotations

__all__ = (
    "MetadataEntry",
    "MetadataLog",
    "MetadataLogCapabilities",
    "MetadataLogSpec",
    "MetadataLogStatistics",
    "MetadataSnapshot",
)

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from penstock.spi.plugin import PluginSpec, S
from penstock.spi.statistics import counter, gauge


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataLogCapabilities:
    """What a metadata log promises."""

    #: Several hosts can append and follow; otherwise one host only.
    shareable: bool = False
    #: The largest entry in bytes; an append of more is refused.
    entry_bytes_max: int = 1 * 2**20


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """One entry as read. ``data`` stays as it is while it is referenced."""

    index: int
    data: bytes


@dataclass(frozen=True, slots=True)
class MetadataSnapshot:
    """The state after the entry ``index``."""

    index: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataLogStatistics:
    """Counters since opening; ``last_index`` is the newest index known here."""

    appends: Annotated[int, counter("entries", "Entries that were appended.")] = 0
    conflicts: Annotated[int, counter("entries", "Entries whose index another writer had taken.")] = 0
    last_index: Annotated[int, gauge("", "The newest index known here.")] = 0
    snapshot_index: Annotated[int, gauge("", "Index of the newest snapshot.")] = 0


class MetadataLog(Protocol):
    """The contract of a metadata log. Every durable byte is checksummed (I11).

    After its context was left every method that asks the log raises ClosedError: nothing looks empty then. What was
    appended, read or in a snapshot may stay in memory up to a bound of 64 MiB at the most, and no longer than that.
    """

    @property
    def capabilities(self) -> MetadataLogCapabilities:
        """What this instance promises."""

    @property
    def location(self) -> str:
        """Where the log is, for people."""

    async def append(self, index: int, data: bytes) -> None:
        """Make ``data`` the entry ``index``, durably, if there is none yet and ``index`` - 1 exists.

        Instead of the entry ``index`` - 1, the newest snapshot may be of it: it holds everything. Of several attempts
        at one index one returns, though all have the same bytes, or come one after another from the same writer; it
        returns when the entry is stored.

        An attempt whose outcome is unknown is resolved by reading back before answering.
        Raises ConflictError if the index is taken by what another attempt appended (catch up and try again);
        InvalidRequestError if the entry is larger than ``entry_bytes_max`` or would leave a gap;
        UnavailableError if the medium failed (the entry may be there: read before the next append).
        """

    def read(self, start_index: int) -> AsyncIterator[MetadataEntry]:
        """Entries from ``start_index`` in order, up to the newest at the call or a later one; or none.

        What is appended meanwhile may be left to the next read. Raises NotFoundError if ``start_index`` was already
        dropped below a snapshot; CorruptError on a failed checksum or a gap.
        """

    async def wait_for_news(self, after_index: int) -> None:
        """Return when there may be an entry past ``after_index``. May return early; may be cancelled.

        Everybody who waits hears of it, also of an entry that another wrote and somebody read here.
        """

    async def write_snapshot(self, snapshot: MetadataSnapshot) -> None:
        """Keep the snapshot, durably; then entries up to its index, and older snapshots, may be dropped.

        The newest is the one of the greatest index, whichever was written last.

        The entries of at least one older snapshot's span are kept for readers that are just behind.

        A log that has neither entries nor snapshots takes one of any index, and goes on behind it, as if everything
        up to there had been dropped: the state of another log, brought here. Otherwise InvalidRequestError may be
        raised for a snapshot of an entry that isn't there.
        """

    async def read_snapshot(self) -> MetadataSnapshot | None:
        """The newest whole snapshot. Raises CorruptError if the newest fails its checksum."""

    def statistics(self) -> MetadataLogStatistics:
        """A snapshot of the counters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataLogSpec(PluginSpec[S, MetadataLog]):
    """Registration of a metadata log."""

    kind: ClassVar[str] = "metadata_log"
    capabilities: MetadataLogCapabilities
