"""Every error that crosses a boundary in Penstock, with what the handler is to do about it.

One base and few classes: a new class is worth it only where a handler would act differently.
Texts are lowercase, name what, where and what to do, and end in ``key=value`` pairs.
"""

from __future__ import annotations

__all__ = (
    "AlreadyExistsError",
    "CapabilityError",
    "ClosedError",
    "ConfigError",
    "ConflictError",
    "CorruptError",
    "FencedError",
    "FullError",
    "InvalidRequestError",
    "InvariantError",
    "NewerVersionError",
    "NotFoundError",
    "NotNowError",
    "PenstockError",
    "PluginError",
    "UnavailableError",
    "again",
    "clear_frames",
    "kept",
    "shown",
)

import traceback
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Self, TypeVar

_E = TypeVar("_E", bound=BaseException)


class PenstockError(Exception):
    """Base of all errors that Penstock raises on purpose."""

    #: True when the same call may succeed later without anybody changing anything.
    retryable: bool = False


class ConfigError(PenstockError):
    """The configuration is wrong: show the sentence to the user and stop."""


class PluginError(PenstockError):
    """A plugin is missing, malformed, of another SPI version, or can't work with another one: show and stop."""


class CapabilityError(PluginError):
    """Two selected plugins can't work together, or one lacks what the kernel needs: show and stop."""


class InvalidRequestError(PenstockError):
    """The caller broke the contract of the method (bad range, unclaimed capability): fix the caller."""


class NotFoundError(PenstockError):
    """The named thing doesn't exist (object, stream, topic): not retryable."""


class AlreadyExistsError(PenstockError):
    """A create-only operation met somebody else's thing: the other one won."""


class ConflictError(PenstockError):
    """A compare-and-swap or compare-and-append lost: catch up, re-validate, try again."""

    retryable = True


class UnavailableError(PenstockError):
    """A medium failed, stalled or refused for now: back off and retry; nothing is known to be lost."""

    retryable = True


class FullError(PenstockError):
    """A bounded resource is at its limit (WAL capacity, memory, disk): make room or wait, then retry."""

    retryable = True


class NotNowError(PenstockError):
    """A call can't be done at once, and nothing has changed: await ``wait()``, then call again.

    ``is_work`` tells what is waited for: work that gets done whatever others do, or room that others have to make.
    What ``wait`` returns is said where the error is raised.
    """

    retryable = True

    def __init__(self, message: str, wait: Callable[[], Coroutine[Any, Any, Any]], *, is_work: bool) -> None:
        super().__init__(message)
        self.wait = wait
        self.is_work = is_work


class FencedError(PenstockError):
    """A newer owner took over: stop at once, acknowledge nothing more, never retry."""


class CorruptError(PenstockError):
    """Durable bytes fail their checksum or a hole is found: stop, keep the evidence, tell the user."""


class NewerVersionError(PenstockError):
    """Durable bytes are of a format that a newer Penstock writes: change nothing, and tell the user to upgrade.

    It is no damage: what can't be read is whole, and nothing older may take its place.
    """

    @classmethod
    def of(cls, what: str, where: str, *, version: int, known: int) -> Self:
        """``what`` is the noun ("the wal's header"), ``where`` its place as ``key=value``."""
        return cls(
            f"{what} was written by a newer penstock, upgrade this one: "
            f"{where} version={version} known={known}"
        )


class ClosedError(PenstockError):
    """The object was closed or its scope ended; pending calls get this as their answer."""


class InvariantError(PenstockError):
    """Penstock found itself in a state that its design rules out: a bug; stop the affected part loudly."""


def shown(name: str) -> str:
    """Somebody's name for a sentence: quoted if it is empty or would run into the words around it."""
    return name if name[:1] == "'" or (name and not any(map(str.isspace, name))) else repr(name)


# An error has the frames that it went through, and these have their variables: payload, buffers, whole requests. A
# stored error keeps all of it alive; and if one of these variables leads to the error, that is a reference cycle,
# which only the garbage collector ends. So: what is stored is ``kept``, and what was stored is raised ``again``.


def kept(error: _E) -> _E:
    """``error`` itself with its frames removed, fit to be stored, shared, or handed to another task.

    Of a bug, an error that Penstock doesn't raise on purpose, the traceback is kept as text.
    """
    if not isinstance(error, PenstockError) and error.__traceback__ is not None:
        error.add_note("".join(traceback.format_tb(error.__traceback__)))
    for one in _chain(error):
        one.__traceback__ = None
    return error


def again(error: _E) -> _E:
    """A fresh copy of a stored error, to be raised; the stored one could be raised by many, and grow each time."""
    kind = type(error)
    reduced = error.__reduce__()
    assert isinstance(reduced, tuple)
    copy = kind.__new__(kind, *reduced[1])  # of an OSError these are more than its ``args``
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__
    copy.__suppress_context__ = error.__suppress_context__
    return copy


def clear_frames(error: BaseException) -> None:
    """Let go of the variables of all frames that the error has left for good; their lines stay for the log."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, its causes and contexts, and what groups among them hold; each once."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        left += (one.__cause__, one.__context__)
        if isinstance(one, BaseExceptionGroup):
            left += one.exceptions
        yield one
