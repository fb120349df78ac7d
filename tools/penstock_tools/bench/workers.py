"""Client processes as the conductor sees them."""

from __future__ import annotations

__all__ = ("Counters", "Crew", "WorkerProcess")

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from penstock.errors import ConfigError, UnavailableError
from penstock_tools.bench.histogram import Histogram

_ANSWER_S = 120.0


class WorkerProcess:
    """One client process. Methods raise UnavailableError when it died or doesn't answer."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._role: str = setup["role"]
        # its own session: Ctrl-C ends the conductor, and the conductor ends its workers
        self._process = subprocess.Popen(
            [sys.executable, "-m", "penstock_tools.bench._worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._out = self._process.stdout.fileno()
        self._received = bytearray()
        self._write(setup)

    def _write(self, value: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise UnavailableError(f"a client process ended: role={self._role}") from error

    def tell(self, do: str, **arguments: Any) -> None:
        """Send a command; :meth:`hear` gives the answer."""
        self._write({"do": do, **arguments})

    def hear(self) -> dict[str, Any]:
        """The next answer. Raises ConfigError when librdkafka refuses a property."""
        deadline = time.monotonic() + _ANSWER_S
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise UnavailableError(
                    f"a client process doesn't answer: role={self._role} waited_s={_ANSWER_S:.0f}"
                )
            data = os.read(self._out, 2**20)
            if not data:
                code = self._process.wait()
                raise UnavailableError(f"a client process ended: role={self._role} exit_code={code}")
            self._received += data
        line, _, rest = self._received.partition(b"\n")
        self._received = bytearray(rest)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = ConfigError if "_INVALID_ARG" in answer["error"] else UnavailableError
            raise kind(f"a client can't start: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@dataclass(slots=True)
class Counters:
    """What all clients had counted at one moment; histograms hold what came since the moment before."""

    sent: int = 0
    acked: int = 0
    errors: int = 0
    sent_bytes: int = 0
    received: int = 0
    received_bytes: int = 0
    #: Partitions that consumers have, and how many consumers have any.
    assigned: int = 0
    owners: int = 0
    cpu_s: float = 0.0
    histograms: dict[str, Histogram] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, answer: dict[str, Any]) -> None:
        """Take in what one process answered."""
        counts = answer["counts"]
        self.sent += counts.get("sent", 0)
        self.acked += counts.get("acked", 0)
        self.errors += counts.get("errors", 0)
        self.sent_bytes += counts.get("sentBytes", 0)
        self.received += counts.get("received", 0)
        self.received_bytes += counts.get("receivedBytes", 0)
        self.assigned += counts.get("assigned", 0)
        self.owners += counts.get("owners", 0)
        self.cpu_s += answer["cpu_s"]
        self.failures += answer["failures"]
        for name, buckets in answer["histograms"].items():
            self.histograms.setdefault(name, Histogram()).merge(Histogram(buckets))


class Crew:
    """All client processes of a run, as a context manager that ends them."""

    def __init__(self) -> None:
        self._workers: dict[str, list[WorkerProcess]] = {"producer": [], "consumer": [], "fetcher": []}
        #: Histograms of answers that nobody asked for as counters, for the next :meth:`counters`.
        self._pending = Counters()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for workers in self._workers.values():
            for worker in workers:
                worker.close()

    def hire(
        self, role: str, clients: Sequence[dict[str, Any]], load: dict[str, Any], processes_max: int
    ) -> None:
        """Start processes for clients of one role, dealt out evenly, and wait until all have begun."""
        count = min(len(clients), processes_max)
        setups = [{"role": role, "load": load, "clients": list(clients[i::count])} for i in range(count)]
        made = []
        for setup in setups:
            made.append(WorkerProcess(setup))
            self._workers[role].append(made[-1])
        for worker in made:
            worker.hear()

    def _ask(self, roles: Sequence[str], do: str, **arguments: Any) -> list[dict[str, Any]]:
        workers = [worker for role in roles for worker in self._workers[role]]
        for worker in workers:
            worker.tell(do, **arguments)
        return [worker.hear() for worker in workers]

    def order(self, role: str, do: str, **arguments: Any) -> list[dict[str, Any]]:
        """Command all of one role; gives their accounts."""
        answers = self._ask([role], do, **arguments)
        for answer in answers:
            for name, buckets in answer["histograms"].items():
                self._pending.histograms.setdefault(name, Histogram()).merge(Histogram(buckets))
        return [account for answer in answers for account in answer["accounts"]]

    def counters(self) -> Counters:
        """What all of them have counted by now."""
        counters = Counters(histograms=self._pending.histograms)
        self._pending = Counters()
        for answer in self._ask(list(self._workers), "statistics"):
            counters.add(answer)
        return counters
