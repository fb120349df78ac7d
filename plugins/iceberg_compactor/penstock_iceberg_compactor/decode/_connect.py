"""Kafka Connect's JSON with schemas: a schema and a payload in each record."""

from __future__ import annotations

__all__ = ("without_connect_schema",)

import json

import pyarrow as pa
import pyarrow.compute as pc

from penstock_iceberg_compactor.decode._arrow import cut

#: Different texts in front of payloads that are cut off at once; others are parsed one by one.
_PREFIXES_MAX = 16


def without_connect_schema(items: pa.Array) -> pa.Array:
    """JSON values (binary) without the ``schema`` that Kafka Connect puts beside each ``payload``.

    Items that aren't ``{"schema":...,"payload":...}`` stay as they are. The schema is mostly the same text each time,
    so it is found once and cut off.
    """
    pending = pc.fill_null(pc.match_substring_regex(items, rb'^\s*\{\s*"schema"\s*:'), False)
    for _ in range(_PREFIXES_MAX):
        first = pc.index(pending, True).as_py()
        if first < 0:
            return items
        prefix = _payload_prefix(items[first].as_py())
        if prefix is None:
            break
        same = pc.and_(pending, pc.and_(pc.starts_with(items, prefix), pc.ends_with(items, b"}")))
        if not same[first].as_py():
            break
        items = pc.if_else(same, cut(items, len(prefix), 1), items)
        pending = pc.and_(pending, pc.invert(same))
    return pa.array(
        [
            _payload(item) if wrapped else item
            for item, wrapped in zip(items.to_pylist(), pending.to_pylist(), strict=True)
        ],
        pa.binary(),
    )


def _payload_prefix(item: bytes) -> bytes | None:
    """All up to the payload, if the payload is the second of two members."""
    try:
        text = item.decode()
        begin = text.index(":", text.index('"schema"')) + 1
        begin += len(text[begin:]) - len(text[begin:].lstrip())
        _, end = json.JSONDecoder().raw_decode(text, begin)
        rest = text[end:].lstrip()
        if not rest.startswith(",") or not rest[1:].lstrip().startswith('"payload"'):
            return None
        return text[: text.index(":", text.index('"payload"', end)) + 1].encode()
    except (ValueError, RecursionError):
        return None


def _payload(item: bytes) -> bytes:
    """The payload as it stands there: what is wrong with it, such as a name that it has twice, stays so."""
    try:
        text = item.decode()
        members = _members(text) if isinstance(json.loads(text), dict) else []
    except (ValueError, RecursionError):
        return item
    if sorted(name for name, _, _ in members) != ["payload", "schema"]:
        return item
    begin, end = next((begin, end) for name, begin, end in members if name == "payload")
    return text[begin:end].encode()


def _members(text: str) -> list[tuple[str, int, int]]:
    """The names in an object of JSON, which is known to be one, and where their values begin and end."""
    decoder = json.JSONDecoder()
    found: list[tuple[str, int, int]] = []
    at = _next(text, _next(text, 0) + 1)
    while text[at] != "}":
        name, at = decoder.raw_decode(text, _next(text, at + 1) if text[at] == "," else at)
        begin = _next(text, _next(text, at) + 1)
        _, end = decoder.raw_decode(text, begin)
        found.append((name, begin, end))
        at = _next(text, end)
    return found


def _next(text: str, at: int) -> int:
    """Where the next thing is, behind blanks."""
    while text[at] in " \t\r\n":
        at += 1
    return at
