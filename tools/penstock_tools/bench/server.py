"""The broker that a run starts for itself, and what it costs."""

from __future__ import annotations

__all__ = ("BrokerProcess", "Spent", "Usage", "machine_facts")

import contextlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from penstock.errors import UnavailableError

_READY_S = 60.0
_STOP_S = 120.0
#: Of what the broker prints, the first and the last lines are kept.
_LINES_MAX = 200


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used: processor seconds so far, resident bytes now and at most so far."""

    cpu_s: float
    resident_bytes: int
    resident_bytes_max: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What processes have spent so far: processor seconds, and bytes that they wrote."""

    cpu_s: float = 0.0
    written_bytes: int = 0


class BrokerProcess:
    """``penstock serve`` on a free port, with its data in ``directory``; a context manager that stops it.

    Entering raises UnavailableError, with what it printed, when it doesn't start.
    """

    def __init__(
        self,
        directory: Path,
        sets: Sequence[str] = (),
        config: Path | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        self._command = [sys.executable, "-m", "penstock", "serve", "--log-level", "warning", *arguments]
        if config is not None:
            self._command += ["--config", str(config)]
        for setting in (f"broker.data_dir={directory}", "listener.bind=127.0.0.1:0", *sets):
            self._command += ["--set", setting]
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._printed: list[str] = []
        self._ready = threading.Event()
        self.bootstrap_servers = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(_READY_S) or not self.bootstrap_servers:
            self.__exit__()
            raise UnavailableError(f"the broker didn't start, it said: {' '.join(self._printed).strip()!r}")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._reader is not None
        self._reader.join(5)
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._printed.append(line)
            del self._printed[_LINES_MAX // 2 : -_LINES_MAX // 2]
            found = re.match(r"\s+listening\s+(\S+)", line)
            if found:
                self.bootstrap_servers = found[1]
                self._ready.set()
        self._ready.set()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        assert self._process is not None
        return self._process.poll() is not None

    @property
    def last_words(self) -> str:
        """The last line that it printed."""
        return self._printed[-1].strip() if self._printed else ""

    @property
    def banner(self) -> list[str]:
        """What it printed at its start."""
        return [line.rstrip("\n") for line in self._printed]

    def usage(self) -> Usage | None:
        """What it has used so far; None when it is gone, or where there is no /proc."""
        assert self._process is not None
        folder = Path("/proc", str(self._process.pid))
        with contextlib.suppress(OSError, KeyError):
            status = dict(
                re.findall(r"^(VmHWM|VmRSS):\s+(\d+) kB", folder.joinpath("status").read_text(), re.MULTILINE)
            )
            return Usage(
                cpu_s=_cpu_s(folder),
                resident_bytes=int(status["VmRSS"]) * 1024,
                resident_bytes_max=int(status["VmHWM"]) * 1024,
            )
        return None

    def children(self) -> Spent:
        """What the processes that it runs have spent so far; nothing where there is no /proc."""
        assert self._process is not None
        cpu_s, written_bytes = 0.0, 0
        for task in Path("/proc", str(self._process.pid), "task").glob("*/children"):
            for pid in task.read_text().split():
                folder = Path("/proc", pid)
                with contextlib.suppress(OSError):
                    cpu_s += _cpu_s(folder)
                    said = dict(line.split(": ") for line in (folder / "io").read_text().splitlines())
                    written_bytes += int(said["wchar"])
        return Spent(cpu_s=cpu_s, written_bytes=written_bytes)


def _cpu_s(folder: Path) -> float:
    ticks = (folder / "stat").read_text().rpartition(")")[2].split()
    return (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")


def machine_facts(directory: Path | None = None) -> dict[str, Any]:
    """What the figures depend on: processor, memory, system, versions, and the disk of ``directory``."""
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "processors": os.cpu_count(),
        "memoryMB": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "penstock": importlib.metadata.version("penstock"),
    }
    with contextlib.suppress(OSError):
        model = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        facts["processor"] = model[1] if model else facts["processor"]
    with contextlib.suppress(ImportError):
        import confluent_kafka

        facts["confluent-kafka"] = str(confluent_kafka.__version__)
        facts["librdkafka"] = confluent_kafka.libversion()[0]
    if directory is not None:
        facts["filesystem"] = _filesystem(directory)
    return facts


def _filesystem(directory: Path) -> str:
    """Type of the file system that ``directory`` is on."""
    best = ("", "unknown")
    with contextlib.suppress(OSError):
        resolved = str(directory.resolve())
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, kind = line.split()[:3]
            if (resolved + "/").startswith(mount.rstrip("/") + "/") and len(mount) >= len(best[0]):
                best = (mount, kind)
    return best[1]
