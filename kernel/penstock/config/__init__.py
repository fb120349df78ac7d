"""The configuration of a broker: one typed tree from a TOML file, the environment and the command line.

This package and :mod:`penstock.plugins` are the only places where layers are merged; everything below gets
typed settings. The environment is handed in by whoever builds the broker.
"""

from __future__ import annotations

__all__ = (
    "DEFAULT",
    "DEFAULT_PLUGINS",
    "SECTIONS",
    "Config",
    "ExplainedKey",
    "Origin",
    "Origins",
    "PluginChoice",
    "SettingsModels",
    "Tree",
    "check_limits",
    "dotted",
    "explain",
    "init_template",
    "is_secret",
    "key_rows",
    "known_keys",
    "load_config",
    "nearest",
    "origin_of",
    "plugin_values",
    "reference_markdown",
    "split_address",
    "unknown_variables",
    "validate",
)

from penstock.config._check import DEFAULT, Origin, Origins, dotted, is_secret, nearest, origin_of, validate
from penstock.config._explain import (
    ExplainedKey,
    SettingsModels,
    explain,
    init_template,
    key_rows,
    reference_markdown,
)
from penstock.config._limits import check_limits
from penstock.config._load import (
    Config,
    known_keys,
    load_config,
    plugin_values,
    split_address,
    unknown_variables,
)
from penstock.config._tree import DEFAULT_PLUGINS, SECTIONS, PluginChoice, Tree
