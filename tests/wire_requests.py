"""Kafka requests as bytes, from the schemas: well formed ones with any values, and ones that no client would send.

It shares no code with the broker's codecs, so that what these never write can be written: null where there is none,
lengths that lie, strings that aren't UTF-8, tagged fields that nobody knows.
"""

from __future__ import annotations

__all__ = (
    "API_REQUESTS",
    "NULL",
    "Faults",
    "Field",
    "Request",
    "Values",
    "WildFaults",
    "encode",
    "encode_frame",
    "minimal",
)

import json
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

_SCHEMAS: Final = Path(__file__).resolve().parents[1] / "kernel/penstock/wire/schema"
_FIXED: Final = {
    "bool": ">?",
    "int8": ">b",
    "int16": ">h",
    "uint16": ">H",
    "int32": ">i",
    "int64": ">q",
    "float64": ">d",
}
_ZERO: Final[Mapping[str, Any]] = {"string": "", "bytes": b"", "records": b"", "uuid": bytes(16)}
_API_VERSIONS_KEY: Final = 18
_FOREVER: Final = 1 << 15


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a request or of a struct in it."""

    name: str
    #: Of an element, if it is an array.
    type: str
    is_array: bool
    versions: range
    nullable: range
    tag: int | None
    tagged: range
    flexible: range | None
    default: Any


@dataclass(frozen=True, slots=True)
class Request:
    """A request over all its versions."""

    name: str
    api_key: int
    versions: range
    flexible: range
    fields: tuple[Field, ...]
    structs: Mapping[str, tuple[Field, ...]]

    def at(self, version: int, struct_name: str | None = None) -> list[Field]:
        """The fields that a version has, in the order of the wire, those with a tag last."""
        items = self.fields if struct_name is None else self.structs[struct_name]
        present = [item for item in items if version in item.versions]
        return [item for item in present if version not in item.tagged] + sorted(
            (item for item in present if version in item.tagged), key=lambda item: item.tag or 0
        )


def _range(text: str) -> range:
    if text == "none":
        return range(0)
    if text.endswith("+"):
        return range(int(text[:-1]), _FOREVER)
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _field(raw: Mapping[str, Any]) -> Field:
    kind: str = raw["type"]
    return Field(
        name=raw["name"],
        type=kind.removeprefix("[]"),
        is_array=kind.startswith("[]"),
        versions=_range(raw.get("versions", "0+")),
        nullable=_range(raw.get("nullable", "none")),
        tag=raw.get("tag"),
        tagged=_range(raw.get("tagged", "none")),
        flexible=_range(raw["flexible"]) if "flexible" in raw else None,
        default=raw.get("default"),
    )


@cache
def _load() -> Mapping[int, Request]:
    requests: dict[int, Request] = {}
    for path in sorted(_SCHEMAS.glob("*.json")):
        schema = json.loads(path.read_text())
        for raw in schema["messages"]:
            if raw.get("role") != "request":
                continue
            requests[schema["api_key"]] = Request(
                name=raw["name"],
                api_key=schema["api_key"],
                versions=_range(raw["versions"]),
                flexible=_range(raw["flexible"]),
                fields=tuple(map(_field, raw["fields"])),
                structs={name: tuple(map(_field, items)) for name, items in raw.get("structs", {}).items()},
            )
    return requests


#: All requests that there is a schema of, by API key.
API_REQUESTS: Final = _load()


def minimal(request: Request, version: int, struct_name: str | None = None) -> dict[str, Any]:
    """The smallest well-formed value: defaults, empty arrays."""
    value: dict[str, Any] = {}
    for item in request.at(version, struct_name):
        if item.is_array:
            value[item.name] = None if item.default is None and version in item.nullable else []
        elif item.default is not None:
            value[item.name] = item.default
        elif version in item.nullable:
            value[item.name] = None
        elif item.type in request.structs:
            value[item.name] = minimal(request, version, item.type)
        else:
            value[item.name] = _ZERO.get(item.type, 0)
    return value


class Faults:
    """Decides where the encoder writes what is wrong; this one never does."""

    def length(self, length: int) -> int:
        """What is written as the length of a string, of bytes or of an array (-1: null)."""
        return length

    def tags(self) -> list[tuple[int, bytes]]:
        """Tagged fields that nobody knows."""
        return []

    def content(self, data: bytes) -> bytes:
        """What is written as the content of a string."""
        return data


class WildFaults(Faults):
    """Strikes with a probability per place."""

    def __init__(self, rng: random.Random, probability: float) -> None:
        self._rng = rng
        self._probability = probability

    def _strikes(self, factor: float = 1.0) -> bool:
        return self._rng.random() < self._probability * factor

    def length(self, length: int) -> int:
        if not self._strikes():
            return length
        return self._rng.choice(
            [-1, -2, 0, length + 1, length - 1, 2 * length, 2**15, 2**24, 2**31 - 1, -(2**31)]
        )

    def tags(self) -> list[tuple[int, bytes]]:
        if not self._strikes(2):
            return []
        tags = sorted(
            self._rng.choice([0, 1, 2, 7, 100, 2**31 - 1, 2**32 - 1])
            for _ in range(self._rng.randrange(1, 4))
        )
        return [(tag, self._rng.randbytes(self._rng.choice([0, 1, 4, 40]))) for tag in tags]

    def content(self, data: bytes) -> bytes:
        if not self._strikes(2):
            return data
        rng = self._rng
        if not data:
            return rng.choice([b"\xff", b"\xed\xa0\x80", b"\0", b"\xf0\x9f\x98"])
        at = rng.randrange(len(data))
        return data[:at] + rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"\n"]) + data[at + 1 :]


_NO_FAULTS: Final = Faults()


def encode(request: Request, version: int, value: Mapping[str, Any], faults: Faults = _NO_FAULTS) -> bytes:
    """The body of a request. Strings may be given as str or as bytes."""
    return _Encoder(request, version, faults).struct(value, None)


def encode_frame(
    request: Request,
    version: int,
    correlation_id: int,
    value: Mapping[str, Any],
    *,
    client_id: str | bytes | None = "test",
    faults: Faults = _NO_FAULTS,
) -> bytes:
    """A whole request: length, header, body."""
    header = struct.pack(">hhi", request.api_key, version, correlation_id)
    name = client_id.encode() if isinstance(client_id, str) else client_id
    header += struct.pack(">h", -1) if name is None else struct.pack(">h", len(name)) + name
    encoder = _Encoder(request, version, faults)
    if version in request.flexible:
        header += encoder.tagged([])
    body = header + encoder.struct(value, None)
    return struct.pack(">i", len(body)) + body


class _Encoder:
    def __init__(self, request: Request, version: int, faults: Faults) -> None:
        self._request = request
        self._version = version
        self._faults = faults

    def struct(self, value: Mapping[str, Any], name: str | None) -> bytes:
        out: list[bytes] = []
        tagged: list[tuple[int, bytes]] = []
        for item in self._request.at(self._version, name):
            given = value[item.name]
            if self._version not in item.tagged:
                out.append(self._value(item, given))
            elif given != item.default:
                assert item.tag is not None
                tagged.append((item.tag, self._value(item, given)))
        if self._version in self._request.flexible:
            out.append(self.tagged(tagged))
        return b"".join(out)

    def tagged(self, tagged: list[tuple[int, bytes]]) -> bytes:
        known = {tag for tag, _ in tagged}
        unknown = [one for one in self._faults.tags() if one[0] not in known]
        fields = sorted(tagged + unknown, key=lambda one: one[0])
        return _uvarint(self._faults.length(len(fields)) if unknown else len(fields)) + b"".join(
            _uvarint(tag) + _uvarint(len(data)) + data for tag, data in fields
        )

    def _value(self, item: Field, value: Any) -> bytes:
        compact = self._version in (self._request.flexible if item.flexible is None else item.flexible)
        if item.is_array:
            if value is None:
                return self._length(-1, compact, ">i")
            elements = b"".join(self._element(item, one, compact) for one in value)
            return self._length(len(value), compact, ">i") + elements
        if item.type in self._request.structs and self._version in item.nullable:
            return b"\xff" if value is None else b"\x01" + self.struct(value, item.type)
        return self._element(item, value, compact)

    def _element(self, item: Field, value: Any, compact: bool) -> bytes:
        if item.type in self._request.structs:
            return self.struct(value, item.type)
        if item.type == "uuid":
            return bytes(value)
        if item.type in _FIXED:
            return struct.pack(_FIXED[item.type], value)
        legacy = ">h" if item.type == "string" else ">i"
        if value is None:
            return self._length(-1, compact, legacy)
        data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)
        if item.type == "string":
            data = self._faults.content(data)
        return self._length(len(data), compact, legacy) + data

    def _length(self, length: int, compact: bool, legacy: str) -> bytes:
        length = self._faults.length(length)
        if compact:
            return _uvarint(length + 1)
        bits = 8 * struct.calcsize(legacy)
        return (length % (1 << bits)).to_bytes(bits // 8, "big")


def _uvarint(value: int) -> bytes:
    value %= 1 << 32
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


#: What ``known`` of ``Values`` says where null is the sensible value.
NULL: Final = object()

_INTEGERS: Final = {"int8": 8, "int16": 16, "uint16": 16, "int32": 32, "int64": 64}


class Values:
    """Draws values for a request: mostly what makes sense, now and then the edge of what the type holds.

    ``known("Struct.field", type)`` gives what is sensible for a field, None where it doesn't know.
    """

    def __init__(
        self,
        rng: random.Random,
        known: Callable[[str, str], Any] = lambda _path, _type: None,
        *,
        wildness: float = 0.1,
    ) -> None:
        self._rng = rng
        self._known = known
        self._wildness = wildness

    def draw(self, request: Request, version: int, struct_name: str | None = None) -> dict[str, Any]:
        """A value that ``encode`` takes."""
        return {
            item.name: self._field(request, version, item, struct_name or request.name)
            for item in request.at(version, struct_name)
        }

    def _field(self, request: Request, version: int, item: Field, owner: str) -> Any:
        rng = self._rng
        if version in item.nullable:
            share = 0.95 if self._known(f"{owner}.{item.name}", item.type) is NULL else 0.15
            if rng.random() < share:
                return None
        if version in item.tagged and rng.random() < 0.5:
            if item.type in request.structs and not item.is_array:
                return self.draw(request, version, item.type)
            return item.default if item.default is not None else self._one(request, version, item, owner)
        if not item.is_array:
            return self._one(request, version, item, owner)
        count = rng.choice([0, 1, 1, 1, 2, 3])
        if rng.random() < self._wildness / 4:
            count = rng.choice([20, 300])
        values = [self._one(request, version, item, owner) for _ in range(min(count, 40))]
        if values and rng.random() < self._wildness:  # what is named twice
            values += [rng.choice(values)] * rng.randrange(1, 3)
        if values and count > 40:
            values = values * (count // len(values))
        return values

    def _one(self, request: Request, version: int, item: Field, owner: str) -> Any:
        if item.type in request.structs:
            return self.draw(request, version, item.type)
        rng = self._rng
        if rng.random() >= self._wildness:
            known = self._known(f"{owner}.{item.name}", item.type)
            if known is not None and known is not NULL:
                return known
        if item.type in _INTEGERS:
            return self._integer(item)
        if item.type == "bool":
            return rng.random() < 0.5
        if item.type == "float64":
            return rng.choice([0.0, 1.5, -1.0, float("inf"), float("-inf"), float("nan"), 1e308])
        if item.type == "uuid":
            return rng.choice([bytes(16), bytes(15) + b"\1", rng.randbytes(16)])
        if item.type == "string":
            return self.text()
        return rng.choice([b"", b"\0", b"\0\0\0\0", rng.randbytes(rng.randrange(200))])

    def _integer(self, item: Field) -> int:
        rng = self._rng
        bits = _INTEGERS[item.type]
        low, high = -(1 << bits - 1), (1 << bits - 1) - 1
        if item.type == "uint16":
            low, high = 0, (1 << bits) - 1
        if item.default is not None and rng.random() < 0.3:
            return int(item.default)
        value: int = rng.choice(
            [0, 0, 1, 1, 2, 5, 100, -1, -2, -3, 1000, 60_000, low, high, high - 1, low + 1, high // 1000]
        )
        return min(max(value, low), high)

    def text(self) -> str | bytes:
        """A string that nobody uses for a name, or hardly anybody."""
        rng = self._rng
        texts: list[str | bytes] = [
            "",
            "",
            "x",
            ".",
            "..",
            "a" * 249,
            "a" * 250,
            "n" * rng.choice([4096, 10_923, 32_767]),
            "über-größe",
            "\U0001f600" * 10,
            "nul\0byte",
            "line\nbreak\r\x1b[31m",
            "%s %d {0} {x!r}",
            "-1",
            "9223372036854775808",
            "1e400",
            b"\xff\xfe",
            b"ok\xc3",
            b"\xed\xa0\x80",
            b"\xff" * rng.choice([10, 10_923, 32_767]),
        ]
        return rng.choice(texts)
