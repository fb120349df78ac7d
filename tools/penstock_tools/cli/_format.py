"""How commands read what people write (offsets, times, pairs) and write what people read (records, tables)."""

from __future__ import annotations

__all__ = (
    "OffsetSpec",
    "compile_format",
    "count_text",
    "json_record",
    "parse_key_delimiter",
    "parse_offset",
    "parse_pairs",
    "parse_time_ms",
    "parse_topic_configs",
    "parse_topic_partitions",
    "print_table",
    "table_lines",
    "write_out",
)

import base64
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import msgspec

from penstock.errors import InvalidRequestError
from penstock.units import parse_duration_ms, parse_size

if TYPE_CHECKING:
    from penstock.wire.records import Record

Formatter: TypeAlias = "Callable[[str, int, Record], bytes]"

_ESCAPES: Final = {"n": b"\n", "t": b"\t", "r": b"\r", "0": b"\0", "\\": b"\\"}
_OFFSET_MAX: Final = (1 << 63) - 1


# -- what people write -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OffsetSpec:
    """Where to begin. ``value``: the offset, the number of records from the end, or the time in ms."""

    kind: Literal["beginning", "end", "stored", "offset", "from_end", "time"]
    value: int = 0


def parse_offset(text: str) -> OffsetSpec:
    """``beginning``, ``end``, ``stored``, ``N``, ``-N`` (N before the end) or ``s@TIME``.

    Raises:
        InvalidRequestError: it is none of them.
    """
    word = text.strip().lower()
    if word in ("beginning", "earliest"):
        return OffsetSpec("beginning")
    if word in ("end", "latest"):
        return OffsetSpec("end")
    if word == "stored":
        return OffsetSpec("stored")
    if word.startswith("s@"):
        return OffsetSpec("time", parse_time_ms(text.strip()[2:]))
    if re.fullmatch(r"-?[0-9]{1,19}", word) and abs(int(word)) <= _OFFSET_MAX:
        return OffsetSpec("from_end", -int(word)) if word.startswith("-") else OffsetSpec("offset", int(word))
    raise InvalidRequestError(
        f"not an offset, use beginning, end, stored, N, -N or s@TIME (ms or ISO): value={text}"
    )


def parse_time_ms(text: str) -> int:
    """Milliseconds since the epoch, from a number of them or an ISO 8601 time; local time if it has no zone.

    Raises:
        InvalidRequestError: it is neither.
    """
    if re.fullmatch(r"[0-9]{1,18}", text):
        return int(text)
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            f"not a time, write it like 2026-01-31T12:00:00Z or as milliseconds since the epoch: value={text}"
        ) from None


def parse_pairs(items: Iterable[str], option: str) -> list[tuple[str, str]]:
    """``name=value`` each; the value may be empty and may have more ``=``.

    Raises:
        InvalidRequestError: one has no ``=`` or no name.
    """
    pairs = []
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise InvalidRequestError(f"{option} wants name=value: value={item}")
        pairs.append((name, value))
    return pairs


def parse_topic_configs(items: Iterable[str], option: str) -> dict[str, str]:
    """Topic configs, ``name=value`` each, as Kafka writes them.

    Where Kafka wants milliseconds or bytes (the name ends in ``.ms`` or ``.bytes``), a duration or a size as people
    write them will do: ``retention.ms=7d``, ``segment.bytes=512MiB``.

    Raises:
        InvalidRequestError: one has no ``=`` or no name, or is neither a number nor as people write it.
    """
    configs = {}
    for name, value in parse_pairs(items, option):
        parse = parse_duration_ms if name.endswith(".ms") else parse_size if name.endswith(".bytes") else None
        if parse is not None and not re.fullmatch(r"\s*[-+]?[0-9]+\s*", value):
            try:
                value = str(parse(value))
            except ValueError as error:
                wanted = (
                    "a duration like 7d, or milliseconds" if name.endswith(".ms") else "a size like 512MiB"
                )
                raise InvalidRequestError(f"{option} {name} wants {wanted}: value={value}") from error
        configs[name] = value
    return configs


def parse_topic_partitions(text: str) -> tuple[str, list[int] | None]:
    """``TOPIC`` (all partitions: None) or ``TOPIC:0,1,5``.

    Raises:
        InvalidRequestError: the partitions are no numbers.
    """
    topic, colon, listing = text.partition(":")
    if topic and not colon:
        return topic, None
    numbers = [part.strip() for part in listing.split(",")]
    if not topic or not all(number.isdecimal() for number in numbers):
        raise InvalidRequestError(f"not a topic or TOPIC:PARTITION,...: value={text}")
    return topic, sorted({int(number) for number in numbers})


def parse_key_delimiter(text: str) -> bytes:
    r"""The delimiter's bytes; ``\t``, ``\n``, ``\0``, ``\xNN`` stand for what they do in a format.

    Raises:
        InvalidRequestError: it is empty, or an escape isn't one.
    """
    if not text:
        raise InvalidRequestError("a delimiter has at least one character")
    return b"".join(part for part in _parse(text.replace("%", "%%")) if isinstance(part, bytes))


# -- records ---------------------------------------------------------------------------------------------------


def _length(data: Any) -> bytes:
    return b"-1" if data is None else b"%d" % len(data)


def _headers(record: Record) -> bytes:
    return b",".join(
        name.encode() + b"=" + (b"NULL" if value is None else value) for name, value in record.headers
    )


_FIELDS: Final[dict[str, Callable[[bytes, int, Any], bytes]]] = {
    "t": lambda topic, partition, record: topic,
    "p": lambda topic, partition, record: b"%d" % partition,
    "o": lambda topic, partition, record: b"%d" % record.offset,
    "k": lambda topic, partition, record: b"" if record.key is None else bytes(record.key),
    "s": lambda topic, partition, record: b"" if record.value is None else bytes(record.value),
    "K": lambda topic, partition, record: _length(record.key),
    "S": lambda topic, partition, record: _length(record.value),
    "T": lambda topic, partition, record: b"%d" % record.timestamp_ms,
    "h": lambda topic, partition, record: _headers(record),
}


def _parse(text: str) -> list[bytes | str]:
    """Literal bytes, and field letters as str."""
    parts: list[bytes | str] = []
    pos = 0
    while pos < len(text):
        char = text[pos]
        following = text[pos + 1 : pos + 2]
        if char == "\\":
            if following in _ESCAPES and following:
                parts.append(_ESCAPES[following])
                pos += 2
            elif following == "x" and re.fullmatch(r"[0-9a-fA-F]{2}", text[pos + 2 : pos + 4]):
                parts.append(bytes([int(text[pos + 2 : pos + 4], 16)]))
                pos += 4
            else:
                raise InvalidRequestError(
                    rf"unknown escape, there are \n \t \r \0 \\ and \xNN: value=\{following}"
                )
        elif char == "%":
            if following == "%":
                parts.append(b"%")
            elif following in _FIELDS and following:
                parts.append(following)
            else:
                raise InvalidRequestError(
                    f"unknown field in the format, there are %t %p %o %k %s %K %S %T %h and %%: value=%{following}"
                )
            pos += 2
        else:
            parts.append(char.encode(errors="surrogateescape"))
            pos += 1
    return parts


def compile_format(text: str) -> Formatter:
    r"""A function of (topic, partition, record) that writes a record as kcat's ``-f`` does.

    %t topic, %p partition, %o offset, %k key, %s value, %K and %S their lengths (-1 for null), %T timestamp in
    ms, %h headers, %% percent; ``\n \t \r \0 \\ \xNN``.

    Raises:
        InvalidRequestError: an unknown field or escape.
    """
    parts: list[bytes | str] = []
    for part in _parse(text):  # neighbouring literals become one
        last = parts[-1] if parts else None
        if isinstance(part, bytes) and isinstance(last, bytes):
            parts[-1] = last + part
        else:
            parts.append(part)
    steps = [part if isinstance(part, bytes) else _FIELDS[part] for part in parts]

    def write(topic: str, partition: int, record: Record) -> bytes:
        name = topic.encode()
        return b"".join(
            [step if isinstance(step, bytes) else step(name, partition, record) for step in steps]
        )

    return write


def json_record(topic: str, partition: int, record: Record) -> bytes:
    """A record as one line of JSON; bytes that aren't UTF-8 are base64 in a field named ``..._base64``."""
    envelope: dict[str, Any] = {
        "topic": topic,
        "partition": partition,
        "offset": record.offset,
        "ts": record.timestamp_ms,
    }
    _put_text(envelope, "key", record.key)
    _put_text(envelope, "payload", record.value)
    headers = []
    for name, value in record.headers:
        header: dict[str, Any] = {"name": name}
        _put_text(header, "value", value)
        headers.append(header)
    envelope["headers"] = headers
    return msgspec.json.encode(envelope) + b"\n"


def _put_text(target: dict[str, Any], name: str, data: bytes | memoryview | None) -> None:
    if data is None:
        target[name] = None
        return
    try:
        target[name] = str(data, "utf-8")
    except UnicodeDecodeError:
        target[f"{name}_base64"] = base64.b64encode(data).decode()


# -- output ----------------------------------------------------------------------------------------------------


def write_out(data: bytes) -> None:
    """All of ``data`` to stdout, now. Raises BrokenPipeError when the reader went away."""
    out = sys.stdout.buffer
    left = memoryview(data)
    while left:  # with PYTHONUNBUFFERED the "buffer" is the bare file, which may take a part only
        left = left[out.write(left) :]
    out.flush()


def count_text(count: int, thing: str) -> str:
    """``1 record``, ``2 records``."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Plain columns, so that grep and awk can read them; numbers to the right, the last as long as it likes."""
    columns = range(len(head))
    widths = [max(len(row[column]) for row in (head, *rows)) for column in columns]
    to_right = [bool(rows) and all(_is_number(row[column]) for row in rows) for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, to_right, strict=True)
        ).rstrip()
        for row in (head, *rows)
    ]


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-?[0-9]*", cell) is not None


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: with colour on a terminal, plain text elsewhere."""
    if not sys.stdout.isatty():
        sys.stdout.flush()
        write_out("".join(f"{line}\n" for line in table_lines(head, rows)).encode(errors="replace"))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, title in enumerate(head):
        right = bool(rows) and all(_is_number(row[column]) for row in rows)
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
