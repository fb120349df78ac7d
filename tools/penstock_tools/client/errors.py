"""Kafka's error codes as Penstock's errors: one sentence each, and whether the same call may work later."""

from __future__ import annotations

__all__ = ("check", "error_code", "error_of", "is_retriable", "no_such")

import re
from typing import Final

from penstock.errors import (
    AlreadyExistsError,
    CorruptError,
    FencedError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
    shown,
)
from penstock.wire.error_codes import ErrorCode

_PAIR: Final = re.compile(r"(\w+)=('[^']*'|\S+)")
#: Before each value of a sentence of our own; a topic that somebody mistyped may have spaces in it.
_OWN_VALUES: Final = re.compile(r" (?=\w+=)")
_PAIRS: Final = re.compile(rf"(?P<sentence>.*?)(?P<pairs>( {_PAIR.pattern})*)", re.DOTALL)

_CLASSES: Final[dict[ErrorCode, type[PenstockError]]] = {
    ErrorCode.UNKNOWN_TOPIC_OR_PARTITION: NotFoundError,
    ErrorCode.UNKNOWN_TOPIC_ID: NotFoundError,
    ErrorCode.GROUP_ID_NOT_FOUND: NotFoundError,
    ErrorCode.RESOURCE_NOT_FOUND: NotFoundError,
    ErrorCode.TOPIC_ALREADY_EXISTS: AlreadyExistsError,
    ErrorCode.CORRUPT_MESSAGE: CorruptError,
    ErrorCode.PRODUCER_FENCED: FencedError,
    ErrorCode.INVALID_PRODUCER_EPOCH: FencedError,
    ErrorCode.FENCED_INSTANCE_ID: FencedError,
    # the group went on without this member: it has to join again
    ErrorCode.REBALANCE_IN_PROGRESS: FencedError,
    ErrorCode.ILLEGAL_GENERATION: FencedError,
    ErrorCode.UNKNOWN_MEMBER_ID: FencedError,
    ErrorCode.UNKNOWN_SERVER_ERROR: UnavailableError,
}


#: What isn't there, if one was named.
_MISSING: Final = {
    ErrorCode.UNKNOWN_TOPIC_OR_PARTITION: "topic",
    ErrorCode.GROUP_ID_NOT_FOUND: "group",
}


def no_such(noun: str, name: str) -> NotFoundError:
    """The error for a topic or group that isn't there."""
    return NotFoundError(f"there is no such {noun}: {noun}={shown(name)}")


def error_code(code: int) -> ErrorCode:
    """The code's member; one that this client doesn't know is taken for UNKNOWN_SERVER_ERROR."""
    try:
        return ErrorCode(code)
    except ValueError:
        return ErrorCode.UNKNOWN_SERVER_ERROR


def is_retriable(code: int) -> bool:
    """Whether Kafka's clients send the same request again."""
    return error_code(code).retriable


def error_of(code: int, what: str, detail: str | None = None) -> PenstockError:
    """The error for ``code``: ``what`` failed ("topic can't be created topic=a"), the broker's ``detail``, the code.

    One sentence: the values of both parts come last, and what both name is named once.
    """
    member = error_code(code)
    kind = _CLASSES.get(member)
    if kind is None:
        kind = UnavailableError if member.retriable else InvalidRequestError
    reason = (detail or "").strip().rstrip(".") or member.message
    name = member.name if member == code else f"UNKNOWN_{code}"
    sentence, *own = _OWN_VALUES.split(what)
    values = [(key, value) for key, _, value in (pair.partition("=") for pair in own)]
    if [key for key, _ in values] == [_MISSING.get(member)]:
        return no_such(*values[0])  # the same words, whatever was to be done with it
    reason, more = _split(reason)
    known = {value.strip("'") for _, value in values}
    values += [(key, value) for key, value in more if value.strip("'") not in known]
    told = " ".join(f"{key}={shown(value)}" for key, value in (*values, ("error", name)))
    return kind(f"{sentence}, {reason}: {told}")


def _split(text: str) -> tuple[str, list[tuple[str, str]]]:
    """A broker's sentence and the ``key=value`` pairs at its end."""
    found = _PAIRS.fullmatch(text)
    assert found is not None, "the pattern matches any text"
    return found["sentence"].rstrip(" :"), _PAIR.findall(found["pairs"])


def check(code: int, what: str, detail: str | None = None) -> None:
    """Raise the error for ``code`` unless it is NONE."""
    if code:
        raise error_of(code, what, detail)
