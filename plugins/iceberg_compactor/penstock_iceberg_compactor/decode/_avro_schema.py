"""Avro schemas as a tree of nodes, each with the Arrow type of its values.

Optional is null beside one other branch. A union of several others is a struct with an optional column for each,
which has the branch's name (``long``, ``string``, a record's name without namespace). Enums are strings; maps have
string keys; times and timestamps have microseconds, and nanoseconds are cut off.
"""

from __future__ import annotations

__all__ = ("Node", "parse_schema", "physical_schema")

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from penstock_iceberg_compactor.decode._arrow import UUID, null_bytes

_PRIMITIVES: dict[str, pa.DataType] = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
#: Logical types by what they annotate; one that stands elsewhere says nothing, as Avro's specification demands.
_LOGICAL: dict[tuple[str, str], pa.DataType] = {
    ("int", "date"): pa.date32(),
    ("int", "time-millis"): pa.time64("us"),
    ("long", "time-micros"): pa.time64("us"),
    ("string", "uuid"): UUID,
    **{("long", f"timestamp-{unit}"): pa.timestamp("us", "UTC") for unit in ("millis", "micros", "nanos")},
    **{("long", f"local-timestamp-{unit}"): pa.timestamp("us") for unit in ("millis", "micros", "nanos")},
}
_DEPTH_MAX = 64
#: A schema that uses its own types again has few lines and any number of columns.
_COLUMNS_MAX = 10_000
#: What a row may take that holds nothing: a fixed takes its bytes also where it is null.
_NULL_BYTES_MAX = 2**20


@dataclass(slots=True, eq=False)
class Node:
    """One type of a schema."""

    kind: str
    #: Arrow's type of its values, a plain one.
    type: pa.DataType
    logical: str = ""
    #: Of a record: each field; of a union: each branch by its name, null included.
    fields: list[tuple[str, Node]] = field(default_factory=list)
    #: Of an array and a map.
    items: Node | None = None
    symbols: tuple[str, ...] = ()
    size: int = 0
    #: Of decimals: digits behind the point.
    scale: int = 0
    #: There is nothing here that only the row-wise way reads.
    bulk: bool = True
    #: Columns in it, itself included.
    columns: int = 1
    #: Its values may take no bytes at all.
    hollow: bool = False

    @property
    def optional(self) -> Node | None:
        """The one branch beside null, of a union of two such."""
        others = [node for _, node in self.fields if node.kind != "null"]
        return others[0] if self.kind == "union" and len(others) == 1 and len(self.fields) == 2 else None


def parse_schema(text: str, references: Sequence[str] = ()) -> Node:
    """The tree of a schema in JSON; ``references`` are schemas that it uses, each after those that it uses itself.

    Raises ValueError with the reason.
    """
    parser = _Parser()
    try:
        for referred in references:
            parser.parse(_load(referred), "", 0)
        return _bounded(parser.parse(_load(text), "", 0))
    except (LookupError, TypeError, AttributeError, OverflowError, pa.ArrowException) as error:
        raise ValueError(f"the schema isn't what avro calls one: fault={type(error).__name__}") from error


def _bounded(node: Node) -> Node:
    size = null_bytes(node.type)
    if size > _NULL_BYTES_MAX:
        raise ValueError(
            f"the schema has rows that take {size} bytes without a value: bytes_max={_NULL_BYTES_MAX}"
        )
    return node


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the schema is no json: {error.msg[:1].lower()}{error.msg[1:]}") from None
    except RecursionError:
        raise ValueError("the schema is nested too deep to be read") from None


class _Parser:
    def __init__(self) -> None:
        self.named: dict[str, Node | None] = {}

    def parse(self, schema: Any, namespace: str, depth: int) -> Node:
        if depth > _DEPTH_MAX:
            raise ValueError(f"the schema is nested too deep: depth_max={_DEPTH_MAX}")
        if isinstance(schema, str):
            return self._name(schema, namespace)
        if isinstance(schema, list):
            return self._union(schema, namespace, depth)
        if not isinstance(schema, dict) or "type" not in schema:
            raise ValueError("the schema has a part that is no type")
        kind = schema["type"]
        if kind in ("record", "error", "enum", "fixed"):
            return self._declare(schema, kind, namespace, depth)
        if kind == "array":
            items = self.parse(schema.get("items"), namespace, depth + 1)
            node = Node("array", pa.list_(pa.field("element", items.type)), items=items)
            node.bulk, node.columns = items.bulk and not items.hollow, 1 + items.columns
        elif kind == "map":
            items = self.parse(schema.get("values"), namespace, depth + 1)
            node = Node("map", pa.map_(pa.string(), items.type), items=items, bulk=items.bulk)
            node.columns = 1 + items.columns
        elif isinstance(kind, dict | list):
            node = self.parse(kind, namespace, depth + 1)
        else:
            node = self._name(kind, namespace)
        return _with_logical(node, schema)

    def _name(self, name: Any, namespace: str) -> Node:
        if name in _PRIMITIVES:
            return Node(name, _PRIMITIVES[name], hollow=name == "null")
        full = name if not isinstance(name, str) or "." in name or not namespace else f"{namespace}.{name}"
        for known in (full, name):
            if known in self.named:
                node = self.named[known]
                if node is None:
                    raise ValueError(f"the schema is recursive, which no table can be: name={known}")
                return node
        raise ValueError(f"the schema uses a name that it doesn't declare: name={name}")

    def _declare(self, schema: dict[str, Any], kind: str, namespace: str, depth: int) -> Node:
        name = schema.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"the schema has {kind}s without a name")
        if "." in name:
            namespace = name.rpartition(".")[0]
        else:
            namespace = schema.get("namespace", namespace) or ""
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        self.named[full] = None
        if kind == "enum":
            node = Node("enum", pa.string(), symbols=_names(schema["symbols"], "an enum's symbols"))
        elif kind == "fixed":
            size = int(schema["size"])
            if size < 1:
                raise ValueError(f"the schema has a fixed of no bytes, which no table can have: name={name}")
            node = Node("fixed", pa.binary(size), size=size, bulk=False)
            node = _with_logical(node, schema)
        else:
            names = _names((one["name"] for one in schema["fields"]), "a record's fields")
            kinds = [self.parse(one["type"], namespace, depth + 1) for one in schema["fields"]]
            fields = list(zip(names, kinds, strict=True))
            columns = _counted(fields)
            node = Node("record", _struct(fields), fields=fields, bulk=all(one.bulk for _, one in fields))
            node.columns, node.hollow = columns, all(one.hollow for _, one in fields)
        self.named[full] = node
        return node

    def _union(self, schema: list[Any], namespace: str, depth: int) -> Node:
        branches = [(_branch_name(one), self.parse(one, namespace, depth + 1)) for one in schema]
        others = [(name, node) for name, node in branches if node.kind != "null"]
        if len({name for name, _ in others}) != len(others):
            raise ValueError("the schema has a union with two branches of one name")
        columns = _counted(branches)
        kind = others[0][1].type if len(others) == 1 else _struct(others)
        simple = len(others) == 1 and len(branches) == 2 and others[0][1].bulk
        return Node("union", kind, fields=branches, bulk=simple, columns=columns)


def _names(names: Iterable[Any], what: str) -> tuple[str, ...]:
    """Names of fields or symbols: text, each once."""
    found = tuple(names)
    if not all(isinstance(name, str) and not re.search("[\ud800-\udfff]", name) for name in found):
        raise ValueError(f"the schema has names of {what} that are no text")
    if len(set(found)) < len(found):
        raise ValueError(f"the schema has a name of {what} twice")
    return found


def _counted(fields: list[tuple[str, Node]]) -> int:
    columns = 1 + sum(node.columns for _, node in fields)
    if columns > _COLUMNS_MAX:
        raise ValueError(f"the schema has too many columns: columns_max={_COLUMNS_MAX}")
    return columns


def _struct(fields: list[tuple[str, Node]]) -> pa.DataType:
    return pa.struct([(name, node.type) for name, node in fields if not pa.types.is_null(node.type)])


def _branch_name(schema: Any) -> str:
    name = schema if isinstance(schema, str) else schema.get("name") if isinstance(schema, dict) else None
    if name is None:
        name = schema["type"] if isinstance(schema, dict) else "union"
    return str(name).rpartition(".")[2]


def _with_logical(node: Node, schema: dict[str, Any]) -> Node:
    logical = schema.get("logicalType")
    if not isinstance(logical, str):
        return node
    if logical == "decimal" and node.kind in ("bytes", "fixed"):
        precision, scale = schema.get("precision"), schema.get("scale", 0)
        if (
            type(precision) is not int
            or type(scale) is not int
            or not 0 <= scale <= precision <= 38
            or not precision
        ):
            return node  # bytes, then
        kind = pa.decimal128(precision, scale)
        return replace(node, type=kind, logical="decimal", scale=scale)
    if logical == "uuid" and node.kind == "fixed" and node.size == 16:
        return Node("fixed", UUID, "uuid", size=16, bulk=False)
    known = _LOGICAL.get((node.kind, logical))
    return node if known is None else replace(node, type=known, logical=logical)


def physical_schema(node: Node) -> str:
    """A schema in JSON with the same encoding, without what pyruhvro doesn't know: bytes are strings in it.

    The whole is one record with one field ``f``.
    """
    names = iter(range(2**31))

    def of(node: Node) -> Any:
        if node.kind == "bytes":
            return "string"
        if node.kind == "enum":
            return {"type": "enum", "name": f"n{next(names)}", "symbols": list(node.symbols)}
        if node.kind in ("array", "map"):
            assert node.items is not None
            return {"type": node.kind, "items" if node.kind == "array" else "values": of(node.items)}
        if node.kind == "record":
            fields = [{"name": f"f{at}", "type": of(one)} for at, (_, one) in enumerate(node.fields)]
            return {"type": "record", "name": f"n{next(names)}", "fields": fields}
        if node.kind == "union":
            return [of(one) for _, one in node.fields]
        return node.kind

    return json.dumps({"type": "record", "name": "penstock", "fields": [{"name": "f", "type": of(node)}]})
