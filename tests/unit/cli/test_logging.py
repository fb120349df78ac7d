"""The log of `penstock serve`: JSON that is one object per line, and files that may be rotated."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from penstock.config import load_config
from penstock.errors import ConfigError
from penstock_tools.cli._logging import JsonFormatter, _LogFile, set_up_logging


def record(message: str, *arguments: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("penstock.test", logging.WARNING, "here.py", 1, message, arguments, None)
    vars(made).update(fields)
    return made


def test_json_is_one_object_per_line_with_what_came_along() -> None:
    text = JsonFormatter().format(record("two\nlines of %s", "é", partition=3, topic=b"\xff"))
    assert "\n" not in text
    found = json.loads(text)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "warning",
        "logger": "penstock.test",
        "message": "two\nlines of é",
        "partition": 3,
        "topic": "b'\\xff'",
    }


def test_json_has_tracebacks_as_text() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    assert json.loads(JsonFormatter().format(made))["exception"].endswith("ValueError: why")


def test_file_is_opened_anew_when_it_was_moved_away(tmp_path: Path) -> None:
    handler = _LogFile(tmp_path / "penstock.log")
    handler.emit(record("before"))
    (tmp_path / "penstock.log").rename(tmp_path / "penstock.log.1")
    handler.emit(record("after"))
    handler.close()
    assert (tmp_path / "penstock.log.1").read_text() == "before\n"
    assert (tmp_path / "penstock.log").read_text() == "after\n"
    assert (tmp_path / "penstock.log").stat().st_mode & 0o007 == 0


def test_file_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    config = load_config(sets=[f"logging.file={tmp_path}/missing/penstock.log"])
    with pytest.raises(
        ConfigError, match=r"^--set logging.file: logging.file can't be opened, make its directory"
    ):
        set_up_logging(config)
