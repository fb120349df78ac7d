"""The contracts of Penstock, one module per plugin kind: all that a plugin may import.

A plugin implements one of the Protocols in here and registers a spec (:mod:`penstock.spi.plugin`) through
the hook of its kind (:mod:`penstock.hookspecs`). What crosses the boundary is typed and documented here.

``SPI_VERSION`` grows by one when a contract changes in a way that an existing plugin notices; the kernel
speaks the versions from ``SPI_VERSION_MIN`` on, and refuses a plugin that was written for another one.
"""

from __future__ import annotations

__all__ = (
    "SPI_VERSION",
    "SPI_VERSION_MIN",
    "Buffer",
    "ChosenPlugin",
    "Duration",
    "FencedWords",
    "PluginSizes",
    "PluginSpec",
    "PluginTable",
    "Services",
    "SettingSize",
    "Settings",
    "Size",
)

from penstock.spi.plugin import (
    SPI_VERSION,
    SPI_VERSION_MIN,
    Buffer,
    ChosenPlugin,
    FencedWords,
    PluginSizes,
    PluginSpec,
    Services,
    SettingSize,
)
from penstock.spi.settings import Duration, PluginTable, Settings, Size
