"""The plugin under test and its settings, in a form that child processes get too."""

from __future__ import annotations

__all__ = ("KINDS", "STRATEGY", "SUITE_VERSION", "Target")

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import penstock
from penstock.config import DEFAULT, Config, explain, is_secret, load_config, plugin_values
from penstock.plugins import PluginInfo, PluginRegistry, validate_settings
from penstock.spi import kinds
from penstock.spi.plugin import SPI_VERSION, PluginSpec
from penstock.spi.settings import Settings
from penstock_conformance._catalogue import LEVELS

#: Grows with each change that could turn a pass into a fail or the other way round.
SUITE_VERSION = "12"

#: Plugin kinds; the clauses of each are in ``test_<kind>.py`` and ``test_<kind>_*.py``.
KINDS = tuple(kinds.KINDS)

#: The kind of a whole broker on the plugins that a configuration selects.
STRATEGY = "strategy"

#: No clause waits for members of a group that might come.
_DEFAULTS = {"groups.initial_rebalance_delay": "0ms"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The plugin under test and how deep to go.

    ``settings`` are texts as after ``--set``; those of a strategy are keys of the configuration (``wal.path``) on top
    of the file ``config``, and its ``plugin`` is only a name. ``object_store`` and ``allocator`` name plugins that
    serve the plugin under test, the former with ``object_store_settings``; empty stands for the suite's. ``rounds``
    multiplies the work of the race and crash clauses. Everything random comes from ``seed``. Data directories are
    made in ``work_dir``, which so decides what the medium is; empty stands for the system's place for temporary
    files.
    """

    kind: str
    plugin: str
    config: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    plugins_dirs: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    object_store: str = ""
    object_store_settings: Mapping[str, str] = field(default_factory=dict)
    allocator: str = ""
    levels: tuple[int, ...] = tuple(LEVELS)
    rounds: int = 1
    seed: int = 0
    deadline_s: float = 20.0
    work_dir: str = ""

    def to_json(self) -> str:
        """For a child process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Target:
        """The inverse of :meth:`to_json`."""
        fields = json.loads(text)
        for name in ("plugins_dirs", "modules", "levels"):
            fields[name] = tuple(fields[name])
        return cls(**fields)

    def registry(self) -> PluginRegistry:
        """The plugins that the target can come from. Raises PluginError."""
        return PluginRegistry(env=os.environ, plugins_dirs=self.plugins_dirs, modules=self.modules)

    def checked_settings(
        self, spec: PluginSpec[Any, Any], data_dir: Path, overrides: Mapping[str, str] | None = None
    ) -> Settings:
        """The settings of the plugin under test, ``{dir}`` standing for ``data_dir``. Raises ConfigError."""
        values = {
            key: value.replace("{dir}", str(data_dir))
            for key, value in {**self.settings, **(overrides or {})}.items()
        }
        return validate_settings(spec, *plugin_values(spec.kind, values))

    def store_settings(self, spec: PluginSpec[Any, Any], data_dir: Path) -> Settings:
        """The settings of the plugin that serves as object store, likewise. Raises ConfigError."""
        values = {
            key: value.replace("{dir}", str(data_dir)) for key, value in self.object_store_settings.items()
        }
        return validate_settings(spec, *plugin_values(spec.kind, values))

    def broker_config(
        self,
        data_dir: Path,
        overrides: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> Config:
        """The configuration of a strategy's broker, ``{dir}`` standing for ``data_dir``. Raises ConfigError.

        ``defaults`` hold where the user has set nothing.
        """
        sets = [f"{key}={value.replace('{dir}', str(data_dir))}" for key, value in self.settings.items()]
        ours: dict[str, Any] = dict(overrides or {})
        config = load_config(self.config or None, env=os.environ, sets=sets, overrides=ours)
        unset = {
            key: value
            for key, value in (_DEFAULTS | dict(defaults or {})).items()
            if config.origin(key) == DEFAULT
        }
        return load_config(self.config or None, env=os.environ, sets=sets, overrides=unset | ours)

    def effective_settings(self, registry: PluginRegistry) -> Mapping[str, Any]:
        """All settings that count, with defaults. Raises PluginError or ConfigError when it can't be tried."""
        if self.kind != STRATEGY:
            return self.checked_settings(registry.select(self.kind, self.plugin), Path()).model_dump(
                mode="json"
            )
        config = self.broker_config(Path("DIR"))
        names = registry.select_all(config).names  # also checks that all of it fits together
        plugins = {f"{kind}.plugin": name for kind, name in names.items()}
        return plugins | {row.key: row.value for row in explain(config, registry)}

    def secrets(self, registry: PluginRegistry) -> frozenset[str]:
        """The keys of ``settings`` that the plugin marks as secret. Raises PluginError."""
        if self.kind == STRATEGY:
            rows = explain(self.broker_config(Path("DIR")), registry)
            return frozenset(row.key for row in rows if row.value.strip('"') == "***")
        fields = registry.select(self.kind, self.plugin).settings.model_fields
        return frozenset(key for key, field in fields.items() if is_secret(field))

    def deadline_of(self, level: int) -> float:
        """Seconds for a clause of this level; races, crashes and faults do the same many times."""
        return self.deadline_s * (3 * self.rounds if level > 1 else 1)

    def info(self, registry: PluginRegistry) -> PluginInfo:
        """Name, version and capabilities of the plugin under test. Raises PluginError."""
        if self.kind == STRATEGY:
            names = registry.select_all(self.broker_config(Path("DIR"))).names
            return PluginInfo(
                name=self.plugin,
                kind=STRATEGY,
                version=penstock.__version__,
                spi_version=SPI_VERSION,
                capabilities={},
                origin=self.config or "the default configuration",
                summary=", ".join(f"{kind} {name}" for kind, name in names.items()),
            )
        spec = registry.select(self.kind, self.plugin)
        return next(info for info in registry.infos() if (info.kind, info.name) == (spec.kind, spec.name))
