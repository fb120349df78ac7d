"""The rule for topic names (org.apache.kafka.common.internals.Topic), pure."""

from __future__ import annotations

__all__ = ("TOPIC_NAME_SIZE_MAX", "is_valid_topic_name", "topic_name_fault")

import re
from typing import Final

TOPIC_NAME_SIZE_MAX: Final = 249
_LEGAL = re.compile(r"[a-zA-Z0-9._-]+")


def is_valid_topic_name(name: str) -> bool:
    """Whether a topic may have this name."""
    return topic_name_fault(name) is None


def topic_name_fault(name: str) -> str | None:
    """What is wrong with a topic name, as a sentence for the client; None when it is fine."""
    if not name:
        return "topic name is empty"
    if name in {".", ".."}:
        return f"topic name may not be '.' or '..': name={name!r}"
    if len(name) > TOPIC_NAME_SIZE_MAX:
        return f"topic name is longer than {TOPIC_NAME_SIZE_MAX} characters: length={len(name)}"
    if _LEGAL.fullmatch(name) is None:
        return "topic name has characters other than ASCII letters, digits, '.', '_' and '-'"
    return None
