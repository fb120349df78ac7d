"""docs/lake.md, typed in line by line: from nothing to a query."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from tests.integration.test_getting_started import Terminals
from tests.patience import HANG_S

DOCUMENT = (Path(__file__).parents[2] / "docs" / "lake.md").read_text()


@pytest.mark.full  # docs/getting-started.md is tried in each run, and so are tables over kills
def test_every_step_to_a_query_works_as_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("duckdb")
    pytest.importorskip("pyiceberg")
    monkeypatch.chdir(tmp_path)
    terminals = Terminals(tmp_path)
    try:
        for language, block in re.findall(
            r"^```(console|python)\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE
        ):
            if language == "python":
                _wait_for_rows(terminals, 3)
                exec(compile(block, "lake.md", "exec"), {})
                continue
            for line in block.splitlines():
                command = line.removeprefix("$ ")
                if command.startswith("penstock serve"):
                    terminals.serve(command)
                elif command.startswith(("penstock", "printf")):
                    terminals.type_in(command)
    finally:
        terminals.stop()
    printed = capsys.readouterr().out
    assert re.search(r"anna\D+8\D", printed), printed
    assert re.search(r"ben\D+4\D", printed), printed


def _wait_for_rows(terminals: Terminals, count: int) -> None:
    deadline = time.monotonic() + HANG_S
    while f"rows: {count}" not in terminals.type_in("penstock lake describe orders -c penstock.toml || true"):
        assert time.monotonic() < deadline, terminals.type_in("penstock lake status -c penstock.toml")
