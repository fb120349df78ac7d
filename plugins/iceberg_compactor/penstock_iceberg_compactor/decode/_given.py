"""JSON schemas, and Iceberg schemas in JSON, as Arrow types."""

from __future__ import annotations

__all__ = ("struct_of",)

import re
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from penstock_iceberg_compactor.decode._arrow import UUID

_DEPTH_MAX = 32
_ICEBERG: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "string": pa.string(),
    "uuid": UUID,
    "binary": pa.binary(),
}
_FORMATS: dict[str, pa.DataType] = {
    "date-time": pa.timestamp("us", "UTC"),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "uuid": UUID,
}


def struct_of(schema: Any) -> pa.DataType:
    """The struct type of a schema; which of both kinds it is, is seen by its ``fields``.

    Raises ValueError with the reason, which names the place.
    """
    if isinstance(schema, dict) and schema.get("type") == "struct":
        return _iceberg(schema, "", 0)
    if not isinstance(schema, dict):
        raise ValueError("the schema is no json object")
    kind = _json(schema, schema, "", 0)
    if not pa.types.is_struct(kind):
        raise ValueError("the schema has no properties: a record is an object with columns")
    return kind


def _iceberg(kind: Any, place: str, depth: int) -> pa.DataType:
    if depth > _DEPTH_MAX:
        raise ValueError(f"the schema is nested too deep: depth_max={_DEPTH_MAX}")
    if isinstance(kind, str):
        found = _ICEBERG.get(kind)
        if found is not None:
            return found
        parts = re.fullmatch(r"(decimal)\((\d+), ?(\d+)\)|(fixed)\[(\d+)\]", kind)
        if parts and parts[1]:
            return pa.decimal128(int(parts[2]), int(parts[3]))
        if parts:
            return pa.binary(int(parts[5]))
    if isinstance(kind, Mapping):
        nested = kind.get("type")
        if nested == "struct":
            fields = [
                (str(one["name"]), _iceberg(one["type"], f"{place}/{one['name']}", depth + 1))
                for one in kind["fields"]
            ]
            return pa.struct(fields)
        if nested == "list":
            return pa.list_(pa.field("element", _iceberg(kind["element"], f"{place}/element", depth + 1)))
        if nested == "map" and kind["key"] == "string":
            return pa.map_(pa.string(), _iceberg(kind["value"], f"{place}/value", depth + 1))
    raise ValueError(
        f"the schema has a type that json can't be read as: place={place or '/'} type={_shown(kind)}"
    )


def _json(schema: Any, root: Mapping[str, Any], place: str, depth: int) -> pa.DataType:
    if depth > _DEPTH_MAX:
        raise ValueError(f"the schema is nested too deep, or recursive: depth_max={_DEPTH_MAX}")
    if not isinstance(schema, Mapping):
        raise _unknown(place, schema)
    if "$ref" in schema:
        return _json(_referred(str(schema["$ref"]), root), root, place, depth + 1)
    for word in ("oneOf", "anyOf"):
        if word in schema:
            one = _only([one for one in schema[word] if one != {"type": "null"}], place)
            return _json(one, root, place, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        others = [one for one in kind if one != "null"]
        kind = "number" if set(others) == {"integer", "number"} else _only(others, place)
    if kind == "object":
        return _object(schema, root, place, depth)
    if kind == "array":
        return pa.list_(pa.field("element", _json(schema.get("items"), root, f"{place}/items", depth + 1)))
    if kind == "string":
        binary = schema.get("contentEncoding") == "base64"
        return pa.binary() if binary else _FORMATS.get(str(schema.get("format")), pa.string())
    simple = {"integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    if (
        kind not in simple
        and isinstance(schema.get("enum"), list)
        and all(type(one) is str for one in schema["enum"])
    ):
        return pa.string()
    if kind not in simple:
        raise _unknown(place, schema)
    return simple[kind]


def _only(types: list[Any], place: str) -> Any:
    if len(types) != 1:
        raise ValueError(f"the schema leaves a type open, and a column has one: place={place or '/'}")
    return types[0]


def _object(schema: Mapping[str, Any], root: Mapping[str, Any], place: str, depth: int) -> pa.DataType:
    properties = schema.get("properties")
    if properties:
        fields = [
            (str(name), _json(one, root, f"{place}/{name}", depth + 1)) for name, one in properties.items()
        ]
        return pa.struct(fields)
    values = schema.get("additionalProperties")
    if not isinstance(values, Mapping):
        raise _unknown(place, schema)
    return pa.map_(pa.string(), _json(values, root, f"{place}/*", depth + 1))


def _shown(schema: Any) -> str:
    """Of a type that isn't known no more than its name: the file may be any other by mistake."""
    name = schema.get("type") if isinstance(schema, Mapping) else schema
    return name[:20] if isinstance(name, str) else type(name).__name__


def _referred(reference: str, root: Mapping[str, Any]) -> Any:
    found: Any = root
    if not reference.startswith("#"):
        raise ValueError(f"the schema refers to another file: ref={reference}")
    for name in filter(None, reference.removeprefix("#").split("/")):
        if not isinstance(found, Mapping) or name not in found:
            raise ValueError(f"the schema refers to what it doesn't have: ref={reference}")
        found = found[name]
    return found


def _unknown(place: str, schema: Any) -> ValueError:
    return ValueError(
        f"the schema has a type that is no column's: place={place or '/'} type={_shown(schema)}"
    )
