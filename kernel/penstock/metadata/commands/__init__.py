"""The commands of the metadata log and the entries that carry them.

A command is a class (:mod:`penstock.metadata.command`) in a module of this package, with its tag, weight and fold;
whatever is there, is known. Ids and epochs are assigned by the fold, from the image and the entry's index, never by a
clock. Times that a command needs are carried in its entry.

An entry is MessagePack, one map::

    "commands"    array of maps: "type", the tag of the command, then its fields
    "writer"      who wrote the entry
    "now_ms"      wall clock of the writer
    "version"     that of penstock.metadata.versions; left out it is 1
    "wal_end"     end of the newest durable mark in the writer's WAL; left out it is 0

What has its default is left out, in commands too. ``version`` stays where it is in all versions that come. It is that
of the rules which decided on the entry when it was written, and decide ever after.
"""

from __future__ import annotations

__all__ = (
    "COMMANDS",
    "Command",
    "Entry",
    "decode_entry",
    "encode_entry",
    "new_entry",
)

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Final, TypeAlias, Union

import msgspec

from penstock.errors import CorruptError
from penstock.metadata.command import RETIRED_TAGS, Command
from penstock.metadata.versions import METADATA_VERSION, refuse_newer, version_of


def _found() -> Iterator[type[Command]]:
    for found in iter_modules(__path__, f"{__name__}."):
        module = import_module(found.name)
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Command) and value.__module__ == found.name:
                yield value


def _by_tag() -> dict[str, type[Command]]:
    table: dict[str, type[Command]] = {}
    for command in _found():
        tag = command.__struct_config__.tag
        if not isinstance(tag, str) or tag in table or tag in RETIRED_TAGS:
            raise ValueError(
                f"a command needs a tag that no other one has or had: command={command} tag={tag}"
            )
        table[tag] = command
    return table


#: All classes of commands, by tag.
COMMANDS: Final = _by_tag()

if TYPE_CHECKING:
    AnyCommand: TypeAlias = Command
else:
    AnyCommand = Union[tuple(COMMANDS.values())]  # noqa: UP007 - of what was found


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of the metadata log: a batch of commands that are folded in order; see :func:`new_entry`."""

    commands: list[AnyCommand]
    #: Who wrote it: lets a writer recognise its own entry after a lost reply.
    writer: str
    #: Wall clock of the writer in ms; decides nothing but deadlines and delays.
    now_ms: int
    #: Of the format and of the rules; what is absent is 1.
    version: int = 1
    #: Where the newest durable mark in the writer's WAL ended when this was written, so that a WAL that was rolled
    #: back is told from the right one; 0: that isn't said.
    wal_end: int = 0


def new_entry(commands: list[Command], writer: str, now_ms: int, wal_end: int = 0) -> Entry:
    """An entry under the rules of today."""
    return Entry(commands, writer, now_ms, METADATA_VERSION, wal_end)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    """The bytes of an entry (MessagePack)."""
    return _encoder.encode(entry)


def decode_entry(index: int, data: bytes) -> Entry:
    """The entry at ``index``. Raises CorruptError if it can't be read, NewerVersionError."""
    try:
        entry = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        refuse_newer(version_of(data), "a metadata entry", f"index={index}")
        raise CorruptError(
            f"metadata entry can't be read, restore the metadata log from a backup: index={index} reason={error}"
        ) from error
    refuse_newer(entry.version, "a metadata entry", f"index={index}")
    return entry
