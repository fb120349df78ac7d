"""Classes of traffic to the object store, the most urgent first.

A plugin needs none of this: the store in its ``Services`` belongs to the class of its kind
(``penstock.spi.kinds.Kind.traffic``), and ``penstock.work.traffic`` lets the classes take turns.
"""

from __future__ import annotations

__all__ = ("Traffic",)

from enum import StrEnum


class Traffic(StrEnum):
    """What a request to the object store is for."""

    #: Write-ahead logs and the metadata log: acknowledgements wait for it. It waits for nobody.
    WAL = "wal"
    #: Consumers near the end of their log, and lookups of offsets.
    TAIL = "tail"
    #: Consumers that read old records, and what is read ahead for them.
    CATCH_UP = "catch_up"
    #: Blocks on their way out of the write-ahead log.
    UPLOAD = "upload"
    #: Objects that are listed, deleted or rewritten.
    COMPACTION = "compaction"
    #: Tables of the lake.
    LAKE = "lake"
