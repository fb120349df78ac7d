"""The client of strategies: what it is answered may break a clause, silence and its own death don't."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from confluent_kafka import KafkaError, TopicPartition
from tests.keeper import in_memory
from tests.patience import HANG_S

from penstock_conformance import _strategy_kafka, _strategy_session
from penstock_conformance._body import make_body
from penstock_conformance._strategy_kafka import Fetched, Records
from penstock_conformance._strategy_session import Session

_OWNER = 1000  # the first partition of the first topic in a session, and any in other clauses


class _Error(NamedTuple):
    number: int

    def code(self) -> int:
        return self.number


class _Message(NamedTuple):
    """A record of the topic, or an event at an offset."""

    place: int
    event: int | None = None

    def error(self) -> _Error | None:
        return None if self.event is None else _Error(self.event)

    def topic(self) -> str:
        return "topic"

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.place

    def key(self) -> bytes:
        return f"{_OWNER}/{self.place}".encode()

    def value(self) -> bytes:
        return make_body(_OWNER, self.place, 28)


class _Topics(NamedTuple):
    error: None = None
    partitions: Sequence[int] = (0,)


class _Listed(NamedTuple):
    topics: dict[str, _Topics]


class _Consumer:
    """Of a broker that says there are three records, and answers each poll with what it is given."""

    def __init__(self, polls: Iterator[list[_Message]]) -> None:
        self._polls = polls

    def list_topics(self, *_: object, **__: object) -> _Listed:
        return _Listed({"topic": _Topics()})

    def get_watermark_offsets(self, *_: object) -> tuple[int, int]:
        return 0, 3

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition("topic", 0)]

    def consume(self, *_: object) -> list[_Message]:
        return next(self._polls)

    def ignore(self, *_: object, **__: object) -> None:
        """Nothing else is of interest."""

    assign = unassign = subscribe = commit = close = ignore


_END = KafkaError._PARTITION_EOF


def _records(polls: Iterator[list[_Message]], monkeypatch: pytest.MonkeyPatch) -> Records:
    monkeypatch.setattr(_strategy_kafka, "Consumer", lambda _: _Consumer(polls))
    return Records("")


def _fetch_all(polls: Iterator[list[_Message]], monkeypatch: pytest.MonkeyPatch) -> object:
    return _records(polls, monkeypatch).fetch_all("topic")


def _fetch_in_group(polls: Iterator[list[_Message]], monkeypatch: pytest.MonkeyPatch) -> object:
    return _records(polls, monkeypatch).fetch_in_group("topic", "group", 3)


def _read_all(polls: Iterator[list[_Message]], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(_strategy_session, "_make_consumer", lambda _: _Consumer(polls))
    session = Session("")
    place = session._model.create("topic", 1, {}).partitions[0]
    for offset in range(3):
        place.acknowledge(place.hand_over(28), offset)
    session.read_all()
    return None


_READS = pytest.mark.parametrize("read", [_fetch_all, _fetch_in_group, _read_all])


@_READS
def test_records_that_come_late_are_not_missing(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many polls bring nothing: who is slow misses the clause's deadline."""
    polls = [*[[]] * 5000, [_Message(0)], *[[]] * 5000, [_Message(1), _Message(2)]]
    found = read(iter(polls), monkeypatch)
    assert found in (None, [Fetched(0, offset, _OWNER, offset) for offset in range(3)])


@_READS
def test_a_read_that_ended_without_a_record_accuses(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broker said that three are there, and that the partition ends behind the second."""
    polls = [[_Message(0), _Message(1)], [_Message(2, _END)]]
    with pytest.raises(AssertionError, match=r"missing at the end|is at the end"):
        read(iter(polls), monkeypatch)


@_READS
def test_an_answer_that_says_that_records_are_damaged_accuses(
    read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AssertionError, match="can't read it"):
        read(iter([[_Message(0)], [_Message(1, KafkaError.INVALID_MSG)]]), monkeypatch)


def test_members_of_a_group_may_be_at_the_end_of_what_still_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    polls = [[_Message(0), _Message(1, _END)], [], [_Message(1), _Message(2)]]
    found = _records(iter(polls), monkeypatch).fetch_in_group("topic", "group", 3, growing=True)
    assert [record.offset for record in found] == [0, 1, 2]


_SCRIPT = """
import json, os, signal, sys
from contextlib import contextmanager
import anyio
from penstock_conformance import Target, run
from penstock_conformance._strategy import BrokerProcess
from penstock_conformance._strategy_client import Client
from penstock_conformance._strategy_kafka import Records

way, select, work_dir, deadline_s = json.loads(sys.argv[1])
ask, start, fail_after = Client.ask, BrokerProcess.start, anyio.fail_after
scopes, met = [], []

async def dies(self, method, *arguments, **named):
    if method is Records.fetch_all:
        met.append("death")
        os.kill(self._child._process.pid, signal.SIGABRT)
    return await ask(self, method, *arguments, **named)

@contextmanager
def kept(*arguments, **named):
    with fail_after(*arguments, **named) as scope:
        scopes.append(scope)
        yield scope

async def falls_silent(self, **medium):
    await start(self, **medium)
    self.pause()
    met.append("silence")
    scopes[-1].deadline = anyio.current_time() + 2  # not before: however long the start took, the deadline comes now

if way == "dies":
    Client.ask = dies
else:
    BrokerProcess.start, anyio.fail_after = falls_silent, kept
report = run(Target(kind="strategy", plugin="default", work_dir=work_dir, deadline_s=deadline_s), select=select)
print(json.dumps([met, report.result, [[clause.outcome, clause.detail] for clause in report.clauses]]))
"""


def _tried(*arguments: object) -> tuple[list[str], str, list[list[str]]]:
    """What the suite met, the verdict, and what came out for each clause."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert done.stdout, done.stderr
    met, result, clauses = json.loads(done.stdout.splitlines()[-1])
    return met, result, clauses


def test_a_client_that_dies_decides_nothing(tmp_path: Path) -> None:
    """The C library aborts: the suite goes on and says so, and no plugin is accused."""
    place = str(in_memory() or tmp_path)
    met, result, clauses = _tried("dies", "what_is_produced or group_goes_on", place, HANG_S / 3)
    assert (met, result) == (["death"], "undecided")
    assert sorted(clauses) == [
        ["pass", ""],
        ["undecided", "the suite's own client died: signal=SIGABRT"],
    ]


def test_a_broker_that_never_answers_misses_the_deadline(tmp_path: Path) -> None:
    """Neither the broker's silence nor the client's, which can't be told apart, is a failure."""
    place = str(in_memory() or tmp_path)
    met, result, ((outcome, detail),) = _tried("is silent", "random_lives_with_restarts", place, HANG_S / 3)
    assert (met, result, outcome) == (["silence"], "undecided", "deadline")
    assert "didn't end within" in detail
    assert "the last step: " in detail
