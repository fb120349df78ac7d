"""Changes of configs, judged: what may not be changed in that way, and what a topic has afterwards. Pure."""

from __future__ import annotations

__all__ = (
    "BROKER",
    "BROKER_LOGGER",
    "CLIENT_METRICS",
    "GROUP",
    "TOPIC",
    "changed",
    "check_changes",
    "check_is_own",
    "check_unstored",
    "check_values",
    "replaced",
)

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from penstock.api.broker_configs import check_broker_change
from penstock.api.errors import quoted
from penstock.api.other_configs import CLIENT_METRICS_CONFIGS, logger_levels
from penstock.log.errors import KafkaError
from penstock.log.topic_config import ConfigType, TopicConfigTable, split_list
from penstock.wire.error_codes import ErrorCode
from penstock.wire.messages.alter_configs import AlterableConfig as LegacyConfig
from penstock.wire.messages.incremental_alter_configs import AlterableConfig

# org.apache.kafka.common.config.ConfigResource.Type
TOPIC: Final = 2
BROKER: Final = 4
BROKER_LOGGER: Final = 8
CLIENT_METRICS: Final = 16
GROUP: Final = 32

# org.apache.kafka.clients.admin.AlterConfigOp.OpType
_SET: Final = 0
_DELETE: Final = 1
_APPEND: Final = 2
_SUBTRACT: Final = 3
_OF_LISTS: Final = frozenset({_APPEND, _SUBTRACT})

#: What Kafka reads as a number of a broker.
_NODE_ID: Final = re.compile(r"[+-]?[0-9]{1,10}", re.ASCII)


def check_changes(kind: int, changes: Sequence[AlterableConfig], table: TopicConfigTable) -> None:
    """Raise KafkaError for what is wrong with changes whatever has those configs, which Kafka finds first.

    ``kind`` is the resource's.
    """
    _check_distinct(changes)
    for change in changes:
        if change.value is None and change.config_operation != _DELETE:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST,
                f"config has no value, null only deletes: name={quoted(change.name)}",
            )
    of_lists = [change for change in changes if change.config_operation in _OF_LISTS]
    lists = _lists_of(kind, table) if of_lists else None
    for change in of_lists:
        if lists is not None and change.name not in lists:
            raise KafkaError(
                ErrorCode.INVALID_CONFIG,
                f"only lists can be appended to or subtracted from: name={quoted(change.name)}",
            )


def _check_distinct(configs: Iterable[AlterableConfig | LegacyConfig]) -> None:
    seen: set[str] = set()
    for config in configs:
        if config.name in seen:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST, f"config is in the request twice: name={quoted(config.name)}"
            )
        seen.add(config.name)


def _lists_of(kind: int, table: TopicConfigTable) -> Collection[str] | None:
    """The configs of a kind of resource that are lists; None where it doesn't matter."""
    if kind == TOPIC:
        return [name for name, config in table.known.items() if config.is_list]
    if kind == CLIENT_METRICS:
        return [name for name, config in CLIENT_METRICS_CONFIGS.items() if config.type == ConfigType.LIST]
    return () if kind == GROUP else None


def check_unstored(kind: int, name: str, changes: Sequence[AlterableConfig], node_id: int) -> None:
    """Raise KafkaError for changes of what has no configs of its own here, but for a deletion of what isn't set."""
    if kind == BROKER:
        check_broker_change(name, changes, node_id)
    elif kind == BROKER_LOGGER:
        check_is_own(name, node_id)
        known = dict(logger_levels()) if changes else {}
        for change in changes:
            if change.config_operation in _OF_LISTS:
                raise KafkaError(ErrorCode.INVALID_REQUEST, "levels of loggers aren't lists")
            if change.name not in known:
                raise KafkaError(
                    ErrorCode.INVALID_CONFIG, f"there is no such logger: name={quoted(change.name)}"
                )
        if changes:
            raise KafkaError(ErrorCode.INVALID_CONFIG, "levels of loggers are read at start: logging.level")
    else:
        for change in changes:
            if change.config_operation != _DELETE:
                raise _refused_setting(kind, change.name)


def _refused_setting(kind: int, name: str) -> KafkaError:
    if (
        kind == CLIENT_METRICS and name not in CLIENT_METRICS_CONFIGS
    ):  # for this kind Kafka has a code of its own
        return KafkaError(ErrorCode.INVALID_REQUEST, f"config is unknown: name={quoted(name)}")
    what = "groups" if kind == GROUP else "client metrics"
    return KafkaError(ErrorCode.INVALID_CONFIG, f"{what} have no configs of their own here")


def check_is_own(name: str, node_id: int) -> None:
    """Raise KafkaError if ``name`` isn't this broker's id."""
    if not _NODE_ID.fullmatch(name) or int(name) != node_id:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"this is another broker: node_id={node_id}")


def changed(
    changes: Sequence[AlterableConfig], table: TopicConfigTable, current: Mapping[str, str]
) -> dict[str, str]:
    """The ``current`` overrides of a topic with all ``changes``. Raises KafkaError."""
    configs = dict(current)
    for change in changes:
        _apply(configs, change, table, current)
    table.check_together(configs, current)
    return configs


def _apply(
    configs: dict[str, str], change: AlterableConfig, table: TopicConfigTable, current: Mapping[str, str]
) -> None:
    name = change.name
    if change.config_operation == _SET:
        configs[name] = table.validate(name, change.value)
        return
    if change.config_operation == _DELETE:
        configs.pop(name, None)  # what isn't set, or isn't known, is as it is wanted
        return
    if change.config_operation not in {_APPEND, _SUBTRACT}:
        raise KafkaError(
            ErrorCode.INVALID_REQUEST, f"operation is unknown: operation={change.config_operation}"
        )
    items = split_list(table.value(name, current))
    given = _given_items(change.value or "")
    # no lists, since both may have a hundred thousand
    if change.config_operation == _APPEND:
        present = set(items)
        items += [item for item in dict.fromkeys(given) if item not in present]
    else:
        gone = Counter(given)
        items = [item for item in items if not _taken(item, gone)]
    configs[name] = table.validate(name, ",".join(items))


def _taken(item: str, gone: Counter[str]) -> bool:
    """Whether it goes: what is there twice goes as often as it is named."""
    if not gone[item]:
        return False
    gone[item] -= 1
    return True


def _given_items(value: str) -> list[str]:
    """The items that are added or taken away: what is empty counts, but at the end, as in Kafka."""
    items = [item.strip() for item in value.split(",")]
    while "," in value and items and not items[-1]:
        items.pop()
    return items


def check_values(configs: Sequence[LegacyConfig]) -> None:
    """Raise KafkaError unless each config is set once, to a value, as AlterConfigs needs it."""
    for config in configs:
        if config.value is None:
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"config has no value: name={quoted(config.name)}")
    _check_distinct(configs)


def replaced(
    changes: Iterable[LegacyConfig], table: TopicConfigTable, current: Mapping[str, str]
) -> Mapping[str, str]:
    """The overrides of a topic that AlterConfigs puts in the place of the ``current`` ones. Raises KafkaError."""
    configs = {change.name: table.validate(change.name, change.value) for change in changes}
    table.check_together(configs, current)
    return configs
