"""Sizes that a plugin tells before it is opened."""

from __future__ import annotations

__all__ = ("told_sizes",)

from penstock.spi.plugin import PluginSizes
from penstock_conformance._env import Env


def told_sizes(env: Env) -> PluginSizes:
    """What the plugin under test tells of its settings; each size names the setting that decides."""
    settings = env.target.checked_settings(env.spec(), env.data_dir)
    told = env.spec().sizes(settings)
    for size in (told.entry, told.capacity, told.memory):
        assert size is None or size.setting in type(settings).model_fields, (
            f"sizes names a setting that there isn't: {size.setting!r}"
        )
    return told
