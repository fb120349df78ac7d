"""What docs/writing-a-plugin.md tells an outsider works, word for word: the document is the source of this test."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from tests.integration.conftest import free_port
from tests.patience import HANG_S

DOCUMENT = Path(__file__).parents[2] / "docs" / "writing-a-plugin.md"
TIMEOUT_S = HANG_S
RECORDS = 500


def documented_files() -> dict[str, str]:
    """The files of the tutorial: fenced blocks with a title."""
    return dict(
        re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    )


def documented_commands() -> list[list[str]]:
    """The commands of the tutorial, in order."""
    blocks = re.findall(r"^```console\n(.*?)^```", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    return [
        shlex.split(line.removeprefix("$ "))
        for block in blocks
        for line in block.splitlines()
        if line.startswith("$ ")
    ]


class Outsider:
    """A person in a folder of their own, with the plugin's ``pip install`` in a place that vanishes."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "penstock-wal-sqlite"
        self.site = folder / "site"
        self.port = free_port()
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.site),
            "PYTHONUNBUFFERED": "1",
            "PENSTOCK__LISTENER__BIND": f"127.0.0.1:{self.port}",
            "PENSTOCK__GROUPS__INITIAL_REBALANCE_DELAY": "0ms",
        }

    def write_files(self) -> None:
        for name, text in documented_files().items():
            path = self.project / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def command(self, words: list[str]) -> list[str]:
        """The documented command for this environment: no network, nothing left in site-packages."""
        if words == ["pip", "install", "."]:
            apart = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(self.site)]
            return [sys.executable, "-m", "pip", "install", *apart, "."]
        assert words[0] == "penstock", words
        return [sys.executable, "-m", *words]

    def run(self, words: list[str]) -> str:
        """Run a command that ends by itself; what it printed."""
        result = subprocess.run(
            self.command(words),
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert result.returncode == 0, f"{shlex.join(words)}\n{result.stdout}{result.stderr}"
        return result.stdout

    @contextmanager
    def serving(self, words: list[str], stop: signal.Signals) -> Iterator[str]:
        """A broker, as documented; what it printed until it was ready. ``stop`` ends it."""
        process = subprocess.Popen(
            self.command(words),
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        watchdog = threading.Timer(TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            banner = ""
            while "metadata_log file:" not in banner:  # its last line
                line = process.stdout.readline()
                assert line, f"ended without being ready:\n{banner}"
                banner += line
            yield banner
            process.send_signal(stop)
            rest = process.stdout.read()
            assert "Traceback" not in rest, rest
            assert process.wait() == (0 if stop == signal.SIGTERM else -stop)
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    @property
    def client(self) -> dict[str, str | int | bool]:
        return {"bootstrap.servers": f"127.0.0.1:{self.port}"}

    def produce(self, first: int) -> None:
        """Returns when every record is acknowledged."""
        producer = Producer({**self.client, "acks": "all"})
        errors: list[object] = []
        for number in range(first, first + RECORDS):
            producer.produce(
                "topic",
                key=str(number),
                value=f"record {number}",
                on_delivery=lambda error, _: errors.append(error) if error else None,
            )
        assert producer.flush(HANG_S) == 0
        assert errors == []

    def consume(self, count: int) -> list[str]:
        consumer = Consumer({**self.client, "group.id": "readers", "auto.offset.reset": "earliest"})
        try:
            consumer.subscribe(["topic"])
            values: list[str] = []
            while len(values) < count:
                messages = consumer.consume(count - len(values), 30)
                assert messages, f"no more after {len(values)} of {count} records"
                for message in messages:
                    assert message.error() is None, message.error()
                    values.append(message.value().decode())
            consumer.commit(asynchronous=False)
            return values
        finally:
            consumer.close()


@pytest.mark.full  # of the tutorials, those of each kind are tried in each run
def test_tutorial_works_as_written(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="the tutorial's build backend isn't installed")
    outsider = Outsider(tmp_path)
    outsider.write_files()
    install, info, serve, conformance = documented_commands()

    outsider.run(install)
    shown = outsider.run(info)
    assert "penstock-wal-sqlite 0.1.0" in shown
    assert "path: a string (default wal.sqlite)" in shown
    assert "identity = no" in shown

    with outsider.serving(serve, signal.SIGKILL) as banner:
        assert re.search(r"wal +wal_sqlite\n", banner)
        assert "wal identity none: a lost or exchanged WAL would not be noticed" in banner
        assert f"sqlite:{outsider.project}/penstock-data/log.sqlite" in banner
        outsider.produce(0)
    with outsider.serving(serve, signal.SIGTERM):  # recovers from the plugin's log
        outsider.produce(RECORDS)
        assert outsider.consume(2 * RECORDS) == [f"record {number}" for number in range(2 * RECORDS)]

    outsider.run(conformance)
    report = json.loads((outsider.project / "report.json").read_text())
    outcomes = {clause["name"]: clause["outcome"] for clause in report["clauses"]}
    assert outcomes["acknowledged_entries_survive_a_kill"] == "pass"
    assert outcomes["fenced_process_never_acknowledges_again"] == "pass"
    assert "fail" not in outcomes.values()


def test_tutorial_names_every_plugin_kind() -> None:
    import penstock.hookspecs

    kinds = {
        name.removeprefix("penstock_register_").replace("_", " ").replace("wal", "WAL")
        for name in vars(penstock.hookspecs)
        if name.startswith("penstock_register_")
    }
    rows = set(re.findall(r"^\| ([\w ]+) \| `penstock\.spi\.", DOCUMENT.read_text(), re.MULTILINE))
    assert rows == kinds


def test_tutorial_imports_only_what_a_plugin_may() -> None:
    source = documented_files()["penstock_wal_sqlite/__init__.py"]
    rooms = set(re.findall(r"^(?:from|import) penstock\.(\w+)", source, re.MULTILINE))
    # CONTRIBUTING.md, "Where things are"
    assert rooms <= {
        "spi",
        "hookspecs",
        "errors",
        "units",
        "checksum",
        "direct_io",
        "files",
        "threads",
        "wal",
    }
