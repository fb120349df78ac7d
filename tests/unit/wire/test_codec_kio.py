"""Every codec of every version gives the bytes kio gives, and reads them back: kio is the independent oracle.

kio's classes carry durations, datetimes and enums where the wire has integers, and None for the zero uuid; the
twin builder below makes the same random message in both vocabularies.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import io
import json
import random
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest

import penstock.wire
from penstock.wire import DecodeError, registry
from penstock.wire._runtime import Writer
from penstock.wire.messages._index import INDEX

kio_index = pytest.importorskip("kio.schema.index")
introspect = pytest.importorskip("kio.serial._introspect")
serial = pytest.importorskip("kio.serial")
kio_errors = pytest.importorskip("kio.schema.errors")

SCHEMA_DIR = Path(penstock.wire.__file__).parent / "schema"
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
INTEGER_BITS = {"int8": 8, "int16": 16, "int32": 32, "int64": 64}
INSTANCES = 4


def _modules() -> list[str]:
    known = set(kio_index.schema_name_map)
    return sorted(path.stem for path in SCHEMA_DIR.glob("*.json") if path.stem in known)


def _scalar(rng: random.Random, kind: str, nullable: bool) -> tuple[Any, Any]:
    """One random value in kio's vocabulary and in ours."""
    if kind in INTEGER_BITS:
        high = 1 << (INTEGER_BITS[kind] - 1)
        value = rng.choice([0, -1, 1, high - 1, -high, rng.randrange(-high, high)])
        return value, value
    if kind == "uint16":
        value = rng.choice([0, 65535, 9092])
        return value, value
    if kind == "bool":
        flag = rng.random() < 0.5
        return flag, flag
    if kind == "float64":
        number = rng.choice([0.0, -1.5, 1e300])
        return number, number
    if kind == "error_code":
        code = rng.choice(list(kio_errors.ErrorCode))
        return code, int(code)
    if kind.startswith("timedelta"):
        ms = rng.choice([0, -1, 30_000, rng.randrange(1 << 31)])
        return datetime.timedelta(milliseconds=ms), ms
    if kind == "datetime_i64":
        if nullable and rng.random() < 0.5:
            return None, -1
        seconds = rng.randrange(4_000_000_000)
        return EPOCH + datetime.timedelta(seconds=seconds), seconds * 1000
    if kind == "uuid":
        raw = rng.choice([bytes(16), rng.randbytes(16)])
        return (uuid.UUID(bytes=raw) if any(raw) else None), raw
    if nullable and rng.random() < 0.3:
        return None, None
    if kind == "string":
        text = rng.choice(["", "a", "topic-ä€😀", "x" * rng.randrange(300)])
        return text, text
    data = rng.randbytes(rng.choice([0, 1, 126, 127, 128, 400]))
    return data, data


def _field(rng: random.Random, item: Any, ours: type[Any], name: str) -> tuple[Any, Any]:
    found = introspect.classify_field(item)
    text = str(item.type)
    is_struct = dataclasses.is_dataclass(found.type_)
    kind = "" if is_struct else introspect.get_schema_field_type(item)
    if found.is_array:
        if text.endswith("| None") and rng.random() < 0.3:
            return None, None
        count = rng.choice([0, 1, 2, 3] if is_struct else [0, 1, 3, 130])
        pairs = [
            twin(rng, found.type_, ours) if is_struct else _scalar(rng, kind, nullable=False)
            for _ in range(count)
        ]
        return tuple(pair[0] for pair in pairs), [pair[1] for pair in pairs]
    if is_struct:
        return (None, None) if "None" in text and rng.random() < 0.4 else twin(rng, found.type_, ours)
    return _scalar(rng, kind, "None" in text)


def twin(rng: random.Random, kio_type: type[Any], our_module: Any) -> tuple[Any, Any]:
    """The same random message as a kio dataclass and as one of our classes."""
    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    for item in dataclasses.fields(kio_type):
        kio_kind = item.metadata.get("kafka_type", "")
        name = item.name + ("_ms" if kio_kind.startswith(("timedelta", "datetime")) else "")
        if introspect.get_field_tag(item) is not None and rng.random() < 0.4:
            continue  # both sides keep their default, which must then be the same value
        theirs[item.name], ours[name] = _field(rng, item, our_module, name)
    return kio_type(**theirs), _our_class(our_module, kio_type)(**ours)


def _our_class(module: Any, kio_type: type[Any]) -> type[msgspec.Struct]:
    root = {"request": "Request", "response": "Response"}.get(kio_type.__module__.rpartition(".")[2], "")
    prefix = next((name for name in module.__all__ if root and name.endswith(root)), "")
    found: type[msgspec.Struct] = getattr(module, prefix + kio_type.__name__, None) or getattr(
        module, kio_type.__name__
    )
    return found


def _kio_bytes(message: Any) -> bytes:
    with io.BytesIO() as buffer:
        serial.entity_writer(type(message))(buffer, message)
        return buffer.getvalue()


def _tables(module: Any, kind: str) -> tuple[dict[int, Any], dict[int, Any]]:
    prefix = {"request": "REQUEST_", "response": "RESPONSE_"}.get(kind, "")
    return getattr(module, prefix + "DECODERS"), getattr(module, prefix + "ENCODERS")


@pytest.mark.parametrize("name", _modules())
def test_same_bytes_as_kio(name: str) -> None:
    module = importlib.import_module(f"penstock.wire.messages.{name}")
    compared = 0
    for version, by_kind in kio_index.schema_name_map[name].items():
        for kind, path in by_kind.items():
            kio_module, _, class_name = path.partition(":")
            kio_type = getattr(importlib.import_module(kio_module), class_name)
            decoders, encoders = _tables(module, kind.name)
            rng = random.Random(f"{name} {kind.name} {version}")
            for _ in range(INSTANCES):
                theirs, ours = twin(rng, kio_type, module)
                expected = _kio_bytes(theirs)
                out = Writer(bytearray())
                encoders[version](ours, out)
                assert b"".join(out.segments()) == expected, f"{class_name} v{version}"
                decoded, end = decoders[version](memoryview(expected), 0, len(expected))
                assert end == len(expected)
                assert decoded == ours, f"{class_name} v{version}"
                compared += 1
    assert compared


def test_all_versions_of_kio_are_covered() -> None:
    for name in _modules():
        raw = json.loads((SCHEMA_DIR / f"{name}.json").read_text())
        if "api_key" not in raw:
            continue
        assert kio_index.api_key_map[raw["api_key"]] == name
        found = registry.supported_versions(raw["api_key"])
        assert found is not None
        assert list(range(found.low, found.high + 1)) == sorted(kio_index.schema_name_map[name])
        assert INDEX[raw["api_key"]][0] == name


def _one_of_each(name: str) -> list[tuple[Any, bytes]]:
    """(decoder, a small valid message) for every message and version of one module."""
    module = importlib.import_module(f"penstock.wire.messages.{name}")
    result = []
    for version, by_kind in kio_index.schema_name_map[name].items():
        for kind, path in by_kind.items():
            kio_module, _, class_name = path.partition(":")
            kio_type = getattr(importlib.import_module(kio_module), class_name)
            decoders, encoders = _tables(module, kind.name)
            rng = random.Random(f"fuzz {name} {kind.name} {version}")
            candidates = []
            for _ in range(6):
                out = Writer(bytearray())
                encoders[version](twin(rng, kio_type, module)[1], out)
                candidates.append(b"".join(out.segments()))
            fitting = [data for data in candidates if len(data) <= 600] or [min(candidates, key=len)[:600]]
            result.append((decoders[version], max(fitting, key=len)))
    return result


@pytest.mark.parametrize("name", _modules())
def test_every_truncation_raises_decode_error(name: str) -> None:
    for decode, data in _one_of_each(name):
        whole = memoryview(data)
        for end in range(len(data)):
            with pytest.raises(DecodeError):
                decode(whole[:end], 0, end)


@pytest.mark.parametrize("name", _modules())
def test_corruption_raises_decode_error_or_decodes_within_bounds(name: str) -> None:
    """Bit flips and absurd lengths at every position: no other exception, and never a position past the end."""
    rng = random.Random(name)
    for decode, data in _one_of_each(name):
        for at in range(len(data)):
            flipped = bytearray(data)
            flipped[at] ^= 1 << rng.randrange(8)
            absurd = bytearray(data)
            patch = rng.choice(
                [b"\x7f\xff\xff\xff", b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x80\x80", b"\x80\0"]
            )
            absurd[at : at + len(patch)] = patch
            for damaged in (flipped, absurd):
                try:
                    _, pos = decode(memoryview(damaged), 0, len(damaged))
                except DecodeError:
                    continue
                assert 0 <= pos <= len(damaged)
