"""``penstock`` without the wait for its imports: a process that has imported it forks one for each test that asks.

Most of the processor time of a broker's start is imports, and the tests start hundreds. What ``start`` gives is a
process like any other, with an id, a session, arguments, environment, descriptors, signals and an exit code of its
own, that may be killed and leaves behind what any other does; only that it began as a copy of one that had imported.
What is read while Python starts or modules are imported is as it was for the fork server: ``same_start`` says whether
that is as wanted. It ends with all that ends a process, but doesn't take apart what was imported, which costs as much
as the rest of a command. Whoever tests the command itself runs ``python -m penstock``.

The server is this module as a program. It has one thread, opens nothing that a copy could see, and ends when the
process that began it does.
"""

from __future__ import annotations

__all__ = ("Forked", "close", "run", "same_start", "start")

import atexit
import contextlib
import gc
import importlib
import importlib.util
import json
import os
import pkgutil
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, Any

#: Of a request: arguments and the environment.
_MESSAGE_BYTES_MAX = 128 * 1024
#: What Python reads when it starts, and Penstock and others when they are imported.
_READ_AT_START = ("PYTHON", "PENSTOCK_NATIVE", "FSSPEC_", "LD_", "MALLOC_")
#: But where compiled modules are kept changes nothing of what was imported.
_OF_BYTECODE = ("PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE")


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(_READ_AT_START) and name not in _OF_BYTECODE
    }


#: Of ours, besides plugins; what is only for benchmarks and people's own tests is left out.
_PACKAGES = ("penstock", "penstock_tools.cli", "penstock_tools.client", "penstock_tools.inspection")
#: Plugins that work in a process of their own, which is executed, and all that a broker imports of them.
_APART = {"penstock_iceberg_compactor": "penstock_iceberg_compactor._apart"}
#: As the run began with it, but that a broker writes its lines as they come.
_AT_START = _read_at_start(os.environ) | {"PYTHONUNBUFFERED": "1"}


class Forked:
    """A forked ``penstock``, with what tests use of ``subprocess.Popen``."""

    def __init__(self, told: socket.socket, stdout: IO[str] | None) -> None:
        self._told = told
        self.stdout = stdout
        self.returncode: int | None = None
        self._lock = threading.Lock()
        self.pid = int(self._receive()["pid"])

    def _receive(self) -> dict[str, int]:
        message = self._told.recv(_MESSAGE_BYTES_MAX)
        if not message:
            self._told.close()
            raise RuntimeError("the fork server has ended: it would have told")
        found: dict[str, int] = json.loads(message)
        return found

    def poll(self) -> int | None:
        """The exit code, negative for a signal; none while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout_s: float | None = None) -> int:
        """The exit code, once it has ended. Raises ``subprocess.TimeoutExpired``."""
        with self._lock:
            if self.returncode is None:
                poll = select.poll()
                poll.register(self._told, select.POLLIN)
                if not poll.poll(None if timeout_s is None else timeout_s * 1000):
                    raise subprocess.TimeoutExpired("penstock", timeout_s or 0.0)
                self.returncode = self._receive()["code"]
                self._told.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing happens when it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


# -- the side of the tests ---------------------------------------------------------------------------------------


class _Server:
    """The fork server of this process."""

    def __init__(self) -> None:
        changed = _read_at_start(os.environ)
        own = {name: value for name, value in os.environ.items() if name not in changed}
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # what interrupts the run ends the tests, and these end the brokers
                pass_fds=(theirs.fileno(),),
                env=own | _AT_START,
            )

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], files: Sequence[int]
    ) -> socket.socket:
        """Fork one with these files as 0, 1 and 2; where its id and its end are told."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = {
            "arguments": list(arguments),
            "environment": dict(environment),
            "directory": str(Path.cwd()),
            "umask": _umask(),
            "files_max": resource.getrlimit(resource.RLIMIT_NOFILE),
        }
        message = json.dumps(request).encode()
        assert len(message) <= _MESSAGE_BYTES_MAX
        with theirs:
            socket.send_fds(self._control, [message], [theirs.fileno(), *files])
        return ours

    def close(self) -> None:
        """End it, not what it has forked."""
        self._control.close()
        self._process.wait()


def _umask() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("Umask:")).split()[1], 8)


#: The fork server of this process, if it has one.
_servers: list[_Server] = []
_lock = threading.Lock()


def _running() -> _Server:
    with _lock:
        if not _servers:
            _servers.append(_Server())
        return _servers[0]


def same_start(environment: Mapping[str, str]) -> bool:
    """Whether a process that is executed with it would begin as a fork of the server does."""
    return _read_at_start(environment) == _AT_START


def start(arguments: Sequence[str], environment: Mapping[str, str]) -> Forked:
    """``penstock ARGUMENTS`` in this directory, with nothing on stdin; stdout and stderr are one pipe."""
    reading, writing = os.pipe()
    try:
        with open(os.devnull, "rb") as nothing:
            told = _running().start(arguments, environment, (nothing.fileno(), writing, writing))
    finally:
        os.close(writing)
    return Forked(told, open(reading, encoding="utf-8"))


def run(
    arguments: Sequence[str],
    *,
    text: bytes = b"",
    merged: bool = False,
    more: Mapping[str, str] | None = None,
    timeout_s: float,
) -> subprocess.CompletedProcess[bytes]:
    """``penstock ARGUMENTS`` in this directory and environment, and with ``more`` of it, to its end.

    ``merged``: stderr goes to stdout.

    A process that hasn't ended in time is killed. Raises ``subprocess.TimeoutExpired``.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(more or {})}
    assert same_start(environment), "its environment needs a process that is executed"
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile() as stdout,
        tempfile.TemporaryFile() as stderr,
    ):
        stdin.write(text)
        stdin.seek(0)
        files = (stdin.fileno(), stdout.fileno(), (stdout if merged else stderr).fileno())
        process = Forked(_running().start(arguments, environment, files), None)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, code, stdout.read(), stderr.read())


def close() -> None:
    """End the server, if this process has one; what it forked goes on."""
    with _lock:
        while _servers:
            _servers.pop().close()


# -- the server --------------------------------------------------------------------------------------------------


@dataclass
class _Request:
    """What one fork is to run."""

    arguments: list[str]
    environment: dict[str, str]
    directory: str
    umask: int
    files_max: tuple[int, int]


def _import_all() -> None:
    """What commands import when they start, and later."""
    plugins = sorted(each.module for each in entry_points(group="penstock.plugins"))
    for package in map(importlib.import_module, [*_PACKAGES, *plugins]):
        if package.__name__ in _APART:
            continue
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(".__main__"):
                importlib.import_module(module.name)
    for name in _APART.values():
        importlib.import_module(name)
    for name in ("anyio._backends._asyncio", "encodings.idna", "pydantic.type_adapter", "uvloop"):
        importlib.import_module(name)
    importlib.import_module("penstock.plugins").PluginRegistry().load_all()  # reads what is installed


def _fork_on_demand(control: socket.socket) -> _Request | None:
    """Return in each child, with what it is to run; and in the server, with nothing, when nobody is left to ask."""
    asking = control.fileno()
    running: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor that tells of the end
    while True:
        ready, _, _ = select.select([asking, *running], [], [])
        for descriptor in set(ready) - {asking}:
            pid, asker = running.pop(descriptor)
            _, status = os.waitpid(pid, 0)
            os.close(descriptor)
            _tell(asker, code=os.waitstatus_to_exitcode(status))
            asker.close()
        if asking in ready:
            message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES_MAX, 4)
            if not message:
                return None
            asker, files = socket.socket(fileno=descriptors[0]), descriptors[1:]
            pid = os.fork()
            if pid == 0:
                for number, file in enumerate(files):
                    os.dup2(file, number)
                for number in (control.detach(), asker.detach(), *files):
                    os.close(number)
                for number, (_, other) in running.items():
                    os.close(number)
                    os.close(other.detach())
                return _Request(**json.loads(message))
            for file in files:
                os.close(file)
            running[os.pidfd_open(pid)] = pid, asker
            _tell(asker, pid=pid)


def _tell(asker: socket.socket, **what: Any) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has ended, or doesn't want to know
        asker.send(json.dumps(what).encode())


def _become(request: _Request) -> None:
    """What a new process has from who executed it."""
    os.setsid()
    os.chdir(request.directory)
    os.umask(request.umask)
    resource.setrlimit(resource.RLIMIT_NOFILE, request.files_max)
    os.environ.clear()
    os.environ.update(request.environment)
    sys.path.insert(0, request.directory)
    sys.argv[1:] = request.arguments
    main = sys.modules["__main__"]
    main.__spec__ = importlib.util.find_spec("penstock.__main__")  # what processes of its own import


class _End:
    """What a process does after everything else as it ends: threads were joined, and all others at exit called."""

    #: None while nobody knows: then Python ends the process in its own way.
    code: int | None = None

    def __call__(self) -> None:
        """Leave it at once, with what was printed."""
        if self.code is not None:
            with contextlib.suppress(OSError, ValueError):  # Python says of a closed pipe what it says
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(self.code)


def _main() -> int:
    end = _End()
    atexit.register(end)  # before anybody else: the first is the last to be called
    _import_all()
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()  # else the first pass of each fork copies all of it
    request = _fork_on_demand(socket.socket(fileno=int(sys.argv[1])))
    if request is None:
        return 0
    _become(request)
    from penstock_tools.cli import main

    end.code = main()
    return end.code


if __name__ == "__main__":
    sys.exit(_main())
