"""What the client tests share: brokers for a whole module, real records, waiting with a deadline."""

from __future__ import annotations

import itertools
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.integration.conftest import ServeProcess
from tests.patience import HANG_S

#: How long anything may take on a slow machine before the test fails.
DEADLINE_S = HANG_S

#: Codec names as all three Python clients and the Java properties spell them.
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")

_T = TypeVar("_T")
_numbers = itertools.count(1)


class Row(NamedTuple):
    """A record to be produced, and to be found again with the same bytes."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int


def unique(prefix: str) -> str:
    """A topic or group name that no other test of this run uses."""
    return f"{prefix}-{next(_numbers)}"


@contextmanager
def serving(data_dir: Path, *sets: str) -> Iterator[ServeProcess]:
    """One broker for many tests; at the end it must stop cleanly and must not have shown a traceback."""
    broker = ServeProcess(data_dir, sets)
    broker.start()
    try:
        yield broker
    finally:
        code = broker.terminate() if broker.running else None
    assert code == 0, broker.output
    assert "Traceback" not in broker.output, broker.output
    assert "no answer yet" not in broker.output, broker.output
    assert "never awaited" not in broker.output, broker.output


def csv_rows(count: int) -> list[str]:
    """Real tabular text with every script in it: rows of the Unicode character database."""
    rows: list[str] = []
    for code in range(0x21, 0x30000):
        character = chr(code)
        name = unicodedata.name(character, "")
        if name:
            category = unicodedata.category(character)
            rows.append(f'{code:04X},"{character}","{name}",{category},{unicodedata.combining(character)}')
            if len(rows) == count:
                break
    return rows


def real_rows(log_lines: list[str], *, lines: int = 600, rows: int = 300) -> list[Row]:
    """Log lines and CSV rows as records, some of them with keys and headers, all with a time of their own."""
    start_ms = int(time.time() * 1000) - 10_000_000
    found: list[Row] = []
    for number, line in enumerate(log_lines[:lines]):
        key = None if number % 3 == 0 else f"line-{number}".encode()
        found.append(Row(key, line.encode(), (), start_ms + number * 10))
    for number, text in enumerate(csv_rows(rows)):
        key = text.split(",")[0].encode()
        headers = (("row", str(number).encode()), ("encoding", b"utf-8"), ("row", b"")) if number % 2 else ()
        found.append(Row(key, text.encode(), headers, start_ms + (lines + number) * 10))
    return found


def eventually(look: Callable[[], _T], what: str, timeout_s: float = DEADLINE_S) -> _T:
    """Look again and again until ``look`` finds something true, which is returned."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"never came true: {what}, last seen: {found!r}"
        time.sleep(0.05)


def by_partition(records: list[Any], partition: Callable[[Any], int]) -> dict[int, list[Any]]:
    """``records`` by their partition, in the order of reading."""
    found: dict[int, list[Any]] = {}
    for record in records:
        found.setdefault(partition(record), []).append(record)
    return found
