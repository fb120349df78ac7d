"""Topic configs: names, types, defaults and rules, as Kafka has them and as far as they act here. Pure.

Three groups. Those that act. Those that only tune machinery that isn't here (segments, flushing, the cleaner's
thresholds): they are accepted, checked and reported, because tools send them, and nothing a client can observe
depends on them. And those whose effect a client would rely on and would not get: only the values that are true
anyway are accepted, the others are refused with a sentence.

A plugin may add some of its own: a broker knows Kafka's and those (:class:`TopicConfigTable`).
"""

from __future__ import annotations

__all__ = (
    "INTERNAL_TOPICS",
    "LZ4_FAST_LEVEL",
    "TOPIC_CONFIGS",
    "ConfigType",
    "TopicConfig",
    "TopicConfigTable",
    "effective_value",
    "effective_values",
    "split_list",
)

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from penstock.log.errors import KafkaError
from penstock.wire.error_codes import ErrorCode

_INT_MAX: Final = 2**31 - 1
_LONG_MAX: Final = 2**63 - 1
_LONG_MIN: Final = -(2**63)
#: Kafka's limit for a string: appended to again and again, a list would grow beyond what DescribeConfigs can tell.
_VALUE_CHARS_MAX: Final = 32_767
_DAY_MS: Final = 24 * 60 * 60 * 1000
#: Unknown names of a request that are compared with all that are known, which takes half a millisecond each.
_SUGGESTIONS_MAX: Final = 10

#: Topics that Kafka's coordinators keep for themselves, whoever made them (org.apache.kafka.common.internals.Topic).
INTERNAL_TOPICS: Final = frozenset({"__consumer_offsets", "__transaction_state", "__share_group_state"})

#: Kafka's default for lz4, which stands for the fast compressor; all other levels are those of the high one.
LZ4_FAST_LEVEL: Final = 9


class ConfigType(IntEnum):
    """The types of DescribeConfigs v3+ (org.apache.kafka.clients.admin.ConfigEntry.ConfigType)."""

    BOOLEAN = 1
    STRING = 2
    INT = 3
    SHORT = 4
    LONG = 5
    DOUBLE = 6
    LIST = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicConfig:
    """One topic config. ``low`` and ``high`` bound numbers; ``choices`` are the values of the rest."""

    name: str
    type: ConfigType
    default: str
    doc: str
    acts: bool = True
    low: int = _LONG_MIN
    high: int = _LONG_MAX
    choices: tuple[str, ...] = ()
    #: Numbers between the bounds that are no values.
    excluded: tuple[int, ...] = ()
    #: What a whole list must look like.
    pattern: str = ""
    #: Why any other value is refused, for configs of the third group.
    refusal: str = ""

    @property
    def is_list(self) -> bool:
        """Whether APPEND and SUBTRACT make sense."""
        return self.type is ConfigType.LIST


def _long(name: str, default: int, doc: str, *, low: int = 0, acts: bool = True) -> TopicConfig:
    return TopicConfig(name=name, type=ConfigType.LONG, default=str(default), doc=doc, low=low, acts=acts)


def _int(name: str, default: int, doc: str, *, low: int = 0, acts: bool = True) -> TopicConfig:
    return TopicConfig(
        name=name, type=ConfigType.INT, default=str(default), doc=doc, low=low, high=_INT_MAX, acts=acts
    )


def _bool(name: str, default: str, doc: str) -> TopicConfig:
    return TopicConfig(
        name=name, type=ConfigType.BOOLEAN, default=default, doc=doc, choices=("true", "false"), acts=False
    )


def _false(name: str) -> TopicConfig:
    return TopicConfig(
        name=name,
        type=ConfigType.BOOLEAN,
        default="false",
        doc="There are no tiers, so there is nothing to disable.",
        choices=("false",),
        refusal="all data is in the object store, there are no tiers to disable",
    )


_THROTTLED: Final = r"|\*|[0-9]+:[0-9]+(,[0-9]+:[0-9]+)*"
_UNUSED: Final = "Accepted and reported; tunes machinery that this broker doesn't have."

_ALL: Final = (
    TopicConfig(
        name="cleanup.policy",
        type=ConfigType.LIST,
        default="delete",
        doc="What happens to old records: delete removes them by retention.ms and retention.bytes; empty keeps them.",
        choices=("delete",),
        refusal="this broker doesn't compact topics, only cleanup.policy=delete is supported",
    ),
    TopicConfig(
        name="compression.type",
        type=ConfigType.STRING,
        default="producer",
        doc="Codec of stored batches; producer keeps them as they come, others are recompressed by the broker.",
        choices=("uncompressed", "zstd", "lz4", "snappy", "gzip", "producer"),
    ),
    # KIP-390: what the broker itself compresses with
    TopicConfig(
        name="compression.gzip.level",
        type=ConfigType.INT,
        default="-1",
        doc="Level of gzip where the broker recompresses: 1 to 9, or -1 for the library's default.",
        low=-1,
        high=9,
        excluded=(0,),
    ),
    TopicConfig(
        name="compression.lz4.level",
        type=ConfigType.INT,
        default=str(LZ4_FAST_LEVEL),
        doc="Level of lz4 where the broker recompresses: 9 is fast, as in Kafka, others pack harder.",
        low=1,
        high=17,
    ),
    TopicConfig(
        name="compression.zstd.level",
        type=ConfigType.INT,
        default="3",
        doc="Level of zstd where the broker recompresses.",
        low=-131072,
        high=22,
    ),
    _int("max.message.bytes", 1_048_588, "Largest record batch accepted, as stored."),
    _long(
        "message.timestamp.after.max.ms",
        3_600_000,
        "How far a CreateTime may be ahead of the broker's clock.",
    ),
    _long(
        "message.timestamp.before.max.ms", _LONG_MAX, "How far a CreateTime may be behind the broker's clock."
    ),
    TopicConfig(
        name="message.timestamp.type",
        type=ConfigType.STRING,
        default="CreateTime",
        doc="Whose time a record carries: the producer's (CreateTime) or the broker's (LogAppendTime).",
        choices=("CreateTime", "LogAppendTime"),
    ),
    _long(
        "retention.bytes",
        -1,
        "Size of a partition above which its oldest records go; below 0 for no limit.",
        low=_LONG_MIN,
    ),
    _long("retention.ms", 7 * _DAY_MS, "Age above which records go; -1 for no limit.", low=-1),
    TopicConfig(
        name="min.insync.replicas",
        type=ConfigType.INT,
        default="1",
        doc="An acknowledged record is as durable as the write-ahead log, whatever the number of brokers.",
        low=1,
        high=1,
        refusal="durability comes from the write-ahead log and not from replicas, so only 1 is supported",
    ),
    TopicConfig(
        name="remote.storage.enable",
        type=ConfigType.BOOLEAN,
        default="false",
        doc="All data is in the object store anyway, there are no tiers.",
        choices=("false",),
        refusal="all data is in the object store already, there are no tiers to turn on",
    ),
    _false("remote.log.copy.disable"),
    _false("remote.log.delete.on.disable"),
    TopicConfig(
        name="unclean.leader.election.enable",
        type=ConfigType.BOOLEAN,
        default="false",
        doc="A leader never misses acknowledged records, so no election is unclean.",
        choices=("true", "false"),
        acts=False,
    ),
    _long("delete.retention.ms", _DAY_MS, _UNUSED, acts=False),
    _long("file.delete.delay.ms", 60_000, _UNUSED, acts=False),
    _long("flush.messages", _LONG_MAX, _UNUSED + " Every acknowledged record is flushed.", low=1, acts=False),
    _long("flush.ms", _LONG_MAX, _UNUSED + " Every acknowledged record is flushed.", acts=False),
    _int("index.interval.bytes", 4096, _UNUSED, acts=False),
    _long("local.retention.bytes", -2, _UNUSED, low=-2, acts=False),
    _long("local.retention.ms", -2, _UNUSED, low=-2, acts=False),
    _long("max.compaction.lag.ms", _LONG_MAX, _UNUSED, low=1, acts=False),
    _long("min.compaction.lag.ms", 0, _UNUSED, acts=False),
    TopicConfig(
        name="min.cleanable.dirty.ratio", type=ConfigType.DOUBLE, default="0.5", doc=_UNUSED, acts=False
    ),
    _bool("preallocate", "false", _UNUSED),
    _int("segment.bytes", 1_073_741_824, _UNUSED, low=2**20, acts=False),
    _int("segment.index.bytes", 10_485_760, _UNUSED, low=4, acts=False),
    _long("segment.jitter.ms", 0, _UNUSED, acts=False),
    _long("segment.ms", 7 * _DAY_MS, _UNUSED, low=1, acts=False),
    TopicConfig(
        name="follower.replication.throttled.replicas",
        type=ConfigType.LIST,
        pattern=_THROTTLED,
        default="",
        doc=_UNUSED,
        acts=False,
    ),
    TopicConfig(
        name="leader.replication.throttled.replicas",
        type=ConfigType.LIST,
        pattern=_THROTTLED,
        default="",
        doc=_UNUSED,
        acts=False,
    ),
)

#: All topic configs by name, in the order of their names.
TOPIC_CONFIGS: Final[Mapping[str, TopicConfig]] = {
    config.name: config for config in sorted(_ALL, key=lambda c: c.name)
}


#: Bounds of one lag: the lower first.
_LAGS: Final = ("min.compaction.lag.ms", "max.compaction.lag.ms")


def _no_fault(values: Mapping[str, str]) -> str:
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicConfigTable:
    """The topic configs that a broker knows, and what they are where a topic says nothing."""

    #: Those that plugins add; their names begin with one of ``reserved``.
    added: Mapping[str, TopicConfig] = field(default_factory=lambda: MappingProxyType({}))
    #: The broker's own defaults.
    defaults: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: What is wrong with the effective values of all that are added, one sentence; empty if nothing is.
    fault_of: Callable[[Mapping[str, str]], str] = _no_fault
    #: Beginnings of names that are only known with a plugin, and what to say where there is none.
    reserved: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: One item for each unknown name that may still be compared with all that are known; None: any number.
    suggestions: Iterator[int] | None = None
    #: All of them by name: Kafka's in the order of their names, then those that are added.
    known: Mapping[str, TopicConfig] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", {**TOPIC_CONFIGS, **self.added})

    def of_request(self) -> TopicConfigTable:
        """A table for one request, which is told what is near its unknown names some times only."""
        return replace(self, suggestions=iter(range(_SUGGESTIONS_MAX)))

    def value(self, name: str, overrides: Mapping[str, str]) -> str:
        """The value of one config: the topic's, else the broker's default, else its own. KeyError if unknown."""
        value = overrides.get(name)
        if value is None:
            value = self.defaults.get(name)
        return self.known[name].default if value is None else value

    def added_values(self, overrides: Mapping[str, str]) -> dict[str, str]:
        """The effective values of the configs that are added, by name."""
        return {name: self.value(name, overrides) for name in self.added}

    def validate(self, name: str, value: str | None) -> str:
        """``value`` as it is to be stored. Raises KafkaError INVALID_CONFIG with a sentence for the client."""
        config = self.known.get(name)
        if config is None:
            for beginning, why in self.reserved.items():
                if name.startswith(beginning):
                    raise KafkaError(ErrorCode.INVALID_CONFIG, f"{why}: name={name[:100]!r}")
            raise KafkaError(
                ErrorCode.INVALID_CONFIG, f"unknown topic config{self._hint(name[:100])} name={name[:100]!r}"
            )
        return _validated(config, value)

    def _hint(self, name: str) -> str:
        if self.suggestions is not None and next(self.suggestions, None) is None:
            return ""
        near = difflib.get_close_matches(name, self.known, n=1)
        return f", did you mean {near[0]}?" if near else ""

    def validate_all(self, configs: Mapping[str, str | None]) -> dict[str, str]:
        """All overrides of a new topic, checked and normalised. Raises KafkaError INVALID_CONFIG for a bad one."""
        valid = {name: self.validate(name, value) for name, value in configs.items()}
        self.check_together(valid, {})
        return valid

    def check_together(self, overrides: Mapping[str, str], before: Mapping[str, str]) -> None:
        """Raise KafkaError INVALID_CONFIG if configs differ from ``before`` and contradict each other."""
        if any(overrides.get(name) != before.get(name) for name in _LAGS):
            low, high = (int(self.value(name, overrides)) for name in _LAGS)
            if low > high:
                raise KafkaError(
                    ErrorCode.INVALID_CONFIG,
                    f"{_LAGS[0]} must not be above {_LAGS[1]}: min={low} max={high}",
                )
        if any(overrides.get(name) != before.get(name) for name in self.added):
            fault = self.fault_of(self.added_values(overrides))
            if fault:
                raise KafkaError(ErrorCode.INVALID_CONFIG, fault)


def split_list(value: str) -> list[str]:
    """The items of a list config, in order."""
    return [item for item in (part.strip() for part in value.split(",")) if item]


def effective_value(name: str, overrides: Mapping[str, str], defaults: Mapping[str, str]) -> str:
    """The value of one config: the topic's, else the broker's default, else Kafka's. KeyError if unknown."""
    value = overrides.get(name)
    if value is None:
        value = defaults.get(name)
    return TOPIC_CONFIGS[name].default if value is None else value


def effective_values(overrides: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The values of all configs, by name."""
    return {name: effective_value(name, overrides, defaults) for name in TOPIC_CONFIGS}


def _validated(config: TopicConfig, value: str | None) -> str:
    if value is None:
        raise KafkaError(ErrorCode.INVALID_CONFIG, f"topic config has no value: name={config.name}")
    value = value.strip()
    if config.type in {ConfigType.INT, ConfigType.LONG}:
        return _validated_number(config, value)
    if config.type is ConfigType.DOUBLE:
        return _validated_ratio(config, value)
    if config.type is ConfigType.BOOLEAN:
        value = value.lower()
    value = _validated_choice(config, value)
    if len(value) > _VALUE_CHARS_MAX:
        raise _invalid(config, value, f"it is longer than {_VALUE_CHARS_MAX}")
    return value


#: As Java reads them: int() also takes underscores and digits of other scripts. An int64 and its sign at the most.
_INTEGER: Final = re.compile(r"(?=.{1,20}$)[+-]?[0-9]+", re.ASCII)


def _validated_number(config: TopicConfig, value: str) -> str:
    number = int(value) if _INTEGER.fullmatch(value) else None
    if number is None:
        raise _invalid(config, value, "it is not an integer")
    if not config.low <= number <= config.high or number in config.excluded:
        why = config.refusal or f"it must be between {config.low} and {config.high}"
        if config.excluded:
            why += f" and not {', '.join(map(str, config.excluded))}"
        raise _invalid(config, value, why)
    return str(number)


#: As Java reads them: float() also takes underscores, digits of other scripts, and what isn't a number.
#: No part can be matched in two ways: of 32,000 digits all would be tried, for a minute.
_DECIMAL: Final = re.compile(
    r"([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]+)?)[fd]?", re.ASCII | re.IGNORECASE
)


def _validated_ratio(config: TopicConfig, value: str) -> str:
    found = _DECIMAL.fullmatch(value)
    ratio = float(found[1]) if found else -1.0
    if not 0 <= ratio <= 1:
        raise _invalid(config, value, "it must be a number between 0 and 1")
    return _ratio_as_java(ratio)


def _ratio_as_java(ratio: float) -> str:
    """The ratio as DescribeConfigs of Kafka shows it."""
    if not 0 < ratio < 0.001:
        return str(ratio)
    _, digits, _ = Decimal(str(ratio)).as_tuple()
    shown = "".join(map(str, digits))
    return f"{shown[0]}.{shown[1:] or '0'}E{Decimal(str(ratio)).adjusted()}"


def _validated_choice(config: TopicConfig, value: str) -> str:
    items = split_list(value) if config.is_list else [value]
    if config.is_list and config.choices and value and len(items) <= value.count(","):
        raise _invalid(config, value, "there is an empty item in the list")
    if config.pattern and not re.fullmatch(config.pattern, ",".join(items)):
        raise _invalid(config, value, "it must be '*' or a list of partition:broker, like 0:1,1:1")
    if config.choices:
        for item in items:
            if item not in config.choices:
                raise _invalid(
                    config, value, config.refusal or f"it must be one of {', '.join(config.choices)}"
                )
    if config.is_list and config.choices:
        items = list(dict.fromkeys(items))
    return ",".join(items)


def _invalid(config: TopicConfig, value: str, why: str) -> KafkaError:
    return KafkaError(
        ErrorCode.INVALID_CONFIG,
        f"invalid value of a topic config, {why}: name={config.name} value={value[:100]!r}",
    )
