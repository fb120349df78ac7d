"""Build hooks: the plugins, found by pattern; and one native file.

Each ``plugins/NAME/penstock_NAME`` goes into the wheel and gets the entry point ``NAME`` in the group
``penstock.plugins``; nothing lists them.

The other hook compiles the native files where a C compiler and Python's headers are, or silently leaves them out.
With them the wheel is one for the platform (limited API: for CPython 3.11 and later), without them one for any.
Penstock does the same either way (kernel/penstock/native.py). ``PENSTOCK_NATIVE=off`` leaves them out, ``require``
lets the build fail where they can't be had; ``CC`` names another compiler than ``cc``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

#: Each is a module beside its source.
SOURCES = ("kernel/penstock/_buffers.c", "kernel/penstock/wire/_walk.c")
SUFFIX = ".abi3.so"
FLAGS = ["-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"]


def plugin_packages(root: Path) -> dict[str, str]:
    """The package's folder of each plugin in the tree, by the plugin's name, which is that of its folder."""
    found = sorted(root.glob("plugins/*/penstock_*/__init__.py"))
    packages = {path.parts[-3]: path.parent.relative_to(root).as_posix() for path in found}
    for name, package in packages.items():
        if package != f"plugins/{name}/penstock_{name}":
            raise ValueError(
                f"a plugin's package is called after its folder: folder=plugins/{name} package={package}"
            )
    return packages


class EntryPoints(MetadataHookInterface):
    """Adds the entry points: those of ``[tool.hatch.metadata.hooks.custom]``, and one for each plugin."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in ``entry-points``."""
        plugins = {name: Path(package).name for name, package in plugin_packages(Path(self.root)).items()}
        metadata["entry-points"] = {**self.config["entry-points"], "penstock.plugins": plugins}


class WheelHook(BuildHookInterface):  # type: ignore[type-arg] # of the builder's settings, not used here
    """Adds the plugins and the native modules to wheels."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the wheel is put together; into the source tree for an editable install."""
        # hatch reads its list of packages after this hook has run, for editable installs too
        self.build_config.target_config["packages"] += plugin_packages(Path(self.root)).values()
        self._temporary = tempfile.TemporaryDirectory(prefix="penstock-build-")
        folder = Path(self._temporary.name)
        in_tree = [Path(self.root, source).with_suffix(SUFFIX) for source in SOURCES]
        if version == "editable":
            for module in in_tree:
                module.unlink(missing_ok=True)  # of older source, maybe
        mode = os.environ.get("PENSTOCK_NATIVE") or "auto"
        fault = "PENSTOCK_NATIVE=off" if mode == "off" else compile_modules(Path(self.root), folder)
        if fault:
            if mode == "require":
                raise RuntimeError(f"PENSTOCK_NATIVE=require, but the native modules can't be built: {fault}")
            return
        for module in in_tree:
            built = folder / module.name
            if version == "editable":
                os.replace(shutil.copy(built, module.with_suffix(".new")), module)
            else:
                place = module.relative_to(Path(self.root, "kernel")).as_posix()
                build_data["force_include"][str(built)] = place
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"cp311-abi3-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Leave nothing behind."""
        self._temporary.cleanup()


def compile_modules(root: Path, folder: Path, *flags: str) -> str:
    """Compile into ``folder`` and load the results once; say why that doesn't work, or "" if it does."""
    if sys.implementation.name != "cpython" or sys.platform != "linux":
        return "it is for CPython on Linux"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "it isn't for CPython without the GIL"
    compiler = shlex.split(os.environ.get("CC") or "cc")
    include = f"-I{sysconfig.get_paths()['include']}"
    fault = ""
    for source in SOURCES:
        name = Path(source).stem
        command = [
            *compiler,
            *FLAGS,
            *flags,
            include,
            str(root / source),
            "-o",
            str(folder / f"{name}{SUFFIX}"),
        ]
        fault = fault or _run(command, folder)
        if not fault and not flags:  # a sanitizer's runtime would have to be loaded first
            fault = _run([sys.executable, "-c", f"import {name}"], folder)
    return fault


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        return str(error)
    return (done.stderr.strip() or f"exit code {done.returncode}") if done.returncode else ""
