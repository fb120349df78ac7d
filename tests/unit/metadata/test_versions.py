"""The metadata version: whatever is stored belongs to one, and a newer one is told as such."""

from __future__ import annotations

import inspect
import json
import typing
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from tests.unit.metadata.version_table import SEALS, VERSIONS

from penstock.errors import NewerVersionError
from penstock.metadata import versions
from penstock.metadata.command import Command
from penstock.metadata.commands import COMMANDS, Entry, decode_entry, encode_entry, new_entry
from penstock.metadata.commands.cluster import FormatCluster
from penstock.metadata.image import Image
from penstock.metadata.ranges import StreamRange
from penstock.metadata.stored import ImageData
from penstock.metadata.versions import METADATA_VERSION

Table = dict[int, dict[str, str]]

#: In place of the fields of what isn't stored any more.
GONE = "gone"


def structs_in(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """The struct, and those that its fields hold, at any depth."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
        for held in typing.get_type_hints(kind).values():
            yield from structs_in(held)
    for argument in typing.get_args(kind):
        yield from structs_in(argument)


def described(kind: type[msgspec.Struct]) -> str:
    """The fields of a struct in order, with types as they are written in the code, and defaults."""
    types: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        types |= inspect.get_annotations(base)
    told = []
    for field in msgspec.structs.fields(kind):
        text = f"{field.name}: {types[field.name]}"
        if field.default is not msgspec.NODEFAULT:
            text += f" = {field.default!r}"
        elif field.default_factory is not msgspec.NODEFAULT:
            text += f" = {field.default_factory.__name__}()"
        told.append(text)
    return ("array of " if kind.__struct_config__.array_like else "") + "; ".join(told)


def stored_now() -> dict[str, str]:
    """All that entries and snapshots consist of: commands by their tags, other structs by their names."""
    commands = {tag: described(kind) for tag, kind in COMMANDS.items()}
    held = {kind for root in (Entry, ImageData, StreamRange) for kind in structs_in(root)}
    others = {kind.__name__: described(kind) for kind in held if not issubclass(kind, Command)}
    return dict(sorted(commands.items()) + sorted(others.items()))


def table_now(table: Table) -> dict[str, str]:
    """What the table says of the newest version."""
    lines: dict[str, str] = {}
    for version in sorted(table):
        lines |= table[version]
    return {name: fields for name, fields in lines.items() if fields != GONE}


def seal(lines: dict[str, str]) -> str:
    """A checksum of a version's lines."""
    return f"{zlib.crc32(repr(sorted(lines.items())).encode()):08x}"


def missing(table: Table, stored: dict[str, str]) -> str:
    """What to do, if the code stores something else than the newest version of the table says; else empty."""
    known = table_now(table)
    changed = {name: fields for name, fields in stored.items() if known.get(name) != fields}
    changed |= dict.fromkeys(known.keys() - stored.keys(), GONE)
    if not changed:
        return ""
    version = max(table) + 1
    lines = "".join(
        f"        {json.dumps(name)}: {json.dumps(fields)},\n" for name, fields in changed.items()
    )
    return (
        "what metadata store has changed, and an older Penstock must be told so by a new version:\n"
        f"1. METADATA_VERSION = {version} in kernel/penstock/metadata/versions.py, and a line there on what is new\n"
        f"2. in tests/unit/metadata/version_table.py, add (and change nothing of what is there)\n"
        f"   to VERSIONS:\n    {version}: {{\n{lines}    }},\n"
        f'   to SEALS:\n    {version}: "{seal(changed)}",\n'
    )


def test_what_is_stored_belongs_to_a_version() -> None:
    todo = missing(VERSIONS, stored_now())
    assert not todo, todo


def test_the_newest_version_is_the_one_that_is_written() -> None:
    assert max(VERSIONS) == METADATA_VERSION, (
        f"VERSIONS of version_table.py ends with version {max(VERSIONS)}, METADATA_VERSION of versions.py is "
        f"{METADATA_VERSION}: each version has its lines, and the code writes the newest"
    )
    stored = Image().to_snapshot()
    assert msgspec.msgpack.decode(stored, strict=False)["version"] == METADATA_VERSION
    assert new_entry([], "w", 1).version == METADATA_VERSION


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_the_lines_of_a_version_stay(version: int) -> None:
    assert SEALS.get(version) == seal(VERSIONS[version]), (
        f"the lines of metadata version {version} aren't those that were sealed, and somebody's log may be of it: "
        f"put them back and add version {max(VERSIONS) + 1}. Only if main never had it: "
        f'SEALS[{version}] = "{seal(VERSIONS[version])}"'
    )


def test_versions_of_the_table_have_no_gap() -> None:
    assert sorted(VERSIONS) == list(range(min(VERSIONS), max(VERSIONS) + 1))
    assert sorted(SEALS) == sorted(VERSIONS)


#: A table of two versions, of a program that nobody has.
EXAMPLE: Table = {
    1: {
        "hide": "topic_id: bytes",
        "show": "topic_id: bytes",
        "Row": "name: str",
        "Packed": "array of a: int; b: int",
    },
    2: {"hide": "topic_id: bytes; forced: bool = False"},
}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        pytest.param("comment", "topic_id: bytes; comment: str", id="a new command"),
        pytest.param("show", "topic_id: bytes; forced: bool = False", id="a new field of a command"),
        pytest.param("hide", "topic_id: bytes; forced: bool = True", id="another default"),
        pytest.param("show", "topic_id: str", id="another type"),
        pytest.param("Row", "name: str; comment: str = ''", id="a new field of a row"),
        pytest.param("Packed", "array of a: int", id="a field that is gone"),
        pytest.param("Packed", "a: int; b: int", id="names that are stored"),
        pytest.param("hide", GONE, id="a command that is gone"),
    ],
)
def test_what_changes_without_a_new_version_is_told_with_what_to_do(name: str, fields: str) -> None:
    stored = table_now(EXAMPLE)
    assert missing(EXAMPLE, stored) == ""
    if fields == GONE:
        del stored[name]
    else:
        stored[name] = fields
    todo = missing(EXAMPLE, stored)
    assert "METADATA_VERSION = 3 in kernel/penstock/metadata/versions.py" in todo
    assert f'    3: {{\n        "{name}": "{fields}",\n    }},\n' in todo
    assert f'"{seal({name: fields})}"' in todo
    assert missing({**EXAMPLE, 3: {name: fields}}, stored) == "", "done as it was told"


def test_lines_describe_types_and_defaults() -> None:
    """An absent field of a command is its default, so another default is another meaning."""

    class Row(msgspec.Struct):
        name: str
        count: int = 3
        held: list[int] = []

    class Packed(Row, array_like=True):
        last: bool = False

    assert described(Packed) == f"array of {described(Row)}; last: bool = False"
    assert described(Row) == "name: str; count: int = 3; held: list[int] = list()"


def test_an_older_penstock_says_newer_version_of_entries_and_snapshots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Entries and snapshots before the one number were of versions up to 3 and 4; the present is above both."""
    assert METADATA_VERSION > 4, "what older ones know"
    entry = encode_entry(new_entry([FormatCluster("c")], "w", 1))
    snapshot = Image().to_snapshot()
    unknown = msgspec.msgpack.encode(
        {"version": METADATA_VERSION, "commands": [{"type": "later"}], "index": "odd"}
    )
    monkeypatch.setattr(versions, "METADATA_VERSION", 4)
    told = f"newer penstock, upgrade this one: .*version={METADATA_VERSION} known=4"
    for data in (entry, unknown):
        with pytest.raises(NewerVersionError, match=f"entry was written by a {told}"):
            decode_entry(7, data)
    for data in (snapshot, unknown):
        with pytest.raises(NewerVersionError, match=f"snapshot was written by a {told}"):
            Image.from_snapshot(data)


@pytest.mark.parametrize("version", [None, 1, 2, 3])
def test_entries_from_before_the_one_number_are_read(version: int | None) -> None:
    stored: dict[str, Any] = {
        "commands": [{"type": "format", "cluster_id": "c"}],
        "writer": "w",
        "now_ms": 1,
    }
    if version is not None:
        stored["version"] = version
    entry = decode_entry(1, msgspec.msgpack.encode(stored))
    assert entry == Entry([FormatCluster("c")], "w", 1, version or 1)


def test_a_snapshot_of_version_4_is_read_unchanged() -> None:
    stored = msgspec.msgpack.decode(Image().to_snapshot(), strict=False)
    stored.update(version=4, index=9, cluster_id="c", controller=3)
    image = Image.from_snapshot(msgspec.msgpack.encode(stored))
    assert (image.index, image.cluster_id, image.controller) == (9, "c", 3)
