"""A PostgreSQL server for tests: that of the system, in a directory of its own, reached over a socket in it."""

from __future__ import annotations

__all__ = ("PostgresServer", "serving_postgres")

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.keeper import MARK
from tests.patience import HANG_S


class PostgresServer:
    """A running server; ``kill`` it as a power loss would, ``start`` it again."""

    def __init__(self, directory: Path) -> None:
        self._programs = _programs()
        self._directory = directory
        self._user = _user()
        if self._user is not None:
            shutil.chown(directory, self._user)
        self._run(
            "initdb",
            "--no-sync",
            "--encoding=UTF8",
            "--auth=trust",
            "--username=tests",
            "--no-instructions",
            "-D",
            "data",
        )

    @property
    def url(self) -> str:
        """As SQLAlchemy wants it."""
        return f"postgresql+psycopg://tests@/postgres?host={self._directory}"

    def start(self) -> None:
        """Start, and return when it answers."""
        options = f"-c listen_addresses='' -c unix_socket_directories={self._directory}"
        self._run("pg_ctl", "start", "--wait", "-t", str(HANG_S), "-D", "data", "-l", "log", "-o", options)

    def kill(self) -> None:
        """End it at once; it recovers from its log when it starts again."""
        if (self._directory / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "-m", "immediate", "-t", str(HANG_S), "-D", "data")

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """All its processes are stopped: connections stay, and nothing is answered."""
        main = int((self._directory / "data" / "postmaster.pid").read_text().splitlines()[0])
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        processes = [main, *map(int, children)]
        for one in processes:
            os.kill(one, signal.SIGSTOP)
        try:
            yield
        finally:
            for one in processes:
                with suppress(ProcessLookupError):  # it had ended, and the first has buried it by now
                    os.kill(one, signal.SIGCONT)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            cwd=self._directory,
            user=self._user,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C", MARK: os.environ[MARK]},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if program == "initdb" else subprocess.DEVNULL,
            timeout=HANG_S,
            check=False,
        )
        assert done.returncode == 0, (program, done.stdout)


@contextmanager
def serving_postgres() -> Iterator[PostgresServer]:
    """A running server; skips where the system has none."""
    pytest.importorskip("psycopg", reason="needs pip install 'penstock[postgres]'")
    # a socket's path may have 107 bytes, and the folder must be one that another user can reach
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as directory:
        server = PostgresServer(Path(directory))
        try:
            server.start()
            yield server
        finally:
            server.kill()


def _programs() -> Path:
    """Where ``initdb`` and ``pg_ctl`` are; Debian has them in no one's PATH."""
    found = shutil.which("pg_ctl")
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: float(one.parent.name))
    if not folders:
        pytest.skip("there is no PostgreSQL, install postgresql")
    return folders[-1]


def _user() -> str | None:
    """Another user for the server, which refuses to be root's; None if we aren't root."""
    if os.getuid() != 0:
        return None
    names = {one.pw_name for one in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"
