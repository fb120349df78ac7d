"""What `penstock consume` reads from people (offsets, times) and writes for them (formats, JSON)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import CorruptError, InvalidRequestError
from penstock.wire.records import Record
from penstock_tools.cli._format import (
    OffsetSpec,
    compile_format,
    json_record,
    parse_offset,
    parse_pairs,
    parse_time_ms,
    parse_topic_partitions,
    table_lines,
)
from penstock_tools.cli.consume import _Printer

RECORD = Record(7, 1_700_000_000_000, memoryview(b"key"), memoryview(b"a\xffb"), [("h", b"x"), ("n", None)])
NULLS = Record(8, -1, None, None, [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"%t %p %o\n", b"topic 3 7\n"),
        (r"%k=%s", b"key=a\xffb"),
        (r"%K/%S/%T", b"3/3/1700000000000"),
        (r"%h", b"h=x,n=NULL"),
        (r"100%%\t\\\x41\0", b"100%\t\\A\0"),
        ("", b""),
        ("é%o", "é7".encode()),
    ],
)
def test_a_format_writes_its_fields_and_escapes(text: str, expected: bytes) -> None:
    assert compile_format(text)("topic", 3, RECORD) == expected


def test_records_before_damage_are_printed(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    def records() -> Iterator[Record]:
        yield RECORD
        raise CorruptError("a batch can't be read")

    fetched: Any = SimpleNamespace(topic="t", partition=0, position=9, records=records)
    with pytest.raises(CorruptError):
        _Printer(compile_format("%o\n"), None).print(fetched)
    assert capsysbinary.readouterr().out == b"7\n"


def test_null_is_empty_with_length_minus_1() -> None:
    assert compile_format("[%k][%s] %K %S [%h]")("t", 0, NULLS) == b"[][] -1 -1 []"


@pytest.mark.parametrize("text", ["%", "%z", "a%", "\\", r"\q", r"\x1", r"\xgg"])
def test_an_unknown_field_or_escape_is_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="there are"):
        compile_format(text)


@given(st.text(alphabet=st.characters(exclude_characters="%\\", exclude_categories=["Cs"])))
def test_text_without_fields_is_written_as_it_is(text: str) -> None:
    assert compile_format(text)("t", 0, NULLS) == text.encode()


def test_json_is_one_line_with_base64_for_what_is_not_text() -> None:
    line = json_record("topic", 3, RECORD)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "topic": "topic",
        "partition": 3,
        "offset": 7,
        "ts": 1_700_000_000_000,
        "key": "key",
        "payload_base64": "Yf9i",
        "headers": [{"name": "h", "value": "x"}, {"name": "n", "value": None}],
    }
    assert json.loads(json_record("t", 0, NULLS))["payload"] is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("beginning", OffsetSpec("beginning")),
        ("Earliest", OffsetSpec("beginning")),
        ("end", OffsetSpec("end")),
        ("latest", OffsetSpec("end")),
        ("stored", OffsetSpec("stored")),
        ("0", OffsetSpec("offset", 0)),
        ("9223372036854775807", OffsetSpec("offset", (1 << 63) - 1)),
        ("-5", OffsetSpec("from_end", 5)),
        ("s@1700000000000", OffsetSpec("time", 1_700_000_000_000)),
        ("s@2023-11-14T22:13:20Z", OffsetSpec("time", 1_700_000_000_000)),
        ("s@2023-11-14T23:13:20.5+01:00", OffsetSpec("time", 1_700_000_000_500)),
    ],
)
def test_an_offset_is_a_word_a_number_or_a_time(text: str, expected: OffsetSpec) -> None:
    assert parse_offset(text) == expected


@pytest.mark.parametrize("text", ["", "first", "1.5", "--5", "9223372036854775808", "s@", "s@yesterday", "٣"])
def test_what_is_no_offset_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="not an offset|not a time"):  # noqa: RUF043
        parse_offset(text)


def test_a_time_without_a_zone_is_local() -> None:
    from datetime import datetime

    assert parse_time_ms("2023-11-14T22:13:20") == round(
        datetime(2023, 11, 14, 22, 13, 20).timestamp() * 1000
    )


def test_pairs_keep_what_follows_the_first_equals_sign() -> None:
    assert parse_pairs(["a=b=c", "d="], "--header") == [("a", "b=c"), ("d", "")]
    for wrong in ("a", "=b"):
        with pytest.raises(InvalidRequestError, match="--header wants name=value"):
            parse_pairs([wrong], "--header")


def test_topic_partitions() -> None:
    assert parse_topic_partitions("t") == ("t", None)
    assert parse_topic_partitions("t:2,0,2") == ("t", [0, 2])
    for wrong in ("", ":1", "t:", "t:a", "t:1,"):
        with pytest.raises(InvalidRequestError):
            parse_topic_partitions(wrong)


def test_a_table_has_plain_columns_with_numbers_to_the_right() -> None:
    assert table_lines(("NAME", "N", "WHAT"), [("a", "1", "x"), ("long", "-22", "")]) == [
        "NAME    N  WHAT",
        "a       1  x",
        "long  -22",
    ]
