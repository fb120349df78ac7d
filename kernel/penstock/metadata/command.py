"""The base of metadata commands; the commands are in :mod:`penstock.metadata.commands`."""

from __future__ import annotations

__all__ = ("RETIRED_TAGS", "Command", "CommandFor")

from typing import Any, ClassVar, Final, Protocol, TypeVar

import msgspec

from penstock.metadata.state import Moment, State

#: Tags of commands that are gone. Entries with them may be in a log that somebody keeps, so none is given again.
RETIRED_TAGS: Final[frozenset[str]] = frozenset()


R_co = TypeVar("R_co", covariant=True)


class CommandFor(Protocol[R_co]):
    """A command by what its fold gives, which whoever sends it gets."""

    def fold(self, image: State, at: Moment) -> R_co:
        """See :class:`Command`, the base of all."""


class Command(msgspec.Struct, frozen=True, omit_defaults=True):
    """Base of all: a fact to be decided on by its fold, and how that is stored.

    A command is a frozen ``msgspec.Struct`` with a ``tag`` of its own, in a module of ``penstock.metadata.commands``.
    Fields may be added with defaults; a field, or a tag, never changes its meaning (version N reads N-1).
    A new tag or field raises ``METADATA_VERSION``: an older Penstock can't tell it from damage otherwise.
    """

    #: Its result isn't told before the WAL has a mark of its entry (``penstock.stream.marks``).
    waits_for_mark: ClassVar[bool] = True

    def fold(self, image: State, at: Moment) -> Any:
        """Check everything, then change ``image`` and tell ``at`` what changed; the result for who sent it.

        Depends on nothing but the command, the image and the moment (I7), and awaits nothing. Raises a PenstockError,
        with nothing changed, if the command is refused.
        """
        raise NotImplementedError  # each command has its own; msgspec's structs can't be abstract classes

    def weight(self, image: State) -> int:
        """About how many rows of the image the command changes: 2,000 are folded in a millisecond or two."""
        return 1
