"""The syntax of regular expressions that requests carry: RE2's, as Kafka's library for it has it (re2j).

A pattern is only looked at, nothing is matched: in one pass, in steps, however long it is.
"""

from __future__ import annotations

__all__ = ("is_pattern",)

import re
from typing import Final

from penstock.api.portions import Steps

_REPEAT_MAX: Final = 1_000
_RUNE_MAX: Final = 0x10FFFF
#: Numbers without leading zeros; other braces stand for themselves.
_REPETITION: Final = re.compile(r"\{(0|[1-9][0-9]*)(,(0|[1-9][0-9]*)?)?\}", re.ASCII)
_FLAGS: Final = re.compile(r"\(\?[imsU]*(?:-[imsU]+)?([:)])")
_NAMED_GROUP: Final = re.compile(r"\(\?P?<([0-9A-Za-z_]+)>")
#: A character by its number, a control character, and any other that is no letter or digit.
_ESCAPE: Final = re.compile(
    r"\\(?:0[0-7]{0,2}|[1-7][0-7]{1,2}|x[0-9A-Fa-f]{2}|x\{([0-9A-Fa-f]+)\}|[afnrtv]|[^0-9A-Za-z])", re.DOTALL
)
_KIND: Final = re.compile(r"\\[dDsSwW]")
#: Beside these there are names of scripts, which aren't known here and taken as they come.
_UNICODE_KIND: Final = re.compile(
    r"\\[pP](?:[CLMNPSZ]|\{\^?(?:C[cfos]?|L[lmotu]?|M[cen]?|N[dlo]?|P[cdefios]?|S[ckmo]?|Z[lps]?|[A-Z][a-z_A-Z]{2,})\})"
)
_PLACE: Final = re.compile(r"\\[AbBz]")
_QUOTED: Final = re.compile(r"\\Q(.*?)(?:\\E|\Z)", re.DOTALL)
_CLASS_NAME: Final = re.compile(
    r"\^?(?:alnum|alpha|ascii|blank|cntrl|digit|graph|lower|print|punct|space|upper|word|xdigit)"
)


def is_pattern(text: str) -> Steps[bool]:
    """Whether it can be compiled."""
    names: set[str] = set()
    last_name = text.rfind(":]")  # looked for once: each bracket may begin a name
    pos = depth = 0
    #: Whether something is there that may be repeated, and whether it is repeated already.
    repeatable = repeated = False
    while pos < len(text):
        yield
        char, was_repeated, repeated = text[pos], repeated, False
        if char in "*+?" or (char == "{" and _REPETITION.match(text, pos)):
            end = _after_repetition(text, pos)
            if end is None or not repeatable or was_repeated:
                return False
            pos, repeated = end, True
        elif char == "(":
            end = _after_opening(text, pos, names)
            if end is None:
                return False
            if text[end - 1] != ")":  # else it sets flags, and nothing is opened
                depth, repeatable = depth + 1, False
            pos = end
        elif char == ")":
            if not depth:
                return False
            depth, repeatable, pos = depth - 1, True, pos + 1
        elif char == "|":
            repeatable, pos = False, pos + 1
        elif quoted := _QUOTED.match(text, pos):
            repeatable, pos = repeatable or bool(quoted[1]), quoted.end()
        elif char == "{":  # it stands for itself, and as in re2j nothing may repeat it
            repeatable, repeated, pos = True, True, pos + 1
        else:
            end = (yield from _after_class(text, pos, last_name)) if char == "[" else _after_one(text, pos)
            if end is None:
                return False
            repeatable, pos = True, end
    return not depth


def _after_repetition(text: str, pos: int) -> int | None:
    end = pos + 1
    if counts := _REPETITION.match(text, pos):
        least = _number(counts[1])
        most = least if counts[2] is None else _number(counts[3] or "1000")
        if most > _REPEAT_MAX or least > most:
            return None
        end = counts.end()
    return end + 1 if text[end : end + 1] == "?" else end


def _number(digits: str) -> int:
    return int(digits[:5])  # what has more is too much, too


def _after_opening(text: str, pos: int, names: set[str]) -> int | None:
    if text[pos + 1 : pos + 2] != "?":
        return pos + 1
    if flags := _FLAGS.match(text, pos):
        return flags.end()
    named = _NAMED_GROUP.match(text, pos)
    if named is None or named[1] in names:
        return None
    names.add(named[1])
    return named.end()


def _after_one(text: str, pos: int) -> int | None:
    """Behind a character, a kind of characters or a place."""
    if text[pos] != "\\":
        return pos + 1
    for one in (_KIND, _UNICODE_KIND, _PLACE):
        if found := one.match(text, pos):
            return found.end()
    rune = _rune(text, pos)
    return None if rune is None else rune[1]


def _rune(text: str, pos: int) -> tuple[int, int] | None:
    """A character that stands for itself or is escaped, and where it ends."""
    if text[pos] != "\\":
        return ord(text[pos]), pos + 1
    found = _ESCAPE.match(text, pos)
    if found is None:
        return None
    code = found[0][1:]
    if found[1] is not None:
        digits = found[1].lstrip("0")
        number = int(digits or "0", 16) if len(digits) <= 6 else _RUNE_MAX + 1
    elif code[0] == "x":
        number = int(code[1:], 16)
    elif code.isdigit() and code.isascii():
        number = int(code, 8)
    else:
        number = ord({"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}.get(code, code))
    return (number, found.end()) if number <= _RUNE_MAX else None


def _after_class(text: str, pos: int, last_name: int) -> Steps[int | None]:
    """Behind characters in brackets; None where they don't end, or one of them isn't right.

    ``last_name`` is where the last name of a class, ``[:alpha:]``, ends.
    """
    pos += 2 if text[pos + 1 : pos + 2] == "^" else 1
    first = pos
    while pos < len(text) and (text[pos] != "]" or pos == first):
        yield
        if pos < last_name and text.startswith("[:", pos):
            end = text.index(":]", pos + 1)
            if not _CLASS_NAME.fullmatch(text, pos + 2, end):
                return None
            pos = end + 2
            continue
        if kind := _UNICODE_KIND.match(text, pos) or _KIND.match(text, pos):
            pos = kind.end()
            continue
        low = _rune(text, pos)
        if low is None:
            return None
        pos = low[1]
        if text[pos : pos + 1] == "-" and text[pos + 1 : pos + 2] not in ("", "]"):
            high = _rune(text, pos + 1)
            if high is None or high[0] < low[0]:
                return None
            pos = high[1]
    return pos + 1 if pos < len(text) else None
