"""The configuration told to people: each key with value, origin and meaning; the template; the reference."""

from __future__ import annotations

__all__ = (
    "ExplainedKey",
    "Origin",
    "Origins",
    "SettingsModels",
    "explain",
    "format_value",
    "init_template",
    "key_rows",
    "reference_markdown",
)

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from penstock.config._check import (
    DEFAULT,
    Origin,
    Origins,
    dotted,
    expectation,
    field_format,
    is_secret,
    nearest,
    path_of,
    plain_type,
    redact,
)
from penstock.config._clouds import CLOUDS
from penstock.config._load import Config
from penstock.config._tree import DEFAULT_PLUGINS, SECTIONS
from penstock.errors import ConfigError
from penstock.spi.kinds import KINDS, LAKE_COMPACTOR, OBJECT_STORE, WAL
from penstock.spi.settings import PluginTable, Settings, plugin_tables
from penstock.units import format_duration, format_size

#: Names of the keys that a piece of a template sets.
_ACTIVE = re.compile(r"^(\w+)[\w.]* = ", re.MULTILINE)
#: The plugin that it chooses.
_CHOSEN = re.compile(r'^plugin = "(\w+)"', re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedKey:
    """One row of ``penstock config explain``; secrets in ``value`` are masked."""

    key: str
    value: str
    origin: str
    description: str


class SettingsModels(Protocol):
    """The part of the plugin registry that ``explain`` needs."""

    def settings_model(self, kind: str, name: str) -> type[Settings]:
        """The config model of a plugin. Raises PluginError if there is no such plugin."""

    def validate_plugin_settings(self, config: Config, kind: str) -> Settings:
        """The settings of the selected plugin, checked. Raises ConfigError or PluginError."""

    def validate_nested_settings(
        self, config: Config, kind: str, table: PluginTable, path: tuple[str, ...]
    ) -> Mapping[tuple[str, ...], tuple[str, Settings]]:
        """Plugin and settings of a table within a plugin's, by path: its own, and its store's if it names one."""


def explain(config: Config, models: SettingsModels, key: str | None = None) -> list[ExplainedKey]:
    """A row for every key, or for ``key``, or for all keys of the section or table ``key``.

    Raises ConfigError when there is no such key, naming the nearest; PluginError when a selected plugin can't
    be loaded.
    """
    key = None if key is None else dotted(path_of(key))
    section = None if key is None else key.partition(".")[0]
    rows = [
        row
        for row in _rows(config, models, section)
        if key in (None, section, row.key) or row.key.startswith((f"{key}.", f"{key}["))
    ]
    if key is not None and not rows:
        near = nearest(key, [row.key for row in _rows(config, models, None)])
        advice = f"the nearest is {near}" if near else "see penstock config explain for all of them"
        raise ConfigError(f"there is no such configuration key, {advice}: key={key}")
    return rows


def _rows(config: Config, models: SettingsModels, only: str | None) -> Iterator[ExplainedKey]:
    for section, model in SECTIONS.items():
        if only not in (None, section):
            continue
        yield from _model_rows(config, (section,), model, getattr(config.tree, section))
    for kind in DEFAULT_PLUGINS:
        if only not in (None, kind):
            continue
        name = config.plugin_name(kind)
        settings = models.validate_plugin_settings(config, kind) if name else Settings()
        yield from _plugin_rows(config, models, (kind,), name, KINDS[kind].meaning, settings)


def _plugin_rows(
    config: Config,
    models: SettingsModels,
    path: tuple[str, ...],
    plugin: str,
    meaning: str,
    settings: Settings,
) -> Iterator[ExplainedKey]:
    """The rows of a plugin's table, and of the tables of other plugins in it."""
    key = dotted((*path, "plugin"))
    yield ExplainedKey(key=key, value=plugin, origin=config.origin(key).place, description=meaning)
    yield from _model_rows(config, path, type(settings), settings)
    for inner, table in plugin_tables(settings):
        meaning = type(settings).model_fields[inner[0]].description or ""
        found = models.validate_nested_settings(config, table.kind, table, (*path, *inner))
        for inner_path, (name, inner_settings) in found.items():
            yield from _plugin_rows(config, models, inner_path, name, meaning, inner_settings)


def _model_rows(
    config: Config, within: tuple[str, ...], model: type[Settings], values: Settings
) -> Iterator[ExplainedKey]:
    nested = {path[0] for path, _ in plugin_tables(values)}
    for name, field in model.model_fields.items():
        value = getattr(values, name)
        path = (*within, name)
        if name in nested:
            continue  # a row for each key of each table, instead
        if isinstance(value, Mapping) and value:
            # each key of a table may come from another place, and only some of them are secrets
            for leaf, inner in _leaves(path, value):
                yield _row(config, leaf, None, redact(leaf, inner), field.description)
        else:
            shown = "***" if is_secret(field) and value else redact(path, value)
            row = _row(config, path, field, shown, field.description)
            # what a table within a plugin's doesn't say has no place, and its table's would be taken for it
            is_default = len(within) > 1 and name not in values.model_fields_set
            yield replace(row, origin=DEFAULT.place) if is_default else row


def _leaves(path: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves((*path, name), value)
        else:
            yield (*path, name), value


def _row(
    config: Config, path: tuple[str, ...], field: FieldInfo | None, shown: Any, description: str | None
) -> ExplainedKey:
    key = dotted(path)
    return ExplainedKey(
        key=key,
        value=format_value(field, shown),
        origin=config.origin(key).place,
        description=description or "",
    )


def format_value(field: FieldInfo | None, value: Any) -> str:
    """``value`` as it may be written in TOML, without the quotes of a plain string."""
    if value is None:
        return "unset"
    text = toml_value(field, value)
    return text[1:-1] if text.startswith('"') else text


def toml_value(field: FieldInfo | None, value: Any) -> str:
    """``value`` as TOML."""
    written = field_format(field) if field is not None else None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and written is not None:
        if value == -1:
            return '"-1"' if written == "duration" else "-1"
        return json.dumps(format_duration(value) if written == "duration" else _exact_size(value))
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple | set | frozenset):
        return "[" + ", ".join(toml_value(None, item) for item in value) + "]"
    if isinstance(value, Mapping):
        inner = ", ".join(
            f"{json.dumps(str(name))} = {toml_value(None, item)}" for name, item in value.items()
        )
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, BaseModel):
        return toml_value(None, value.model_dump())
    return json.dumps(str(value), ensure_ascii=False)


def _exact_size(size: int) -> str:
    """The size in a unit that loses nothing."""
    text = format_size(size)
    return text if "." not in text else str(size)


def default_of(field: FieldInfo) -> Any:
    """The default of a field as its author wrote it; ``PydanticUndefined`` when the key is required."""
    return field.get_default(call_default_factory=True, validated_data={})


def key_rows(model: type[Settings]) -> list[tuple[str, str, str, str]]:
    """(key, type, default, description) of each key of a model, for people."""
    rows = []
    for name, field in model.model_fields.items():
        default = default_of(field)
        shown = "required" if default is PydanticUndefined else format_value(field, default)
        rows.append((name, expectation(field), shown, field.description or ""))
    return rows


_EXAMPLES: dict[Any, Any] = {bool: False, int: 1, float: 1.0, str: "", dict: {}, list: []}

_TEMPLATE_HEAD = """\
# Configuration of a Penstock broker that {keeps}.
#
# Every key is here, with its default commented out (or an example where there is none). A key can also be
# given by a variable, PENSTOCK__SECTION__KEY, and on the command line, --set section.key=value; the command line
# wins over variables, and they win over this file. Check with: penstock config check -c FILE
"""


def init_template(cloud: str = "local", models: SettingsModels | None = None) -> str:
    """A TOML file with every key, its meaning above it; what isn't at its default for ``cloud`` isn't commented out.

    It loads as it is. With ``models``, the keys of the default plugins are in it too.
    Raises ConfigError when there is no template for ``cloud``.
    """
    if cloud not in CLOUDS:
        raise ConfigError(
            f"there is no template for this cloud, those there are: {', '.join(CLOUDS)}: cloud={cloud!r}"
        )
    place = CLOUDS[cloud]
    parts = [_TEMPLATE_HEAD.format(keeps=place.keeps)]
    for section, model in SECTIONS.items():
        parts.append(f"\n# {(model.__doc__ or '').strip()}\n[{section}]\n")
        parts.extend(_template_keys(model))
    for kind, name in DEFAULT_PLUGINS.items():
        optional = "" if name else " None is taken unless it is named."
        parts.append(f"\n# {KINDS[kind].meaning}{optional}\n[{kind}]\n# plugin = {json.dumps(name)}\n")
        active = {OBJECT_STORE.name: place.store, WAL.name: place.wal, LAKE_COMPACTOR.name: place.lake}.get(
            kind, ""
        )
        parts.append(active)
        if models is not None and name:
            chosen = _CHOSEN.search(active)
            model = models.settings_model(kind, name if chosen is None else chosen[1])
            parts.extend(_template_keys(model, but=frozenset(_ACTIVE.findall(active))))
    return "".join(parts)


def _example(field: FieldInfo) -> Any:
    """A value of the right type for a key without default: its author's example if there is one."""
    if field.examples:
        return field.examples[0]
    written = field_format(field)
    if written is not None:
        return "1s" if written == "duration" else "1MiB"
    return _EXAMPLES.get(plain_type(field.annotation), "")


def _template_keys(model: type[Settings], but: frozenset[str] = frozenset()) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if name in but:
            continue
        value = default_of(field)
        note = ""
        if value is None or value is PydanticUndefined:
            note = " (no default; an example)" if value is None else " (required)"
            value = _example(field)
        yield f"# {field.description or name}{note}\n# {name} = {toml_value(field, value)}\n"


def reference_markdown() -> str:
    """The tables of docs/configuration.md."""
    parts = []
    for section, model in SECTIONS.items():
        parts.append(f"### [{section}]\n\n{(model.__doc__ or '').strip()}\n\n")
        parts.append("| key | value | default | meaning |\n|---|---|---|---|\n")
        parts.extend(
            f"| `{name}` | {kind} | `{default}` | {text} |\n" for name, kind, default, text in key_rows(model)
        )
        parts.append("\n")
    parts.append("### Plugin sections\n\n| section | default `plugin` | what it is |\n|---|---|---|\n")
    parts.extend(
        f"| `[{kind}]` | {f'`{name}`' if name else 'none'} | {KINDS[kind].meaning} |\n"
        for kind, name in DEFAULT_PLUGINS.items()
    )
    return "".join(parts)
