"""Programs of other ecosystems that tests run: made once, from their registries, outside the repository.

What Go, Maven, npm or pip bring is kept below ``cache_dir()`` and used by all later runs. ``TESTS_ONLINE=0`` forbids
to fetch anything: then only what those tools have in caches of their own is used. Where a program can't be had,
because its toolchain or the network is missing, its tests are skipped with the reason.
"""

from __future__ import annotations

__all__ = (
    "ONLINE",
    "cache_dir",
    "go_program",
    "java",
    "maven_jars",
    "node_modules",
    "python_environment",
)

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.keeper import MARK
from tests.patience import HANG_S

ONLINE = os.environ.get("TESTS_ONLINE") != "0"
#: A registry that answers slowly, and a compiler beside other work.
_MAKE_S = 2 * HANG_S


def cache_dir() -> Path:
    """Where fetched programs are kept: ``TESTS_CACHE``, or a folder in the user's cache directory."""
    named = os.environ.get("TESTS_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "penstock-tests"


def go_program(module: str, version: str, source: str | None = None) -> Path:
    """A Go program: the ``main`` package ``module``, or ``source``, which uses the module."""
    go = _tool("go")
    environment = {"GOFLAGS": "-mod=mod -modcacherw", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    if not ONLINE:
        environment |= {"GOPROXY": "off", "GOSUMDB": "off"}

    def make(directory: Path) -> None:
        if source is None:
            _run(
                [go, "install", f"{module}@{version}"], directory, GOBIN=str(directory / "bin"), **environment
            )
            (built,) = (directory / "bin").iterdir()
            built.rename(directory / "program")
            return
        (directory / "main.go").write_text(source)
        (directory / "go.mod").write_text(f"module program\n\ngo 1.24\n\nrequire {module} {version}\n")
        _run([go, "build", "-o", "program", "."], directory, **environment)

    return _made(f"go-{module}-{version}{_digest(source)}", make) / "program"


def java() -> list[str]:
    """The command that runs Java, which then writes nothing outside the run's own temporary directory."""
    return [_tool("java"), *_java_options()]


def maven_jars(*coordinates: str) -> list[Path]:
    """The jars of ``group:artifact:version`` and of all that they need at run time."""
    maven = _tool("mvn")
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        "</dependency>"
        for group, artifact, version in (one.split(":") for one in coordinates)
    )

    def make(directory: Path) -> None:
        (directory / "pom.xml").write_text(
            "<project><modelVersion>4.0.0</modelVersion><groupId>penstock</groupId><artifactId>tests</artifactId>"
            f"<version>1</version><dependencies>{dependencies}</dependencies></project>"
        )
        offline = [] if ONLINE else ["--offline"]
        copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=jars"]
        _run(
            [maven, "--quiet", "--batch-mode", *offline, *copy],
            directory,
            MAVEN_OPTS=" ".join(_java_options()),
        )

    name = "-".join(coordinates)
    return sorted((_made(f"maven-{name}", make) / "jars").glob("*.jar"))


def node_modules(*packages: str) -> Path:
    """A ``node_modules`` with ``name@version`` in it."""
    npm = _tool("npm")

    def make(directory: Path) -> None:
        offline = [] if ONLINE else ["--offline"]
        _run([npm, "install", *offline, "--no-audit", "--no-fund", "--no-package-lock", *packages], directory)

    return _made(f"npm-{'-'.join(packages)}", make) / "node_modules"


def python_environment(*requirements: str, with_dependencies: bool = True) -> Path:
    """The ``bin`` of a virtual environment with distributions that don't go together with ours."""

    def make(directory: Path) -> None:
        _run([sys.executable, "-m", "venv", "venv"], directory)
        offline = [] if ONLINE else ["--no-index"]
        pip = [str(directory / "venv" / "bin" / "python"), "-m", "pip", "install", "--quiet", *offline]
        alone = [] if with_dependencies else ["--no-deps"]
        _run([*pip, "--disable-pip-version-check", "--retries", "1", *alone, *requirements], directory)

    base = _digest(f"{sys.version} {sys.base_prefix}")
    return _made(f"python{base}-{'-'.join(requirements)}", make) / "venv" / "bin"


def _java_options() -> list[str]:
    # what lives for seconds isn't worth a compiler that optimises, or threads that collect garbage beside it
    small = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"]
    return [f"-Djava.io.tmpdir={tempfile.gettempdir()}", *small]


def _tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _digest(text: str | None) -> str:
    return "" if text is None else f"-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """The directory ``name`` of the cache; ``make`` fills it once, whoever else wants it at the same time.

    It is filled in its final place, since virtual environments can't be moved, and counts once ``complete`` is there.
    """
    name = "".join(character if character.isalnum() or character in "-._" else "_" for character in name)
    directory = cache_dir() / name
    complete = directory / "complete"
    refused = Path(os.environ.get(MARK, tempfile.gettempdir())) / f"refused-{name}"
    with _alone(name):
        if refused.exists():  # once a run: a network that isn't there may take minutes to say so
            pytest.skip(refused.read_text())
        if not complete.exists():
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            try:
                make(directory)
            except (OSError, subprocess.SubprocessError) as error:
                shutil.rmtree(directory, ignore_errors=True)
                printed = (getattr(error, "stdout", None) or str(error)).strip()
                reason = f"can't get {name}: {printed[-300:]}"
                refused.write_text(reason)
                pytest.skip(reason)
            complete.touch()
    return directory


@contextmanager
def _alone(name: str) -> Iterator[None]:
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / f".lock-{name}").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: list[str], directory: Path, **environment: str) -> None:
    subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_MAKE_S,
        check=True,
    )
