"""Sizes that a plugin tells before it is opened."""

from __future__ import annotations

__all__ = ("check_memory", "told_sizes")

import re

from penstock.spi.plugin import PluginSizes
from penstock_conformance._env import Env


def told_sizes(env: Env) -> PluginSizes:
    """What the plugin under test tells of its settings; each size names the setting that decides."""
    settings = env.target.checked_settings(env.spec(), env.data_dir)
    told = env.spec().sizes(settings)
    for size in (told.entry, told.capacity, told.memory):
        assert size is None or re.split(r"[.\[]", size.setting)[0] in type(settings).model_fields, (
            f"sizes names a setting that there isn't: {size.setting!r}"
        )
    return told


def check_memory(env: Env, told: PluginSizes) -> None:
    """The plugin, which was opened just now, charges what it told."""
    if told.memory is not None:
        charged = env.account.statistics().used_bytes
        assert charged == told.memory.size, (
            f"sizes tells of {told.memory.size} bytes that are charged as long as it is open, and {charged} are"
        )
