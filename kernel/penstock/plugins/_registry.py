"""The registry: loads modules into pluggy, keeps their specs, selects, and tells observers."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

import pluggy

from penstock import hookspecs
from penstock.bus import EventBus
from penstock.config import Config, check_limits, nearest, origin_of
from penstock.errors import PluginError, kept
from penstock.plugins._checks import (
    capabilities_of,
    check_combination,
    check_key_prefixes,
    check_spec,
    validate_settings,
)
from penstock.plugins._discovery import (
    entry_point_origin,
    entry_point_version,
    entry_points,
    import_path,
    import_plugin,
)
from penstock.plugins._nested import NestedPlugin, NestedPlugins
from penstock.spi.kinds import KINDS, OBJECT_STORE, REGISTER
from penstock.spi.plugin import SPI_VERSION, PluginSpec
from penstock.spi.settings import PluginTable, Settings

LOAD_VARIABLE = "PENSTOCK_LOAD_PLUGINS"
TRACE_VARIABLE = "PENSTOCK_TRACE_HOOKS"
#: What ``plugins list`` shows as the kind of a plugin that only observes.
OBSERVER = "observer"

_OBSERVE = "penstock_on_"
logger = logging.getLogger("penstock.plugins")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """One plugin as people see it. ``origin`` says where it was found."""

    name: str
    kind: str
    version: str
    spi_version: int
    capabilities: Mapping[str, Any]
    origin: str
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The plugins that a configuration selects, and their checked settings, by kind in opening order."""

    specs: Mapping[str, PluginSpec[Any, Any]]
    settings: Mapping[str, Settings]
    #: Those that these open, as their settings say.
    nested: Sequence[NestedPlugin] = ()
    #: Finds them; None: there is no registry.
    finder: NestedPlugins | None = None

    @property
    def names(self) -> dict[str, str]:
        """The selected plugin's name by kind."""
        return {kind: spec.name for kind, spec in self.specs.items()}


@dataclass(slots=True, eq=False)
class _Loaded:
    """A module that was registered with pluggy."""

    name: str
    module: ModuleType
    origin: str
    version: str
    specs: list[PluginSpec[Any, Any]] = dataclasses.field(default_factory=list)


def observer_hooks() -> dict[str, type[Any]]:
    """The class of the event that each hook of observers is called with."""
    return {
        name: get_type_hints(hook)["event"]
        for name, hook in vars(hookspecs).items()
        if name.startswith(_OBSERVE)
    }


class PluginRegistry:
    """All plugins that this process knows; one per broker.

    ``env`` gives PENSTOCK_LOAD_PLUGINS and PENSTOCK_TRACE_HOOKS; None stands for an empty environment.
    Not safe for use from several threads at once.
    """

    def __init__(
        self,
        *,
        env: Mapping[str, str] | None = None,
        plugins_dirs: Sequence[str | Path] = (),
        modules: Sequence[str] = (),
    ) -> None:
        """Raises PluginError when a plugin in ``plugins_dirs`` or ``modules`` can't be loaded."""
        env = env or {}
        limit = env.get(LOAD_VARIABLE)
        self._limit = None if limit is None else {name.strip() for name in limit.split(",") if name.strip()}
        self._manager = pluggy.PluginManager(hookspecs.HOOK_NAMESPACE)
        self._manager.add_hookspecs(hookspecs)
        if env.get(TRACE_VARIABLE, "") not in ("", "0"):
            self._trace()
        self._entry_points = entry_points()
        self._loaded: dict[str, _Loaded] = {}
        self._observers: dict[str, list[tuple[str, Callable[..., Any]]]] = {}
        for directory in plugins_dirs:
            self._load_directory(Path(directory))
        self.load(modules, ignore_limit=True)

    # Loading

    def load(self, names: Iterable[str], *, ignore_limit: bool = False) -> None:
        """Import the entry points or modules ``names``, unless they are loaded already.

        Names that PENSTOCK_LOAD_PLUGINS leaves out are skipped with a log line, unless ``ignore_limit``.
        Raises PluginError.
        """
        for name in names:
            if name in self._loaded:
                continue
            if self._limit is not None and name not in self._limit and not ignore_limit:
                logger.info("%s leaves out plugin %s", LOAD_VARIABLE, name)
            elif name in self._entry_points:
                self._load_entry_point(name)
            else:
                self._load_module(name)

    def load_all(self) -> dict[str, PluginError]:
        """Import every visible entry point. Returns the errors of those that couldn't be, by name."""
        errors = {}
        for name in self._visible():
            try:
                self._load_entry_point(name)
            except PluginError as error:
                errors[name] = kept(error)
        return errors

    def _visible(self) -> list[str]:
        return [name for name in self._entry_points if self._limit is None or name in self._limit]

    def _load_entry_point(self, name: str) -> None:
        if name in self._loaded:
            return
        found = self._entry_points[name]
        if len(found) > 1:
            origins = " and ".join(entry_point_origin(entry_point) for entry_point in found)
            raise PluginError(
                f"two plugins have the same name, uninstall one of them: name={name} from {origins}"
            )
        entry_point = found[0]
        origin = entry_point_origin(entry_point)
        module = import_plugin(entry_point.load, name, origin)
        self._register(name, module, origin, entry_point_version(entry_point))

    def _load_module(self, name: str) -> None:
        try:
            known = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            known = False
        if not known:
            near = nearest(name, self._visible())
            advice = f"the nearest plugin is {near}" if near else "is its distribution installed?"
            raise PluginError(f"no plugin and no module has this name, {advice}: name={name}")
        module = import_plugin(lambda: importlib.import_module(name), name, f"module {name}")
        self._register(name, module, f"module {name}", str(getattr(module, "__version__", "")))

    def _load_directory(self, directory: Path) -> None:
        if not directory.is_dir():
            raise PluginError(f"plugins directory not found: path={directory}")
        place = str(directory.resolve())
        if place not in sys.path:
            sys.path.append(
                place
            )  # so that files there can import each other; last, so that nothing is shadowed
        for path in sorted(directory.iterdir()):
            if path.name.startswith(("_", ".")):
                continue
            if path.suffix == ".py" and path.is_file():
                self._load_path(path.stem, path)
            elif (path / "__init__.py").is_file():
                self._load_path(path.name, path / "__init__.py")

    def _load_path(self, name: str, path: Path) -> None:
        """Import a file, unless another has; what it registers counts. One without hooks is a helper of others."""
        origin = str(path.resolve())
        module = sys.modules.get(name)
        place = module.__file__ if module is not None else _origin_of(name)
        if (place is not None and str(Path(place).resolve()) != origin) or (
            module is not None and place is None
        ):
            raise PluginError(
                f"a module of this name is there already, rename the file: name={name} path={path}"
            )
        if module is None:
            module = import_plugin(lambda: import_path(name, path), name, origin)
        if any(map(_is_hook, vars(module).items())):
            self._register(name, module, origin, str(getattr(module, "__version__", "")))

    def _register(self, name: str, module: object, origin: str, version: str) -> None:
        if not isinstance(module, ModuleType):
            raise PluginError(
                f"a plugin's entry point must name a module, without a colon: name={name} from {origin}"
            )
        for other in self._loaded.values():
            if other.name == name or other.module is module:
                raise PluginError(
                    f"one plugin is loaded twice, remove one of them: name={name} from {other.origin} and {origin}"
                )
        loaded = _Loaded(name, module, origin, version)
        try:
            self._manager.register(module, name)
            self._check_hooks(loaded)
            self._collect_specs(loaded)
        except pluggy.PluginValidationError as error:
            self._drop(loaded)
            reason = " ".join(str(error).split())
            raise PluginError(
                f"a hook of this plugin doesn't fit its specification: name={name} reason={reason}"
            ) from error
        except BaseException:
            self._drop(loaded)
            raise
        self._loaded[name] = loaded
        self._observers.clear()

    def _drop(self, loaded: _Loaded) -> None:
        if self._manager.is_registered(loaded.module):
            self._manager.unregister(loaded.module)

    def _check_hooks(self, loaded: _Loaded) -> None:
        callers = self._manager.get_hookcallers(loaded.module) or []
        if not callers:
            raise PluginError(
                f"a plugin has no hook, mark its functions with penstock.hookspecs.hookimpl: name={loaded.name} "
                f"from {loaded.origin}"
            )
        for caller in callers:
            if not caller.has_spec():
                hooks = [name for name in vars(hookspecs) if name.startswith("penstock_")]
                near = nearest(caller.name, hooks)
                advice = f", the nearest hook is {near}" if near else ""
                raise PluginError(
                    f"a plugin implements a hook that doesn't exist{advice}: name={loaded.name} hook={caller.name}"
                )
        self._manager.check_pending()

    def _collect_specs(self, loaded: _Loaded) -> None:
        others = [plugin for plugin in self._manager.get_plugins() if plugin is not loaded.module]
        for caller in self._manager.get_hookcallers(loaded.module) or []:
            if not caller.name.startswith(REGISTER):
                continue
            for spec in self._manager.subset_hook_caller(caller.name, others)():
                check_spec(spec, caller.name.removeprefix(REGISTER), loaded.name, loaded.origin)
                self._check_unique(spec, loaded)
                loaded.specs.append(spec)

    def _check_unique(self, spec: PluginSpec[Any, Any], loaded: _Loaded) -> None:
        for other in (*self._loaded.values(), loaded):
            if any(present.kind == spec.kind and present.name == spec.name for present in other.specs):
                raise PluginError(
                    f"two plugins have the same name and kind, remove one of them: name={spec.name} "
                    f"kind={spec.kind} from {other.origin} and {loaded.origin}"
                )

    # Selecting

    def select(self, kind: str, name: str) -> PluginSpec[Any, Any]:
        """The plugin ``name`` of ``kind``, imported now if need be.

        Raises PluginError naming the nearest plugin of that kind when there is none.
        """
        spec = self._find(kind, name)
        if spec is None and name in self._entry_points:
            if self._limit is not None and name not in self._limit:
                raise PluginError(
                    f"{LOAD_VARIABLE} leaves out a plugin that is selected, add it there: kind={kind} name={name}"
                )
            self._load_entry_point(name)
            spec = self._find(kind, name)
        if spec is not None:
            return spec
        errors = self.load_all()
        spec = self._find(kind, name)
        if spec is None:
            raise self._not_found(kind, name, errors)
        return spec

    def _find(self, kind: str, name: str) -> PluginSpec[Any, Any] | None:
        for loaded in self._loaded.values():
            for spec in loaded.specs:
                if spec.kind == kind and spec.name == name:
                    return spec
        return None

    def _not_found(self, kind: str, name: str, errors: Mapping[str, PluginError]) -> PluginError:
        specs = [spec for loaded in self._loaded.values() for spec in loaded.specs]
        names = sorted(spec.name for spec in specs if spec.kind == kind)
        near = nearest(name, names)
        other_kinds = sorted(spec.kind for spec in specs if spec.name == name)
        if other_kinds:
            advice = f"{name} is a plugin of kind {other_kinds[0]}, choose from: {', '.join(names)}"
        elif near:
            advice = f"the nearest is {near}"
        else:
            advice = f"choose from: {', '.join(names)}" if names else "none is installed"
        if errors:
            advice += f" ({len(errors)} could not be loaded: {', '.join(sorted(errors))})"
        return PluginError(f"no plugin of this kind has this name, {advice}: kind={kind} name={name}")

    def select_all(self, config: Config) -> Selection:
        """Select a plugin of each kind as ``config`` says; check their settings, and that all of it fits together.

        There is none of an optional kind unless it is named. Also loads what ``plugins.load`` names.

        Raises PluginError, CapabilityError or ConfigError.
        """
        self.load(config.tree.plugins.load)
        named = [kind for kind in KINDS if config.plugin_name(kind)]
        specs = {kind: self._select_named(config, kind) for kind in named}
        settings = {kind: self.validate_plugin_settings(config, kind) for kind in named}
        store = specs[OBJECT_STORE.name]
        check_combination(specs.values(), store.capabilities)
        finder = NestedPlugins(self.select, config.origins)
        nested = [found for kind in named for found in finder.within((kind,), settings[kind])]
        for found in nested:
            own = found.store.spec if found.store is not None else store
            found.check_store(own.capabilities, own.name)
        sharing = [found for found in nested if found.store is None]
        check_key_prefixes(
            specs | {found.key: found.spec for found in sharing},
            settings | {found.key: found.settings for found in sharing},
        )
        sizes = {kind: spec.sizes(settings[kind]) for kind, spec in specs.items()}
        check_limits(config.limits(sizes, settings))
        config.check_filled_in()
        return Selection(specs=specs, settings=settings, nested=nested, finder=finder)

    def _select_named(self, config: Config, kind: str) -> PluginSpec[Any, Any]:
        """The plugin that ``config`` names for ``kind``. Raises as ``select``, with where the name came from."""
        path = (kind, "plugin")
        try:
            return self.select(kind, config.plugin_name(kind))
        except PluginError as error:
            origin = origin_of(path, config.origins)
            if origin.layer == "default":
                raise
            raise type(error)(f"{origin.place}: {'.'.join(path)}: {error}") from error

    def settings_model(self, kind: str, name: str) -> type[Settings]:
        """The config model of a plugin. Raises PluginError."""
        model: type[Settings] = self.select(kind, name).settings
        return model

    def validate_plugin_settings(self, config: Config, kind: str) -> Settings:
        """The settings of the plugin that ``config`` selects for ``kind``. Raises ConfigError or PluginError."""
        spec = self._select_named(config, kind)
        return validate_settings(spec, config.plugin_settings(kind), config.origins)

    def validate_nested_settings(
        self, config: Config, kind: str, table: PluginTable, path: tuple[str, ...]
    ) -> Mapping[tuple[str, ...], tuple[str, Settings]]:
        """Plugin and settings of a table at ``path``, and of its own store, by path. Raises as ``select_all``."""
        found = NestedPlugins(self.select, config.origins).resolve(kind, table, path)
        both = [found] if found.store is None else [found, found.store]
        return {each.path: (each.spec.name, each.settings) for each in both}

    # Telling

    def infos(self) -> list[PluginInfo]:
        """Every loaded plugin, by kind and name; call :meth:`load_all` first to see all there are."""
        infos = [info for loaded in self._loaded.values() for info in _infos(loaded)]
        return sorted(infos, key=lambda info: (info.kind, info.name))

    def notify(self, hook_name: str, event: object) -> None:
        """Call the observers of ``hook_name`` with ``event``.

        An observer's error is logged with the plugin's name; the others are called and nothing is raised.
        """
        observers = self._observers.get(hook_name)
        if observers is None:
            observers = self._observers[hook_name] = self._find_observers(hook_name)
        for plugin_name, call in observers:
            try:
                call(event=event)
            except Exception:  # an observer is a stranger: whatever it raises stays its own affair
                logger.exception("plugin %s failed in %s and was passed over", plugin_name, hook_name)

    def observe(self, bus: EventBus) -> None:
        """Tell observers of everything on ``bus`` that there is a hook for."""
        for hook_name, event_type in observer_hooks().items():
            bus.subscribe(event_type, partial(self.notify, hook_name))

    def _find_observers(self, hook_name: str) -> list[tuple[str, Callable[..., Any]]]:
        assert hook_name.startswith(_OBSERVE), f"not an observer hook: {hook_name}"
        caller = getattr(self._manager.hook, hook_name)
        everyone = self._manager.get_plugins()
        observers: list[tuple[str, Callable[..., Any]]] = []
        for implementation in caller.get_hookimpls():
            others = [plugin for plugin in everyone if plugin is not implementation.plugin]
            observers.append(
                (implementation.plugin_name, self._manager.subset_hook_caller(hook_name, others))
            )
        return observers

    def _trace(self) -> None:
        """Log each hook call; with no logging set up, to stderr, since somebody asked to see them."""
        if not logging.getLogger().handlers and not logger.handlers:
            logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.INFO)

        def before(hook_name: str, methods: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            plugins = ", ".join(method.plugin_name for method in methods)
            arguments = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
            logger.info("hook %s(%s) -> %s", hook_name, arguments, plugins or "nobody")

        def after(outcome: Any, hook_name: str, methods: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
            if outcome.exception is not None:
                logger.info("hook %s raised %r", hook_name, outcome.exception)

        self._manager.add_hookcall_monitoring(before, after)


def _origin_of(name: str) -> str | None:
    """The file that importing ``name`` would find, if any."""
    spec = importlib.util.find_spec(name)
    return None if spec is None else spec.origin or "built in"


def _is_hook(attribute: tuple[str, object]) -> bool:
    """Whether who defines this means to be a plugin: it is a hook, or a function called like one and not marked."""
    name, value = attribute
    marked = hasattr(value, f"{hookspecs.HOOK_NAMESPACE}_impl")
    return marked or (inspect.isfunction(value) and name.startswith(f"{hookspecs.HOOK_NAMESPACE}_"))


def _infos(loaded: _Loaded) -> list[PluginInfo]:
    if not loaded.specs:
        summary = (inspect.getdoc(loaded.module) or "").partition("\n")[0]
        return [
            PluginInfo(
                name=loaded.name,
                kind=OBSERVER,
                version=loaded.version,
                spi_version=SPI_VERSION,
                capabilities={},
                origin=loaded.origin,
                summary=summary,
            )
        ]
    return [
        PluginInfo(
            name=spec.name,
            kind=spec.kind,
            version=spec.version or loaded.version,
            spi_version=spec.spi_version,
            capabilities=capabilities_of(spec.capabilities),
            origin=loaded.origin,
            summary=spec.summary,
        )
        for spec in loaded.specs
    ]
