"""What `penstock topic` refuses before it asks a broker."""

from __future__ import annotations

import pytest

from penstock_tools.cli import main
from penstock_tools.cli._format import parse_topic_configs


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["alter", "t"], "nothing to change"),
        (
            ["alter", "t", "--config", "a=1", "--delete-config", "a"],
            "can't be set and deleted at once: config=a",
        ),
        (["create", "t", "--config", "a"], "--config wants name=value"),
        (["list", "-b", "x:y"], "not an address"),
        (
            ["create", "t", "--config", "retention.ms=7x"],
            "--config retention.ms wants a duration like 7d, or milli",
        ),
        (
            ["alter", "t", "--config", "max.message.bytes=big"],
            "max.message.bytes wants a size like 512MiB: value=",
        ),
        (
            ["create", "t", "--partitons", "3"],
            "no such option, the nearest is --partitions, see penstock topic",
        ),
        (
            ["create", "t", "--replication-factor", "3"],
            "--replication-factor isn't taken, leave it out: the broker decides, and where that is penstock the",
        ),
        (
            ["create", "t", "--replicas", "3"],
            "there is no such option, see penstock topic create --help: option=--",
        ),
        (  # as like as --retention and --partitions are
            ["create", "t", "--retention", "7d"],
            "there is no such option, see penstock topic create --help: option=--retention",
        ),
        (
            ["crate", "t"],
            "there is no such command, the nearest is create, see penstock topic --help: command=crate",
        ),
        (["create"], "missing argument 'TOPIC', see penstock topic create --help"),
        (["create", "t", "u"], "got unexpected extra argument(s) (u), see penstock topic create --help"),
        (
            ["create", "t", "-P", "0"],
            "invalid value for '--partitions' / '-P', input should be greater than",
        ),
        (["create", "t", "-P", "two"], "invalid value for '--partitions' / '-P', "),
    ],
)
def test_wrong_options_are_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["topic", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("penstock: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("retention.ms=7d", "604800000"),
        ("retention.ms=604800000", "604800000"),
        ("retention.ms=-1", "-1"),
        ("segment.bytes=512MiB", "536870912"),
        ("max.message.bytes=1048576", "1048576"),
        ("cleanup.policy=7d", "7d"),
    ],
)
def test_durations_and_sizes_may_be_written_as_people_write_them(written: str, sent: str) -> None:
    name = written.partition("=")[0]
    assert parse_topic_configs([written], "--config") == {name: sent}


def test_an_unreachable_broker_is_one_sentence_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["topic", "list", "-b", "127.0.0.1:1"]) == 1
    assert "no broker listens there" in capsys.readouterr().err
