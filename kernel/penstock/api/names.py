"""The rule for topic names (org.apache.kafka.common.internals.Topic), pure."""

from __future__ import annotations

__all__ = (
    "RESERVED_TOPICS",
    "TOPIC_NAME_SIZE_MAX",
    "absent_topic_code",
    "by_metric_name",
    "is_valid_topic_name",
    "metric_name",
    "topic_name_fault",
)

import re
from collections.abc import Iterable
from typing import Final

from penstock.wire.error_codes import ErrorCode

TOPIC_NAME_SIZE_MAX: Final = 249
#: The log of Kafka's controllers, which is no topic that clients see: none may be created with its name.
RESERVED_TOPICS: Final = frozenset({"__cluster_metadata"})
_LEGAL = re.compile(r"[a-zA-Z0-9._-]+")


def is_valid_topic_name(name: str) -> bool:
    """Whether a topic may have this name."""
    return topic_name_fault(name) is None


def absent_topic_code(name: str) -> ErrorCode:
    """The code for a name that no topic has: another one where none could have it."""
    if is_valid_topic_name(name):
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    return ErrorCode.INVALID_TOPIC_EXCEPTION


def metric_name(name: str) -> str:
    """The name as metrics have it. Topics whose metrics would have the same name don't go beside each other."""
    return name.replace(".", "_")


def by_metric_name(names: Iterable[str]) -> dict[str, str]:
    """The names that have a dot or an underscore, by the name that metrics would have."""
    return {metric_name(name): name for name in names if "." in name or "_" in name}


def topic_name_fault(name: str) -> str | None:
    """The fault of a topic name, as a sentence for the client; None if it has none."""
    if not name:
        return "topic name is empty"
    if name in {".", ".."}:
        return f"topic name may not be '.' or '..': name={name!r}"
    if len(name) > TOPIC_NAME_SIZE_MAX:
        return f"topic name is longer than {TOPIC_NAME_SIZE_MAX} characters: length={len(name)}"
    if _LEGAL.fullmatch(name) is None:
        return "topic name has characters other than ASCII letters, digits, '.', '_' and '-'"
    return None
