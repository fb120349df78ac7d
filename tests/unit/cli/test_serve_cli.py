"""``penstock serve`` where its output goes nowhere."""

from __future__ import annotations

import logging

import pytest

from penstock_tools.cli import serve


def test_a_full_disk_behind_stdout_ends_no_broker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What says that it is ready is for people, and a broker that is ready serves."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with caplog.at_level(logging.WARNING, "penstock"):
            serve._say("it is ready\n")
        assert "nothing can be written to stdout: error=No space left on device" in caplog.text
        serve._say("and what comes later\n")
