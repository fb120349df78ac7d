"""Fenced words of plugins: changed by compare-and-set under the node's epoch, bounded, and moved with the WAL."""

from __future__ import annotations

import pytest
from tests.unit.metadata.test_owners import Log

from penstock.errors import ConflictError, FencedError, InvalidRequestError
from penstock.metadata.commands.nodes import WORD_BYTES_MAX, WORDS_MAX, RegisterNode, SetWord, UseWal
from penstock.metadata.image import Image

NAME = "wal/wal_x/members"


def registered(log: Log, node_id: int = 1, wal: str = "w1", incarnation: str = "a") -> int:
    epoch = log.ok(RegisterNode(node_id, incarnation, wal))
    assert isinstance(epoch, int)
    return epoch


def words(log: Log, node_id: int = 1) -> dict[str, str]:
    return log.image.nodes.require(node_id).words


def test_a_word_is_set_where_the_expected_one_is_and_gives_a_new_epoch() -> None:
    log = Log()
    epoch = registered(log)
    first = log.ok(SetWord(1, epoch, NAME, "a b", ""))
    second = log.ok(SetWord(1, epoch, NAME, "a", "a b"))
    assert epoch < first < second == log.image.index
    assert words(log) == {NAME: "a"}
    log.ok(SetWord(1, epoch, NAME, "", "a"))
    assert words(log) == {}


def test_another_word_than_the_expected_one_refuses() -> None:
    log = Log()
    epoch = registered(log)
    log.ok(SetWord(1, epoch, NAME, "a", ""))
    for expected in ("", "b"):
        assert isinstance(log.refused(SetWord(1, epoch, NAME, "c", expected)), ConflictError)


def test_a_fenced_life_of_the_node_changes_no_word() -> None:
    log = Log()
    epoch = registered(log)
    log.ok(SetWord(1, epoch, NAME, "a", ""))
    registered(log, incarnation="b")
    assert isinstance(log.refused(SetWord(1, epoch, NAME, "b", "a")), FencedError)
    assert words(log) == {NAME: "a"}


def test_words_are_bounded_in_number_and_size() -> None:
    log = Log()
    epoch = registered(log)
    assert isinstance(log.refused(SetWord(1, epoch, "n", "x" * WORD_BYTES_MAX, "")), InvalidRequestError)
    for number in range(WORDS_MAX):
        log.ok(SetWord(1, epoch, str(number), "x", ""))
    assert isinstance(log.refused(SetWord(1, epoch, "one more", "x", "")), InvalidRequestError)
    log.ok(SetWord(1, epoch, "0", "y", "x"))


def test_words_of_a_wal_go_to_the_node_that_takes_the_wal_over() -> None:
    log = Log()
    epoch = registered(log)
    log.ok(UseWal(1, epoch, "w1", "here"))
    for name in (NAME, "wal.replicas[0]/wal_y/n", "log_cache/c/n", "wallpaper/p/n"):
        log.ok(SetWord(1, epoch, name, name, ""))
    second = log.ok(RegisterNode(2, "b", "w1", "here"))
    assert sorted(words(log)) == ["log_cache/c/n", "wallpaper/p/n"]
    assert words(log, 2) == {NAME: NAME, "wal.replicas[0]/wal_y/n": "wal.replicas[0]/wal_y/n"}
    log.ok(SetWord(2, second, NAME, "b", NAME))


def test_words_of_a_wal_go_when_it_is_given_up() -> None:
    log = Log()
    epoch = registered(log)
    log.ok(UseWal(1, epoch, "w1", "here"))
    log.ok(SetWord(1, epoch, NAME, "a", ""))
    log.ok(RegisterNode(1, "b", "", lost_wals=["w1"]))
    assert words(log) == {}


@pytest.mark.parametrize("value", ["", "a"])
def test_words_are_in_snapshots(value: str) -> None:
    log = Log()
    epoch = registered(log)
    log.ok(SetWord(1, epoch, NAME, "x", ""))
    log.ok(SetWord(1, epoch, NAME, value, "x"))
    assert Image.from_snapshot(log.image.to_snapshot()).nodes.require(1).words == words(log)
