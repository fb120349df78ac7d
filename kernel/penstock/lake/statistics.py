"""What the room tells of its tables."""

from __future__ import annotations

__all__ = ("LakeStatistics", "LakeTableStatistics")

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from penstock.spi.statistics import counter, gauge, parts, text


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeTableStatistics:
    """A snapshot of one table that this broker makes; counters are of this broker's life."""

    table: Annotated[str, text("The table's name, once it was open.")]
    state: Annotated[str, text("How it goes: opening, running, failed, gap, stopped.")]
    reason: Annotated[str, text("Why it doesn't run; empty while it does.")]
    lag_records: Annotated[
        Mapping[str, int], gauge("records", "Durable records that aren't in the table.", by="partition")
    ]
    lag_ms: Annotated[
        Mapping[str, int], gauge("ms", "Time since the table had every record there was.", by="partition")
    ]
    rows: Annotated[int, counter("rows", "Rows that were committed.")]
    rejected: Annotated[Mapping[str, int], counter("records", "Records that couldn't be read.", by="policy")]
    gap_records: Annotated[
        int, counter("records", "Records that were deleted before they were in the table.")
    ]
    written_bytes: Annotated[int, counter("bytes", "Bytes of records that were handed to the compactor.")]
    commits: Annotated[int, counter("commits", "Commits that succeeded.")]
    failures: Annotated[int, counter("failures", "How often it failed.")]
    last_rejection: Annotated[str, text("Why the last record was rejected.")]
    maintenances: Annotated[int, counter("runs", "Maintenance that ended well.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LakeStatistics:
    """A snapshot of the room."""

    memory_bytes: Annotated[int, gauge("bytes", "Memory of records on their way into tables.")]
    tables: Annotated[
        Mapping[str, LakeTableStatistics], parts("Each table that this broker makes, by topic.")
    ]
