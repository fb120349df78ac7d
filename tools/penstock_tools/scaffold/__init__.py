"""The beginning of a plugin of one's own: a whole package for each kind, which works, is tested, and conforms.

The code of most kinds is the plain implementation in ``penstock_conformance.reference`` that the suite itself stands
on; ``templates/KIND`` has the rest, and ``templates/common`` what all kinds share. All of it are real files, checked
with the rest of the repository; only names are put in.
"""

from __future__ import annotations

__all__ = ("KINDS", "check_name", "package_files", "write_package")

import importlib.metadata
import importlib.util
import keyword
import re
from pathlib import Path

from penstock.errors import PluginError
from penstock.plugins import OBSERVER
from penstock.spi import kinds

#: All kinds that a package can be written for.
KINDS = (*kinds.KINDS, OBSERVER)

_REFERENCE = "penstock_conformance.reference"
_TEMPLATES = Path(__file__).parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
#: Together with the package's prefix it is the name of a file and of a distribution.
_NAME_LENGTH_MAX = 50
#: Files whose names would mean something where the templates are, or in a wheel.
_RENAMED = {
    "readme.txt": "README.md",
    "gitignore": ".gitignore",
    "github-workflows/": ".github/workflows/",
    "test_": "tests/test_",
}


def check_name(name: str) -> None:
    """Raises PluginError unless a new plugin can have this name."""
    if not _NAME.fullmatch(name) or len(name) > _NAME_LENGTH_MAX or keyword.iskeyword(name):
        near = "_".join(re.findall(r"[a-z0-9]+", name.lower())).lstrip("0123456789_")[:_NAME_LENGTH_MAX]
        near = near.rstrip("_")
        advice = f", for instance {near}" if near and not keyword.iskeyword(near) else ""
        raise PluginError(
            f"a plugin's name is up to {_NAME_LENGTH_MAX} lowercase letters and digits, in words with _ between "
            f"them, the first a letter{advice}: name={name!r}"
        )
    installed = importlib.metadata.entry_points(group="penstock.plugins", name=name)
    if installed or importlib.util.find_spec(f"penstock_{name}") is not None:
        raise PluginError(f"a plugin of this name is installed, choose another: name={name}")


def package_files(kind: str, name: str) -> dict[str, str]:
    """The text of each file of a package for the plugin ``name``, by its path. Raises PluginError."""
    if kind not in KINDS:
        raise PluginError(f"there is no such kind of plugins, choose from {', '.join(KINDS)}: kind={kind}")
    check_name(name)
    texts: dict[str, str] = {}
    code = _code_of(kind)
    for folder in (_TEMPLATES / "common", _TEMPLATES / kind):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix != ".pyc" and path != code:
                texts[path.relative_to(folder).as_posix()] = path.read_text()
    develop = texts.pop("develop.txt")
    if kind == OBSERVER:
        del texts["test_conformance.py"]  # it has no contract to be held against
    else:
        texts["readme.txt"] += develop
    texts[f"penstock_{name}/__init__.py"] = code.read_text()
    texts[f"penstock_{name}/py.typed"] = ""
    texts[f"test_{name}.py"] = texts.pop("test_plugin.py")
    own = {*re.findall(r"^(?:class|def) (\w+)", code.read_text(), re.MULTILINE)}
    return {_renamed(path): _named(text, kind, name, own) for path, text in texts.items()}


def _code_of(kind: str) -> Path:
    """Where the plugin's own code is."""
    own = _TEMPLATES / kind / "plugin.py"
    if own.is_file():
        return own
    reference = importlib.util.find_spec(_REFERENCE)
    assert reference is not None
    assert reference.origin is not None, "it comes in the same distribution"
    return Path(reference.origin).with_name(f"_{kind}.py")


def _renamed(path: str) -> str:
    for here, there in _RENAMED.items():
        if path.startswith(here):
            return there + path.removeprefix(here)
    return path


def _named(text: str, kind: str, name: str, own: set[str]) -> str:
    """The text of a template with the plugin's names; ``own`` names are imported from the package."""
    package = f"penstock_{name}"

    def imports(found: re.Match[str]) -> str:
        names = found[1].split(", ")
        mine = ", ".join(word for word in names if word in own)
        others = ", ".join(word for word in names if word not in own)
        lines = [f"from {_REFERENCE} import {others}\n"] if others else []
        return "".join([*lines, f"from {package} import {mine}\n"] if mine else lines)

    text = re.sub(rf"from {_REFERENCE} import (.+)\n", imports, text)
    templates = f"{__name__}.templates.{kind}"
    for here, there in (
        (f"from {templates} import plugin\n", f"import {package} as plugin\n"),
        (f"{templates}.plugin", package),
        ('"reference"', f'"{name}"'),
        ("template_kind", kind),
        ("template-name", name.replace("_", "-")),
        ("template_name", name),
    ):
        text = text.replace(here, there)
    return text


def write_package(kind: str, name: str, directory: Path) -> list[Path]:
    """Write :func:`package_files` into ``directory``, which must be new or empty; the files. Raises PluginError."""
    texts = package_files(kind, name)
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise PluginError(f"the directory is there already, choose another with --dir: path={directory}")
        for path, text in texts.items():
            file = directory / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    except OSError as error:
        raise PluginError(f"the package can't be written: path={directory} reason={error}") from error
    return [directory / path for path in sorted(texts)]
