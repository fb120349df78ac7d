"""Tells what a newer Penstock wrote from what is damaged."""

from __future__ import annotations

__all__ = ("refuse_newer",)

import msgspec

from penstock.errors import NewerVersionError


class _Versioned(msgspec.Struct):
    """The field that every version of an entry and of a snapshot has, whatever else changes."""

    version: int = 0


_decoder = msgspec.msgpack.Decoder(_Versioned)


def refuse_newer(data: bytes, what: str, where: str, *, known: int) -> None:
    """Raise NewerVersionError if ``data``, which can't be read, says that it is of a version above ``known``."""
    try:
        version = _decoder.decode(data).version
    except msgspec.MsgspecError:
        return
    if version > known:
        raise NewerVersionError.of(what, where, version=version, known=known)
