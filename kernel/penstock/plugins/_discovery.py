"""Entry points, and importing what they and paths name."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from penstock.errors import PenstockError, PluginError

ENTRY_POINT_GROUP = "penstock.plugins"


def entry_points() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """The entry points of the group by name. Of a distribution that is on the path twice the first one counts."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    seen: set[str] = set()
    for place in sys.path:
        for distribution, its_own in _in(place, _changed_ns(place)).items():
            if distribution not in seen:
                seen.add(distribution)
                for entry_point in its_own:
                    found.setdefault(entry_point.name, []).append(entry_point)
    return found


@lru_cache(maxsize=64)
def _in(place: str, changed_ns: int) -> Mapping[str, Sequence[importlib.metadata.EntryPoint]]:
    """By distribution, as long as the folder doesn't change: reading what is installed takes milliseconds."""
    del changed_ns
    found: dict[str, Sequence[importlib.metadata.EntryPoint]] = {}
    for distribution in importlib.metadata.distributions(path=[place]):
        its_own = distribution.entry_points.select(group=ENTRY_POINT_GROUP)
        if its_own:
            found.setdefault(_normalized(distribution.name), tuple(its_own))
    return found


def _changed_ns(place: str) -> int:
    """When something was installed there or removed; 0 where nothing is."""
    try:
        return os.stat(place or os.curdir).st_mtime_ns
    except OSError:
        return 0


def _normalized(distribution: str) -> str:
    """https://packaging.python.org/en/latest/specifications/name-normalization/"""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def entry_point_origin(entry_point: importlib.metadata.EntryPoint) -> str:
    if entry_point.dist is None:
        return f"entry point {entry_point.value}"
    return " ".join(_name_and_version(entry_point.dist))


def entry_point_version(entry_point: importlib.metadata.EntryPoint) -> str:
    """Of the distribution; empty if there is none."""
    return _name_and_version(entry_point.dist)[1]


@lru_cache(maxsize=64)
def _name_and_version(distribution: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """Of one distribution, read once: each look at either parses all that is known of it, its README too."""
    if distribution is None:
        return "", ""
    return distribution.name, distribution.version


def import_path(name: str, path: Path) -> ModuleType:
    locations = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=locations)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def import_plugin(load: Callable[[], Any], name: str, origin: str) -> Any:
    """Run ``load``, with every error of the plugin's own code as a PluginError that names the plugin."""
    try:
        return load()
    except ImportError as error:
        raise missing_dependency(name, error, origin) from error
    except PenstockError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise PluginError(f"plugin can't be imported: name={name} from {origin} reason={reason}") from error


def missing_dependency(name: str, error: ImportError, origin: str = "") -> PluginError:
    """The sentence for a plugin that lacks a package: what to install."""
    place = f" from {origin}" if origin else ""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return PluginError(f"plugin can't be imported: name={name}{place} reason={error}")
    missing = error.name.partition(".")[0]
    extra = _extra_with(missing)
    if extra is not None:
        advice = f"pip install 'penstock[{extra}]'"
    else:
        advice = f"install the package that has the module {missing}"
    return PluginError(
        f"plugin needs a module that isn't installed, {advice}: name={name}{place} module={error.name}"
    )


def _extra_with(module: str) -> str | None:
    """The smallest extra of Penstock's own distribution that brings ``module``, read from the metadata."""
    try:
        requirements = importlib.metadata.requires("penstock") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    brought: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.match(r"([A-Za-z0-9._-]+)[^;]*;.*extra == ['\"]([^'\"]+)['\"]", requirement)
        if match and match[2] != "dev":
            brought.setdefault(match[2], []).append(re.sub(r"[-.]", "_", match[1]).lower())
    # an extra may hold another one: the metadata then list what that brings under both
    fitting = [extra for extra, modules in brought.items() if module.lower() in modules]
    return min(fitting, key=lambda extra: len(brought[extra]), default=None)
