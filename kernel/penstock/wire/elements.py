"""How many elements a message has: each is an object once it's decoded, however few its bytes are."""

from __future__ import annotations

__all__ = ("count_elements",)

from functools import cache
from typing import Any, TypeAlias, get_args, get_origin

import msgspec

from penstock.wire.registry import Message

#: Fields that are arrays, and those of their elements that are.
_Arrays: TypeAlias = "tuple[tuple[str, _Arrays], ...]"


def count_elements(message: Message) -> int:
    """How many elements its arrays have, those within others too."""
    return _count(message, _arrays(type(message)))


def _count(message: Any, arrays: _Arrays) -> int:
    found = 0
    for name, below in arrays:
        elements = getattr(message, name)
        if elements:
            found += len(elements)
            if below:
                found += sum([_count(one, below) for one in elements])
    return found


@cache
def _arrays(kind: type[Message]) -> _Arrays:
    found: list[tuple[str, _Arrays]] = []
    for item in msgspec.structs.fields(kind):
        for part in (item.type, *get_args(item.type)):  # which may be null
            if get_origin(part) is list:
                (element,) = get_args(part)
                found.append((item.name, _arrays(element) if _is_struct(element) else ()))
    return tuple(found)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
