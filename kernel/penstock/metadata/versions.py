"""The version of all that metadata store: one number, which entries and snapshots both carry.

Who adds or changes a command, a row of the image, or a field of either raises ``METADATA_VERSION``, and says below
what is new (``tests/unit/metadata/test_versions.py`` asks for it). An older Penstock would otherwise call the entry
damaged, or leave the field out of its next snapshot. Older entries and snapshots are read for ever.

- 1: a node that started took every stream over, whoever had it.
- 2: entries: nobody takes over what another node's WAL may hold (:mod:`penstock.metadata.owners`). Snapshots: ranges
  are bytes, an object's are counted instead of listed, nodes say which WAL they use.
- 3: entries: the rules of 2; snapshots beside them say who leads. Snapshots: nodes say since when they use a WAL, and
  for every WAL, also one that tells no identity.
- 4: snapshots only: topics say who leads their partitions, and the cluster who its controller is.
- 5: nothing new but the number: entries and snapshots had numbers of their own before.
- 6: nodes have words of plugins, and entries a command for them.
- 7: topics have a claim of their lake table, and entries two commands for it.
- 8: such a claim says how the newest maintenance ended, and entries have a command for that.
"""

from __future__ import annotations

__all__ = ("METADATA_VERSION", "refuse_newer", "version_of")

from typing import Final

import msgspec

from penstock.errors import NewerVersionError

#: What is written now.
METADATA_VERSION: Final[int] = 8


class _Versioned(msgspec.Struct):
    """The field that every version of an entry and of a snapshot has, whatever else changes."""

    version: int = 0


_decoder = msgspec.msgpack.Decoder(_Versioned)


def version_of(data: bytes) -> int:
    """The version that ``data``, which can't be read otherwise, says it is of; 0 if it says none."""
    try:
        return _decoder.decode(data).version
    except msgspec.MsgspecError:
        return 0


def refuse_newer(version: int, what: str, where: str) -> None:
    """Raise NewerVersionError if ``version`` is above METADATA_VERSION: that is no damage.

    ``what`` is the noun, ``where`` its place as ``key=value``.
    """
    if version > METADATA_VERSION:
        raise NewerVersionError.of(what, where, version=version, known=METADATA_VERSION)
