"""docs/getting-started.md, typed in line by line by somebody with two terminals."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.integration.conftest import free_port, penstock
from tests.patience import HANG_S

DOCUMENT = (Path(__file__).parents[2] / "docs" / "getting-started.md").read_text()
TIMEOUT_S = HANG_S


class Terminals:
    """One terminal runs ``penstock serve``, the other one everything else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.more = {"PENSTOCK__LISTENER__BIND": f"127.0.0.1:{self.port}"}
        self.environment = {**os.environ, **self.more, "PYTHONUNBUFFERED": "1"}
        self._broker: subprocess.Popen[str] | None = None

    def serve(self, line: str) -> None:
        self.stop()
        words = re.sub(r"listener\.bind=\S+", f"listener.bind=127.0.0.1:{self.port}", line)
        command = [sys.executable, "-m", *shlex.split(words)]
        broker = self._broker = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        watchdog = threading.Timer(TIMEOUT_S, broker.kill)
        watchdog.start()
        assert broker.stdout is not None
        assert "is ready in" in broker.stdout.readline(), line
        watchdog.cancel()

    def stop(self) -> None:
        if self._broker is None:
            return
        broker, self._broker = self._broker, None
        broker.terminate()
        broker.communicate(timeout=TIMEOUT_S)
        assert broker.returncode in (0, -signal.SIGKILL), "stopped, or killed as the document says"

    def type_in(self, line: str) -> str:
        """What a shell prints for the line; clients go to the port of this test."""
        before, _, command = line.rpartition(" | ")
        words = shlex.split(command)
        if words[0] != "penstock":
            shown = self._shell(line)
            if line.startswith("kill -9"):
                assert self._broker is not None
                self._broker.wait(TIMEOUT_S)
            return shown
        if words[1] in ("topic", "group", "produce", "consume"):
            words += ["-b", f"127.0.0.1:{self.port}"]
        text = self._shell(before).encode() if before else b""
        done = penstock(*words[1:], text=text, more=self.more)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _shell(self, line: str) -> str:
        result = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}{result.stderr}"
        return result.stdout


def test_every_step_works_as_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # commands are forked, and are where we are
    terminals = Terminals(tmp_path)
    shown: dict[str, str] = {}
    try:
        for language, block in re.findall(
            r"^```(console|python)\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE
        ):
            if language == "python":
                code = block.replace("127.0.0.1:9092", f"127.0.0.1:{terminals.port}")
                exec(compile(code, "getting-started.md", "exec"), {})
                continue
            for line in block.splitlines():
                command = line.removeprefix("$ ")
                if command.startswith("penstock serve"):
                    terminals.serve(command)
                elif command.startswith(("penstock", "printf", "kill")):
                    shown[command] = terminals.type_in(command)
    finally:
        terminals.stop()
    assert sorted(
        re.findall(r"\w+ = \w+", shown[r"penstock consume orders --exit -f '%p:%o %k = %s\n'"])
    ) == [
        "anna = almonds",
        "anna = apples",
        "ben = bread",
    ]
    assert sorted(shown["penstock consume orders --exit"].split()) == ["almonds", "apples", "bread"]
    assert "kitchen" in shown["penstock group list"]
    printed = capsys.readouterr().out
    assert "b'apples'" in printed
    assert "b'bread'" in printed
