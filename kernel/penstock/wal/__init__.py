"""The building blocks of write-ahead logs, so that a new one is about a hundred lines.

The parts, from pure to rim:

* :mod:`~penstock.wal.framing`: groups and entries as bytes: absolute positions, CRC-32C, a chain of digests;
* :mod:`~penstock.wal.scan`: recovery over one medium; tells the end of a log from a loss;
* :class:`GroupCommit`: order, batching, in-order completion, capacity, failure;
* :class:`Boundaries`: where the log can be cut when it is trimmed;
* :class:`WriterThread`: blocking writes off the event loop;
* :class:`GroupWriter`: writes that are awaited, several at a time: batching, order, and the end.

How to build a WAL on them: ``append`` is ``GroupCommit.append`` plus a wake-up of your pump. Where writes are awaited
that is :class:`GroupWriter`, which needs two coroutines of yours; ``plugins/wal_s3`` is built so. A pump of your own
calls ``take`` while you want more groups in flight (``partial=False`` as long as you linger for more entries), turns
each group into bytes with :func:`encode_group`, and writes them: to a file, as one numbered object created with
put-if-absent, or to several other logs. When they are durable call ``finish``, in any order. Call ``fail`` when the
medium is lost or a newer owner shows up, and ``release`` when trimmed. For recovery, a log on one medium iterates a
:class:`LogScan`; a log of numbered objects calls :func:`decode_group` on each object with the running
:class:`Cursor`, and compares the ``confirmed_position`` of every group with where the objects end.
"""

from __future__ import annotations

__all__ = (
    "ENTRY_HEADER_BYTES",
    "GROUP_HEADER_BYTES",
    "Boundaries",
    "Cursor",
    "DamageError",
    "DecodedGroup",
    "Group",
    "GroupCommit",
    "GroupHeader",
    "GroupWriter",
    "LogScan",
    "Reader",
    "WriterThread",
    "decode_group",
    "encode_group",
    "parse_group_header",
)

from penstock.wal.boundaries import Boundaries
from penstock.wal.framing import (
    ENTRY_HEADER_BYTES,
    GROUP_HEADER_BYTES,
    Cursor,
    DamageError,
    DecodedGroup,
    GroupHeader,
    decode_group,
    encode_group,
    parse_group_header,
)
from penstock.wal.group_commit import Group, GroupCommit
from penstock.wal.group_writer import GroupWriter
from penstock.wal.scan import LogScan, Reader
from penstock.wal.writer_thread import WriterThread
