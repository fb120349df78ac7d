"""The topic configs of lake tables: the kernel's own, and those of the compactor. Pure."""

from __future__ import annotations

__all__ = ("LAKE_PREFIX", "MAINTENANCE_REQUEST", "TableConfigs", "topic_config_table")

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from penstock.errors import ConfigError
from penstock.log.errors import KafkaError
from penstock.log.topic_config import ConfigType, TopicConfig, TopicConfigTable
from penstock.spi.lake import LakeCompactorSpec, LakeTopicConfig

#: What all of them begin with, for Kafka's tools.
LAKE_PREFIX: Final = "penstock.lake."
#: What asks the owner of a table for maintenance: a number above those that were answered.
MAINTENANCE_REQUEST: Final = LAKE_PREFIX + "maintenance.request"
_ENABLE: Final = LAKE_PREFIX + "enable"
_INTERVAL: Final = LAKE_PREFIX + "commit.interval.ms"
_BYTES: Final = LAKE_PREFIX + "commit.bytes"
_GAP: Final = LAKE_PREFIX + "gap"

_OWN: Final = (
    TopicConfig(
        name=_ENABLE,
        type=ConfigType.BOOLEAN,
        default="false",
        doc="Whether the topic is also a table in the lake.",
        choices=("true", "false"),
    ),
    TopicConfig(
        name=_INTERVAL,
        type=ConfigType.LONG,
        default="60000",
        doc="Records are in the table after so many milliseconds, and some seconds.",
        low=100,
        high=7 * 24 * 60 * 60 * 1000,
    ),
    TopicConfig(
        name=_BYTES,
        type=ConfigType.LONG,
        default=str(128 * 2**20),
        doc="So many bytes of records are committed without waiting for the interval.",
        low=1,
        high=64 * 2**30,
    ),
    TopicConfig(
        name=_GAP,
        type=ConfigType.STRING,
        default="stop",
        doc="What to do if records were deleted before they were in the table: stop, or skip them.",
        choices=("stop", "skip"),
    ),
    TopicConfig(
        name=MAINTENANCE_REQUEST,
        type=ConfigType.LONG,
        default="0",
        doc="A number above all before asks for maintenance of the table, once; penstock lake maintain sets it.",
        low=0,
    ),
)
_TYPES: Final = {
    "boolean": ConfigType.BOOLEAN,
    "int": ConfigType.INT,
    "long": ConfigType.LONG,
    "list": ConfigType.LIST,
    "string": ConfigType.STRING,
}
_ABSENT: Final = "this broker makes no tables, name a plugin in lake_compactor.plugin of its configuration"


@dataclass(frozen=True, slots=True)
class TableConfigs:
    """The effective configs of one topic."""

    is_enabled: bool
    commit_interval_s: float
    commit_bytes: int
    #: Records that were deleted before they were in the table are passed over.
    skips_gaps: bool
    #: Maintenance is wanted if this is above what the newest one answered.
    maintenance_request: int
    #: The compactor's own, under the names of ``LakeCompactorSpec.topic_configs``.
    own: Mapping[str, str]

    @classmethod
    def of(cls, values: Mapping[str, str]) -> TableConfigs:
        """From ``TopicConfigTable.added_values``."""
        kernels = {config.name for config in _OWN}
        return cls(
            is_enabled=values.get(_ENABLE) == "true",
            commit_interval_s=int(values[_INTERVAL]) / 1000,
            commit_bytes=int(values[_BYTES]),
            skips_gaps=values[_GAP] == "skip",
            maintenance_request=int(values[MAINTENANCE_REQUEST]),
            own=_own(values, kernels),
        )


def _own(values: Mapping[str, str], kernels: set[str]) -> dict[str, str]:
    return {
        name.removeprefix(LAKE_PREFIX): value
        for name, value in values.items()
        if name not in kernels and name.startswith(LAKE_PREFIX)
    }


def topic_config_table(
    spec: LakeCompactorSpec[Any] | None,
    lake_defaults: Mapping[str, object],
    broker_defaults: Mapping[str, str],
) -> TopicConfigTable:
    """The topic configs that a broker with this compactor knows.

    ``lake_defaults`` are those of ``lake.defaults`` in the configuration. Raises ConfigError if one of them isn't
    valid, or if there is one and no compactor.
    """
    if spec is None:
        if lake_defaults:
            raise ConfigError(
                f"lake.defaults is for tables, and {_ABSENT}: names={', '.join(sorted(lake_defaults))}"
            )
        return TopicConfigTable(defaults=broker_defaults, reserved=MappingProxyType({LAKE_PREFIX: _ABSENT}))
    configs = [*_OWN, *(_topic_config(config) for config in spec.topic_configs)]
    added = {config.name: config for config in sorted(configs, key=lambda config: config.name)}
    if len(added) < len(configs):
        raise ConfigError(
            f"a lake compactor has a topic config twice, or one of the kernel's: plugin={spec.name}"
        )
    kernels = {config.name for config in _OWN}

    def fault_of(values: Mapping[str, str]) -> str:
        return spec.fault_of(_own(values, kernels))

    plain = TopicConfigTable(added=added, defaults=broker_defaults, fault_of=fault_of)
    defaults = dict(broker_defaults)
    try:
        for name, value in lake_defaults.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            defaults[LAKE_PREFIX + name] = plain.validate(LAKE_PREFIX + name, text)
    except KafkaError as error:
        raise ConfigError(f"lake.defaults has what a topic can't have: {error}") from error
    table = TopicConfigTable(added=added, defaults=defaults, fault_of=fault_of)
    fault = fault_of(table.added_values({}))
    if fault:
        raise ConfigError(f"lake.defaults contradict each other, or what they leave at its default: {fault}")
    return table


def _topic_config(config: LakeTopicConfig) -> TopicConfig:
    choices = ("true", "false") if config.type == "boolean" else config.choices
    return TopicConfig(
        name=LAKE_PREFIX + config.name,
        type=_TYPES[config.type],
        default=config.default,
        doc=config.doc,
        choices=choices,
        high=2**31 - 1 if config.type == "int" else 2**63 - 1,
    )
