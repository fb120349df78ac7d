"""One distribution: each plugin folder is registered everywhere, imports keep to their rules, the wheel is clean."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from penstock.config import DEFAULT_PLUGINS, init_template, key_rows, load_config
from penstock.plugins import PluginRegistry

REPOSITORY = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PLUGINS = sorted(
    path.name
    for path in (REPOSITORY / "plugins").iterdir()
    if path.is_dir() and not path.name.startswith((".", "_"))
)
CONTRACTS = {contract["name"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}


def test_there_are_plugins() -> None:
    assert {name for name in DEFAULT_PLUGINS.values() if name} <= set(PLUGINS)


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_folder_is_complete(name: str) -> None:
    folder = REPOSITORY / "plugins" / name
    assert (folder / "README.md").is_file()
    assert (folder / f"penstock_{name}" / "__init__.py").is_file()
    assert (folder / f"penstock_{name}" / "py.typed").is_file()
    assert list((folder / "tests").glob("test_*.py"))


def test_every_list_of_plugins_names_those_that_are_there() -> None:
    """mypy and import-linter know no patterns; ``python tools/plugin_lists.py`` writes their lists."""
    check = [sys.executable, str(REPOSITORY / "tools" / "plugin_lists.py"), "--check"]
    assert subprocess.run(check).returncode == 0, "run: python tools/plugin_lists.py"
    roots = PROJECT["tool"]["importlinter"]["root_packages"]
    assert roots == [
        "penstock",
        "penstock_tools",
        "penstock_conformance",
        *(f"penstock_{n}" for n in PLUGINS),
    ]
    spi_only = CONTRACTS["Plugins import the SPI and the WAL building blocks, nothing else of the kernel"]
    assert spi_only["source_modules"] == [f"penstock_{name}" for name in PLUGINS]
    assert [path for path in PROJECT["tool"]["mypy"]["mypy_path"] if "/plugins/" in path] == [
        f"$MYPY_CONFIG_FILE_DIR/plugins/{name}" for name in PLUGINS
    ]


def test_plugins_may_not_import_any_room_of_the_kernel_but_theirs() -> None:
    """A new kernel package is out of bounds for plugins until somebody decides otherwise."""
    spi_only = CONTRACTS["Plugins import the SPI and the WAL building blocks, nothing else of the kernel"]
    allowed = {
        "spi",
        "hookspecs",
        "native",
        "checksum",
        "direct_io",
        "errors",
        "files",
        "threads",
        "units",
        "wal",
    }
    rooms = {
        path.stem
        for path in (REPOSITORY / "kernel" / "penstock").iterdir()
        if not path.name.startswith(("_", ".")) and (path.suffix == ".py" or (path / "__init__.py").is_file())
    }
    assert {f"penstock.{room}" for room in rooms - allowed} | {"penstock_tools"} <= set(
        spi_only["forbidden_modules"]
    )


def test_import_rules_hold() -> None:
    program = (
        "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_plugin_loads_under_its_folder_name() -> None:
    registry = PluginRegistry()
    errors = registry.load_all()
    assert {name: str(error) for name, error in errors.items() if name in PLUGINS} == {}
    assert set(PLUGINS) <= {info.name for info in registry.infos()}


def test_every_key_of_every_plugin_has_help_and_a_valid_default() -> None:
    """The template with all its comment marks taken off is a configuration that passes ``config check``."""
    registry = PluginRegistry()
    registry.load_all()
    for info in registry.infos():
        if info.name in PLUGINS:
            for key, _, default, text in key_rows(registry.settings_model(info.kind, info.name)):
                assert text, f"{info.name}.{key} has no description"
                assert default != "required", f"{info.name}.{key} has no default"
            assert info.summary, info.name


def test_template_of_the_real_plugins_passes_the_check(tmp_path: Path) -> None:
    registry = PluginRegistry()
    path = tmp_path / "penstock.toml"
    active = re.sub(r"^# ([a-z_]+ = )", r"\1", init_template("local", registry), flags=re.MULTILINE)
    path.write_text(active.replace('load = ["my_observer"]', "load = []"))
    given = registry.select_all(load_config(path)).settings
    defaults = registry.select_all(load_config()).settings
    assert list(given) == list(defaults)
    for kind in defaults:
        example = {name for name, field in type(given[kind]).model_fields.items() if field.default is None}
        assert given[kind].model_dump(exclude={*example, "limit"}) == defaults[kind].model_dump(
            exclude={*example, "limit"}
        ), kind


def build_wheel(source: Path, output: Path, *, editable: bool = False) -> Path:
    for module in ("hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(module, reason="the build backend isn't installed here")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(output), str(source)]
    if editable:
        pytest.importorskip("editables", reason="what editable installs need isn't installed here")
        hook = f"from hatchling.build import build_editable; build_editable({str(output)!r})"
        build = [sys.executable, "-c", hook]
    result = subprocess.run(build, cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = output.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of this repository."""
    return build_wheel(REPOSITORY, tmp_path_factory.mktemp("wheel"))


def test_readme_on_a_package_index_has_no_link_that_leads_nowhere(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 20
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_image_is_built_from_what_the_build_context_lets_through(tmp_path: Path) -> None:
    """The Dockerfile's first stage, without a container engine: the wheel comes out of what .dockerignore admits."""
    lines = (REPOSITORY / ".dockerignore").read_text().split()
    admitted = [line[1:] for line in lines if line.startswith("!")]
    assert lines[0] == "**"
    context = tmp_path / "context"
    context.mkdir()
    for name in admitted:
        source = REPOSITORY / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("tests", "__pycache__", "*.so")
            shutil.copytree(source, context / name, ignore=ignored)
        elif source.exists():
            shutil.copy(source, context / name)
    with zipfile.ZipFile(build_wheel(context, tmp_path)) as archive:
        names = archive.namelist()
    assert "penstock_tools/cli/serve.py" in names
    # with native code, or not at all: a slim image has no compiler, and pip would leave it out without a word
    first = (REPOSITORY / "Dockerfile").read_text().split("FROM ")[1]
    assert "PENSTOCK_NATIVE=require python -m build" in first
    assert "slim" not in first.splitlines()[0]
    sources = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "kernel").rglob("*.c")}
    assert sources
    assert {name for name in sources if not (context / name).is_file()} == set()


@pytest.mark.parametrize("editable", [False, True])
def test_a_new_plugin_folder_is_installed_without_a_line_anywhere(tmp_path: Path, editable: bool) -> None:
    """Its folder is all: it's in the wheel, an editable install finds it, and it has its entry point."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("tests", "__pycache__", "*.so")
    for name in ("kernel", "conformance", "plugins"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    new = source / "plugins" / "new_one" / "penstock_new_one"
    new.mkdir(parents=True)
    (new / "__init__.py").write_text("")
    with zipfile.ZipFile(build_wheel(source, tmp_path, editable=editable)) as archive:
        names = archive.namelist()
        (entry_points,) = [name for name in names if name.endswith("entry_points.txt")]
        assert "new_one = penstock_new_one\n" in archive.read(entry_points).decode()
        if editable:
            (paths,) = [name for name in names if name.endswith(".pth")]
            lines = archive.read(paths).decode().splitlines()
            assert {str(new.parent), str(source / "kernel"), str(source / "conformance")} <= set(lines)
        else:
            assert "penstock_new_one/__init__.py" in names


def test_wheel_holds_only_penstock(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    version = PROJECT["project"]["version"]
    packages = {
        "penstock",
        "penstock_tools",
        "penstock_conformance",
        *(f"penstock_{name}" for name in PLUGINS),
    }
    assert tops == packages | {f"penstock-{version}.dist-info"}
    assert not [name for name in names if "/tests/" in name or name.endswith((".pyc", ".md"))]
    assert {
        "penstock/py.typed",
        "penstock_tools/py.typed",
        *(f"penstock_{name}/py.typed" for name in PLUGINS),
    } <= set(names)
