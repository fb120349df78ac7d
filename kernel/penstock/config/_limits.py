"""Whether the settings fit each other: the configuration's side of :mod:`penstock.limits`."""

from __future__ import annotations

__all__ = ("check_limits", "plugin_limits", "settings_limits")

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from penstock.config._tree import Tree
from penstock.errors import ConfigError
from penstock.limits import Limit, refusals, written
from penstock.spi.kinds import ALLOCATOR
from penstock.spi.plugin import PluginSizes, SettingSize
from penstock.units import parse_size

#: Where the value of a dotted key was set, or None for its default.
PlaceOf: TypeAlias = Callable[[str], str | None]

#: Keys of the kernel that have relations, and how their values are written.
_KEYS = {
    "memory.limit": "size",
    "memory.reserve": "size",
    "listener.request_bytes_max": "size",
    "topics.partitions": "number",
    "topics.partitions_max": "number",
    "topics.message_bytes_max": "size",
    "groups.session_timeout_min": "duration",
    "groups.session_timeout_max": "duration",
    "groups.member_bytes_max": "size",
    "groups.memory_max": "size",
    "stream.upload_bytes": "size",
    "stream.append_in_flight_bytes_max": "size",
    "stream.fetch_in_flight_bytes_max": "size",
    "stream.block_bytes": "size",
    "lake.memory_max": "size",
}
#: Those whose 0 stands for what fits: there is nothing to compare.
_ZERO_IS_DERIVED = "groups.memory_max"


def settings_limits(tree: Tree, place_of: PlaceOf) -> dict[str, Limit]:
    """The limits that are known without plugins: the kernel's keys, and the limit that every allocator has."""
    limits: dict[str, Limit] = {}
    for key, unit in _KEYS.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(tree, section), name)
        if value or key != _ZERO_IS_DERIVED:
            limits[key] = Limit(value, key, written(value, unit), place_of(key), unit=unit)
    allocator = _allocator_limit(tree, place_of)
    if allocator is not None:
        limits[f"{ALLOCATOR.name}.limit"] = allocator
    return limits


def _allocator_limit(tree: Tree, place_of: PlaceOf) -> Limit | None:
    key = f"{ALLOCATOR.name}.limit"
    choice = tree.kinds[ALLOCATOR.name]
    if "limit" not in choice.settings:
        memory = tree.memory
        place = place_of("memory.limit") or place_of("memory.reserve")
        shown = written(memory.limit, "size")
        return Limit(memory.limit - memory.reserve, "memory.limit", shown, place, offset=memory.reserve)
    try:
        limit = parse_size(choice.settings["limit"])
    except ValueError:
        return None  # the allocator's own model says it better
    return Limit(limit, key, written(limit, "size"), place_of(key))


def plugin_limits(
    sizes: Mapping[str, PluginSizes], settings: Mapping[str, Any], place_of: PlaceOf
) -> dict[str, Limit]:
    """The limits that follow from plugins' settings: ``wal.entry``, ``wal.memory``, ``block_cache.capacity``..."""
    return {
        f"{kind}.{name}": _plugin_limit(kind, size, settings[kind], place_of)
        for kind, told in sizes.items()
        for name in ("entry", "capacity", "memory")
        if (size := getattr(told, name)) is not None
    }


def _plugin_limit(kind: str, size: SettingSize, settings: Any, place_of: PlaceOf) -> Limit:
    key = f"{kind}.{size.setting}"
    value = getattr(settings, size.setting, None)
    # a number of things has a ratio below one: the setting counts them, the size is their bytes
    unit = "number" if size.ratio < 1 else "size"
    shown = written(value, unit) if isinstance(value, int) else str(value)
    return Limit(size.size, key, shown, place_of(key), size.ratio, unit=unit)


def check_limits(limits: Mapping[str, Limit]) -> None:
    """Raises ConfigError for the first relation that doesn't hold."""
    for sentence in refusals(limits):
        raise ConfigError(sentence)
