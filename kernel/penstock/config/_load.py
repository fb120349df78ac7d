"""The layers: TOML file < environment < ``--set`` < the program, then types, then combinations."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from penstock.config._check import (
    DEFAULT,
    Origin,
    Origins,
    dotted,
    nearest,
    origin_of,
    origin_of_table,
    path_of,
    refusal,
    unknown_key,
    validate,
)
from penstock.config._clouds import is_placeholder
from penstock.config._limits import check_limits, plugin_limits, settings_limits
from penstock.config._toml import parse_toml, parse_value
from penstock.config._tree import DEFAULT_PLUGINS, SECTIONS, PluginChoice, Tree
from penstock.errors import ConfigError
from penstock.limits import Limit
from penstock.spi.kinds import ALLOCATOR
from penstock.spi.plugin import PluginSizes
from penstock.spi.settings import Settings

_PREFIX = "PENSTOCK__"
#: Variables that Penstock reads and that are no configuration keys.
_OTHER_VARIABLES = ("PENSTOCK_LOAD_PLUGINS", "PENSTOCK_NATIVE", "PENSTOCK_TRACE_HOOKS")
#: Those of its test suite begin so.
_TEST_VARIABLES = ("PENSTOCK_TEST", "PENSTOCK_SIMULATION")


@dataclass(frozen=True, slots=True, eq=False)
class Config:
    """A checked configuration.

    ``tree`` holds the kernel's sections, typed, and for each plugin kind the selected plugin with its settings
    as written. The plugin's own model checks those when the plugin is selected.
    """

    tree: Tree
    origins: Origins
    #: The file that was read.
    path: Path | None = None

    def plugin_name(self, kind: str) -> str:
        """The plugin selected for ``kind``; empty if none is."""
        return self._choice(kind).plugin

    def plugin_settings(self, kind: str) -> dict[str, Any]:
        """The settings for that plugin, unchecked. The allocator's ``limit`` follows from ``[memory]`` if unset."""
        settings = dict(self._choice(kind).settings)
        if kind == ALLOCATOR.name:
            settings.setdefault("limit", self.tree.memory.limit - self.tree.memory.reserve)
        return settings

    def origin(self, key: str) -> Origin:
        """The place that the value of a dotted key came from; for a table, the places of all its keys."""
        path = path_of(key)
        if path == (ALLOCATOR.name, "limit") and path not in self.origins:
            return Origin("derived", "memory.limit - memory.reserve")
        return origin_of_table(path, self.origins)

    def limits(
        self, sizes: Mapping[str, PluginSizes] | None = None, settings: Mapping[str, Settings] | None = None
    ) -> dict[str, Limit]:
        """The settings that must fit each other (``penstock.limits``), by name.

        ``sizes`` and checked ``settings`` of plugins, by kind, add what these tell.
        """
        limits = settings_limits(self.tree, self._place_of)
        return limits | plugin_limits(sizes or {}, settings or {}, self._place_of)

    def check_filled_in(self) -> None:
        """Raise ConfigError if a plugin's setting still has what the templates of ``config init`` put there."""
        for kind, choice in self.tree.kinds.items():
            for path, value in _deep_leaves((kind,), choice.settings):
                if isinstance(value, str) and is_placeholder(value):
                    raise refusal(path, "is still the template's, put your own there", value, self.origins)

    def _place_of(self, key: str) -> str | None:
        origin = self.origin(key)
        return None if origin == DEFAULT else origin.place

    def _choice(self, kind: str) -> PluginChoice:
        assert kind in self.tree.kinds, f"no such plugin kind: {kind}"
        return self.tree.kinds[kind]


def load_config(
    path: str | Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    sets: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration from the TOML file at ``path``, the variables ``PENSTOCK__SECTION__KEY`` in ``env``,
    ``section.key=value`` in ``sets``, and ``overrides``, a later one winning over an earlier one.

    ``overrides`` maps dotted keys or sections to values, typed as in TOML: ``{"listener": {"bind": "..."}}`` or
    ``{"listener.bind": "..."}``; a path may be a ``pathlib.Path``. ``env`` is what the caller got from its
    surroundings; None reads nothing.

    Raises ConfigError: one sentence with the origin, the key, what is expected and the value.
    """
    layers = _Layers()
    if path is not None:
        layers.add_file(Path(path))
    layers.add_environment(env or {})
    layers.add_sets(sets)
    layers.add_overrides(overrides or {})
    tree = _build(layers.values, layers.origins)
    config = Config(tree=tree, origins=layers.origins, path=Path(path) if path is not None else None)
    _check_combinations(config)
    return config


class _Layers:
    """One merged document, with the origin of each key."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origins: dict[tuple[str, ...], Origin] = {}

    def add_file(self, path: Path) -> None:
        try:
            text = path.read_bytes().decode()
        except FileNotFoundError as error:
            raise ConfigError(f"configuration file not found: path={path}") from error
        except OSError as error:
            raise ConfigError(f"configuration file can't be read, {error.strerror}: path={path}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"configuration file isn't UTF-8 text: path={path} byte={error.start}"
            ) from error
        document, lines = parse_toml(text, str(path))
        for key_path, line in lines.items():
            self.origins[key_path] = Origin("file", f"{path}:{line}")
        for section, value in document.items():
            if not isinstance(value, dict):
                raise self._outside_section((section,), value)
            self.values[section] = value
            if section in SECTIONS or section in DEFAULT_PLUGINS:
                # a section that is begun here sets none of the keys that it doesn't have
                own = self.origins.pop((section,))
                for name in value:
                    self.origins.setdefault((section, name), own)  # of an inline table

    def add_environment(self, env: Mapping[str, str]) -> None:
        for name in sorted(env, key=_with_numbers):
            if name.upper().startswith(_PREFIX):
                path = tuple(name[len(_PREFIX) :].lower().split("__"))
                if not all(path):
                    raise ConfigError(
                        f"{name}: not a configuration variable, write it like PENSTOCK__LISTENER__BIND"
                    )
                self._put(path, env[name], Origin("environment", name))

    def add_sets(self, sets: Sequence[str]) -> None:
        for item in sets:
            key, equals, value = item.partition("=")
            path = path_of(key.strip())
            if not equals or not all(path):
                raise ConfigError(
                    f"--set takes section.key=value, like listener.bind=127.0.0.1:9092: got={item!r}"
                )
            self._put(path, value, Origin("set", f"--set {key.strip()}"))

    def add_overrides(self, overrides: Mapping[str, Any]) -> None:
        program = Origin("program", "the program")
        if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
            raise ConfigError(
                f"{program.place}: overrides must be a mapping from keys like 'listener.bind' to values"
            )
        for key, value in overrides.items():
            path = path_of(key)
            for inner_path, inner in _leaves(path, value) if len(path) == 1 else iter([(path, value)]):
                self._put(inner_path, fspath(inner) if isinstance(inner, PathLike) else inner, program)

    def _put(self, path: tuple[str, ...], value: Any, origin: Origin) -> None:
        self.origins = {known: place for known, place in self.origins.items() if known[: len(path)] != path}
        self.origins[path] = origin
        if len(path) < 2:
            raise self._outside_section(path, value)
        # Below a plugin's key no type is known, for instance in fsspec's options: there text is read as in TOML.
        new = parse_value(value) if origin.is_text and len(path) > 2 else value
        node: Any = self.values
        for at, (name, follower) in enumerate(pairwise(path), 1):
            inner = self._held(node, path[:at], value)
            if isinstance(inner, str) and origin_of(path[:at], self.origins).is_text:
                inner = parse_value(inner)  # a table or list that an earlier layer gave in one go
            if inner is None:
                inner = [] if follower == "0" else {}
            if not isinstance(inner, dict | list):
                raise unknown_key(path, (), value, self.origins)
            self._keep(node, name, inner := inner.copy())  # what a program handed in isn't ours to change
            node = inner
        self._held(node, path, value)
        self._keep(node, path[-1], new)

    def _held(self, node: dict[str, Any] | list[Any], path: tuple[str, ...], value: Any) -> Any:
        """The value at the end of ``path``, of which ``node`` is the last container; None if there is none."""
        if isinstance(node, dict):
            return node.get(path[-1])
        if not path[-1].isdecimal() or int(path[-1]) > len(node):
            problem = f"isn't in the list {dotted(path[:-1])}, which has {len(node)} entries, counted from 0"
            raise refusal(path, problem, value, self.origins)
        return node[int(path[-1])] if int(path[-1]) < len(node) else None

    @staticmethod
    def _keep(node: dict[str, Any] | list[Any], name: str, value: Any) -> None:
        if isinstance(node, dict):
            node[name] = value
        else:
            node[int(name) : int(name) + 1] = [value]

    def _outside_section(self, path: tuple[str, ...], value: Any) -> ConfigError:
        if path[0] in SECTIONS or path[0] in DEFAULT_PLUGINS:
            return refusal(path, "is a section, give it keys", value, self.origins)
        if nearest(path[0], known_keys()) is None:
            return unknown_key(path, [*SECTIONS, *DEFAULT_PLUGINS], value, self.origins)
        return unknown_key(path, known_keys(), value, self.origins)


def plugin_values(kind: str, sets: Mapping[str, str]) -> tuple[dict[str, Any], Origins]:
    """The settings of one plugin from what was said by ``--set``, without the kind; ``options.key`` is in a table."""
    layers = _Layers()
    for key, value in sets.items():
        path = path_of(key)
        if not all(path):
            raise ConfigError(f"--set takes key=value, a setting of the plugin: got={f'{key}={value}'!r}")
        layers._put((kind, *path), value, Origin("set", f"--set {key}"))
    return layers.values.get(kind, {}), layers.origins


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """One sentence for each variable in ``env`` that looks like one of Penstock's and is none.

    ``PENSTOCK__SECTION__KEY`` isn't looked at here: ``load_config`` refuses such a variable if its key is unknown.
    """
    sentences = []
    for name in sorted(env):
        if not name.upper().startswith("PENSTOCK_") or name.upper().startswith(_PREFIX):
            continue
        if name in _OTHER_VARIABLES or name.startswith(_TEST_VARIABLES):
            continue
        variables = {f"{_PREFIX}{key.upper().replace('.', '__')}": key for key in known_keys()}
        meant = {variable.replace("__", "_"): variable for variable in variables}
        near = meant.get(name.upper()) or nearest(name.upper(), [*variables, *_OTHER_VARIABLES], cutoff=0.75)
        advice = f"the nearest is {near}" if near else "keys are written PENSTOCK__SECTION__KEY"
        sentences.append(f"{name} is set, but no variable of that name is read, {advice}")
    return sentences


def _with_numbers(name: str) -> list[tuple[int, str]]:
    """To sort names with numbers in them: 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in name.split("__")]


def _leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The keys of one section; anything deeper is the value of its key."""
    if isinstance(value, Mapping) and len(path) == 1:
        for name, inner in value.items():
            yield (*path, name), inner
    else:
        yield path, value


def _deep_leaves(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All values in tables and lists, however deep."""
    inner: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    else:
        yield path, value
        return
    for name, each in inner:
        yield from _deep_leaves((*path, str(name)), each)


def known_keys() -> list[str]:
    """All dotted keys of the kernel, and ``plugin`` of each kind."""
    keys = [f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields]
    return keys + [f"{kind}.plugin" for kind in DEFAULT_PLUGINS]


def _build(values: Mapping[str, Any], origins: Origins) -> Tree:
    for section, value in values.items():
        if section not in SECTIONS and section not in DEFAULT_PLUGINS:
            raise _unknown_section(section, value, origins)
    fields: dict[str, Any] = {}
    for section, model in SECTIONS.items():
        fields[section] = validate(model, values.get(section, {}), section, origins)
    kinds: dict[str, PluginChoice] = {}
    for kind, default in DEFAULT_PLUGINS.items():
        settings = dict(values.get(kind, {}))
        name = settings.pop("plugin", default)
        if not isinstance(name, str) or (not name and default):
            raise refusal((kind, "plugin"), "must be the name of a plugin", name, origins)
        if not name and settings:
            key, value = next(iter(settings.items()))
            raise refusal((kind, key), f"is a setting of a plugin, name it in {kind}.plugin", value, origins)
        kinds[kind] = PluginChoice(plugin=name, settings=settings)
    return Tree.model_construct(**fields, kinds=kinds)


def _unknown_section(section: str, value: Mapping[str, Any], origins: Origins) -> ConfigError:
    """Name the first key in it, since that is what has an origin that people can find."""
    name = next(iter(value), None)
    if name is None:
        return unknown_key((section,), [*SECTIONS, *DEFAULT_PLUGINS], {}, origins)
    key = f"{section}.{name}"
    if nearest(key, known_keys()) or nearest(name, [known.rpartition(".")[2] for known in known_keys()]):
        return unknown_key((section, name), known_keys(), value[name], origins)
    sections = ", ".join(sorted([*SECTIONS, *DEFAULT_PLUGINS]))
    problem = f"is no configuration key, there is no section {section}, the sections are {sections}"
    return refusal((section, name), problem, value[name], origins)


def split_address(text: str) -> tuple[str, int]:
    """``host:port`` or ``[ipv6]:port``. Raises ValueError that says how to write it."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
        ipaddress.IPv6Address(host)
    if not colon or not host or not port.isdecimal() or int(port) > 65535 or (":" in host and not bracketed):
        raise ValueError("write it like 127.0.0.1:9092 or [::1]:9092")
    return host, int(port)


def _check_combinations(config: Config) -> None:
    tree, origins = config.tree, config.origins
    for name, address in (("bind", tree.listener.bind), ("advertised", tree.listener.advertised)):
        if address is not None:
            try:
                split_address(address)
            except ValueError as error:
                problem = "must be host:port, like 127.0.0.1:9092 or [::1]:9092"
                raise refusal(("listener", name), problem, address, origins) from error
    check_limits(config.limits())
