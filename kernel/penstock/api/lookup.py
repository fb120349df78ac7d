"""Topics as requests ask for them, by name or by id, looked up: the topic, or the error that the client is told."""

from __future__ import annotations

__all__ = (
    "AskedTopic",
    "TopicKey",
    "check_topic_permitted",
    "existing_topic",
    "find_topic",
    "partitions_by_topic",
    "resolve_topics",
)

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from penstock.api.authorization import DENIED
from penstock.api.context import RequestContext
from penstock.api.errors import quoted
from penstock.api.portions import Steps, by_portions
from penstock.log.errors import KafkaError
from penstock.log.manager import LogManager
from penstock.log.topic import Topic
from penstock.spi.authorizer import Operation, ResourceType
from penstock.wire.error_codes import ErrorCode

#: What a topic is asked for by: its name or its id. None: by neither, which finds nothing.
TopicKey: TypeAlias = str | bytes | None


class AskedTopic(NamedTuple):
    """A topic that a request asks for, as far as the client may know it."""

    #: As it was asked for, or the name that the id has; None if the id is no topic's.
    name: str | None
    #: None if there is no such topic.
    topic: Topic | None
    #: That it is denied, else that it is unknown (by name or by id, which have a code each), else NONE.
    error: ErrorCode


def find_topic(key: TopicKey, context: RequestContext) -> Topic | None:
    """The topic with this name or id, if there is one."""
    if key is None:
        return None
    if isinstance(key, str):
        return context.api.logs.topics().get(key)
    return context.api.logs.topic_by_id(bytes(key))


async def resolve_topics(
    keys: Iterable[TopicKey], operation: Operation, context: RequestContext
) -> list[AskedTopic]:
    """The topics of a request in its order, each with its error where ``operation`` isn't permitted or it is unknown.

    The authorizer is asked of all of them together, also of names that no topic has: who may not ask doesn't
    learn whether there is such a topic.
    """
    return await by_portions(_resolving(keys, operation, context))


def _resolving(
    keys: Iterable[TopicKey], operation: Operation, context: RequestContext
) -> Steps[list[AskedTopic]]:
    found: list[tuple[TopicKey, Topic | None]] = []
    for key in keys:
        found.append((key, find_topic(key, context)))
        yield
    names = (name for key, topic in found if (name := _name(key, topic)) is not None)
    denied = context.denied(operation, ResourceType.TOPIC, names)
    asked: list[AskedTopic] = []
    for key, topic in found:
        asked.append(_asked(key, topic, denied))
        yield
    return asked


def _name(key: TopicKey, topic: Topic | None) -> str | None:
    if topic is not None:
        return topic.name
    return key if isinstance(key, str) else None


def _asked(key: TopicKey, topic: Topic | None, denied: Collection[str]) -> AskedTopic:
    name = _name(key, topic)
    if name in denied:
        error = DENIED[ResourceType.TOPIC]
    elif topic is not None:
        error = ErrorCode.NONE
    elif isinstance(key, str | None):
        error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    else:
        error = ErrorCode.UNKNOWN_TOPIC_ID
    return AskedTopic(name, topic, error)


def existing_topic(name: str, context: RequestContext) -> Topic:
    """The topic with this name. Raises KafkaError, UNKNOWN_TOPIC_OR_PARTITION, if there is none."""
    topic = context.api.logs.topics().get(name)
    if topic is None:
        raise KafkaError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"there is no such topic: name={quoted(name)}")
    return topic


def check_topic_permitted(name: str, denied: Collection[str]) -> None:
    """Raise KafkaError if the topic is ``denied``. Call it before a look-up: who may not ask doesn't learn whether
    there is such a topic.
    """
    if name in denied:
        raise KafkaError(DENIED[ResourceType.TOPIC], f"not permitted: topic={quoted(name)}")


def partitions_by_topic(logs: LogManager) -> Iterator[tuple[str, range]]:
    """The topics by name, each with the indexes of its partitions.

    The caller may wait in between: the topics are those of the beginning; one deleted since has no partitions.
    """
    for name in sorted(logs.topics()):
        topic = logs.topics().get(name)
        yield name, range(topic.partition_count if topic is not None else 0)
