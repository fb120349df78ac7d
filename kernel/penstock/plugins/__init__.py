"""Finding, checking and selecting plugins.

Where plugins come from, first to last: the entry-point group ``penstock.plugins`` (in-tree plugins use it too),
``--plugins-dir`` and ``-p MODULE``. Entry points are only listed at start; one is imported when the
configuration selects it, when ``plugins.load`` names it (observers), or when somebody asks for all. What
``--plugins-dir`` and ``-p`` name is imported at once. ``PENSTOCK_LOAD_PLUGINS="a,b"`` hides every other entry
point (empty: all of them).
"""

from __future__ import annotations

__all__ = (
    "ENTRY_POINT_GROUP",
    "LOAD_VARIABLE",
    "OBSERVER",
    "NestedPlugin",
    "NestedPlugins",
    "Opened",
    "TRACE_VARIABLE",
    "PluginInfo",
    "PluginOpener",
    "PluginRegistry",
    "Selection",
    "check_combination",
    "missing_dependency",
    "observer_hooks",
    "validate_settings",
)

from penstock.plugins._checks import check_combination, validate_settings
from penstock.plugins._discovery import ENTRY_POINT_GROUP, missing_dependency
from penstock.plugins._nested import NestedPlugin, NestedPlugins, Opened
from penstock.plugins._opening import PluginOpener
from penstock.plugins._registry import (
    LOAD_VARIABLE,
    OBSERVER,
    TRACE_VARIABLE,
    PluginInfo,
    PluginRegistry,
    Selection,
    observer_hooks,
)
