"""Entry points, and importing what they and paths name."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from penstock.errors import PenstockError, PluginError

ENTRY_POINT_GROUP = "penstock.plugins"


def entry_points() -> dict[str, list[importlib.metadata.EntryPoint]]:
    """The entry points of the group by name. One distribution found twice on the path counts once."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for entry_point in _of_group(tuple((place, _changed_ns(place)) for place in sys.path)):
        same_name = found.setdefault(entry_point.name, [])
        if not any(_distribution(other) == _distribution(entry_point) for other in same_name):
            same_name.append(entry_point)
    return found


@lru_cache(maxsize=4)
def _of_group(path: tuple[tuple[str, int], ...]) -> importlib.metadata.EntryPoints:
    """What is on the path, as long as no folder of it changes: reading what is installed takes milliseconds."""
    del path
    return importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)


def _changed_ns(place: str) -> int:
    """When something was installed there or removed; 0 where nothing is."""
    try:
        return os.stat(place or os.curdir).st_mtime_ns
    except OSError:
        return 0


def _distribution(entry_point: importlib.metadata.EntryPoint) -> str:
    name = entry_point.dist.name if entry_point.dist is not None else ""
    return re.sub(r"[-_.]+", "-", name).lower()


def entry_point_origin(entry_point: importlib.metadata.EntryPoint) -> str:
    if entry_point.dist is None:
        return f"entry point {entry_point.value}"
    return f"{entry_point.dist.name} {entry_point.dist.version}"


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
