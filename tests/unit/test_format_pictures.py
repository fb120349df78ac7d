"""The pictures of formats, at the top of the modules that own them, are those of the code."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import msgspec
import pytest
from penstock_metadata_object import _format as metadata_object
from penstock_wal_block import _format as wal_block
from penstock_wal_block import _stripe as wal_stripe
from penstock_wal_block._format import Header
from penstock_wal_s3 import _format as wal_s3

from penstock.coordinator import records
from penstock.coordinator.group_types import CommittedOffset, GroupMetadata, MemberMetadata
from penstock.log import producer_book
from penstock.metadata import commands, ranges, stored, versions
from penstock.metadata.commands import encode_entry, new_entry
from penstock.metadata.commands.nodes import ReleaseWal
from penstock.stream import entry, marks, object_format
from penstock.wal import Cursor, GroupCommit, encode_group, framing

CRC = ">I"

#: Module, heading of the picture, and the structs that are written one behind the other.
PICTURES: list[tuple[ModuleType, str, list[str]]] = [
    (framing, "group header, 72 bytes", [framing._GROUP.format, CRC]),
    (framing, "entry header, 24 bytes", [framing._ENTRY.format, CRC]),
    (entry, "header, 41 bytes", [entry.HEADER.format]),
    (marks, "header, 41 bytes", [entry.HEADER.format]),
    (object_format, "block header, 20 bytes", [object_format.BLOCK_HEADER.format]),
    (object_format, "entry header, 28 bytes", [object_format.ENTRY_HEADER.format]),
    (object_format, "index row, 48 bytes", [object_format.INDEX_ROW.format]),
    (object_format, "footer, 40 bytes", [object_format.FOOTER.format]),
    (wal_block, "slot, 260 bytes, then zeros", [wal_block._FIXED.format, CRC]),
    (
        wal_block,
        "more, 34 bytes, from 260 on in version 2 (a log that is shared between hosts, or striped over devices)",
        [wal_block._MORE.format],
    ),
    (wal_stripe, "label, 32 bytes, in the first two blocks", [wal_stripe._LABEL.format, CRC]),
    (wal_s3, "header, 96 bytes", [wal_s3._HEADER.format, CRC]),
    (metadata_object, "header, 40 bytes", [metadata_object._HEADER.format]),
    (producer_book, "header, 22 bytes", [producer_book._SNAPSHOT_HEAD.format]),
    (producer_book, "producer, 31 bytes", [producer_book._SNAPSHOT_ENTRY.format]),
    (producer_book, "batch, 32 bytes", [producer_book._SNAPSHOT_BATCH.format]),
    (ranges, "range, 40 bytes", ["<5q"]),
]


def picture(document: str, heading: str) -> list[tuple[int, int, str]]:
    """(offset, bytes, field) of each row under a heading."""
    _, found, rest = document.partition(f"\n    {heading}\n")
    assert found, "the picture is in the module's docstring"
    rows = []
    for line in rest.splitlines():
        row = re.fullmatch(r" {5,}(\d+) +(\d+)  (\S.*)", line)
        if row is None:
            break
        rows.append((int(row[1]), int(row[2]), row[3]))
    return rows


def fields(formats: list[str]) -> list[tuple[int, int]]:
    """(offset, bytes) of each field of structs that follow each other."""
    found = []
    offset = 0
    for one in formats:
        for count, kind in re.findall(r"(\d*)([a-zA-Z])", one):
            for _ in range(1 if kind == "s" or not count else int(count)):
                size = struct.calcsize(f">{count if kind == 's' else ''}{kind}")
                found.append((offset, size))
                offset += size
    return found


@pytest.mark.parametrize(
    ("module", "heading", "formats"), PICTURES, ids=lambda value: getattr(value, "__name__", None)
)
def test_a_picture_has_the_fields_of_the_code_at_their_places(
    module: ModuleType, heading: str, formats: list[str]
) -> None:
    assert module.__doc__ is not None
    rows = picture(module.__doc__, heading)
    assert [(offset, size) for offset, size, _ in rows] == fields(formats)
    total = sum(struct.calcsize(one) for one in formats)
    assert rows[-1][0] + rows[-1][1] == total == int(re.findall(r"(\d+) bytes", heading)[0])


def parsed(document: str | None, heading: str, data: bytes) -> dict[str, bytes]:
    """The bytes of each field, by how the picture calls it up to the first comma, colon or parenthesis."""
    assert document is not None
    return {
        re.split(r"[,:(;]", text)[0].strip(): data[offset : offset + size]
        for offset, size, text in picture(document, heading)
    }


def written(formats: str, values: Sequence[int | str | bytes | None]) -> bytes:
    """``values`` as a row of a picture says: ``int16 version, string group``."""
    data = b""
    for kind, value in zip(re.findall(r"(int\d+|string|bytes) ", formats), values, strict=True):
        if isinstance(value, int):
            data += value.to_bytes(int(kind[3:]) // 8, "big", signed=True)
        elif value is None:
            data += b"\xff\xff"
        else:
            text = value.encode() if isinstance(value, str) else value
            data += len(text).to_bytes(2 if kind == "string" else 4, "big") + text
    return data


def record_row(name: str) -> str:
    """The row of a record of ``__consumer_offsets``, which may go on in the next line."""
    assert records.__doc__ is not None
    found = re.search(rf"^    {name}: +((?:.*\n {{20}})*.*)$", records.__doc__, re.MULTILINE)
    assert found is not None
    return found[1]


def test_records_of_groups_are_what_their_picture_says() -> None:
    key, group = records.encode_offset_key("g", "t", 5), records.encode_group_key("g")
    assert key == written(record_row("offset key"), (1, "g", "t", 5))
    assert group == written(record_row("group key"), (2, "g"))
    committed = CommittedOffset(6, 7, "m", 8, None)
    assert records.encode_offset_value(committed) == written(record_row("offset value"), (3, 6, 7, "m", 8))
    expiring = records.encode_offset_value(CommittedOffset(6, 7, "m", 8, 9))
    assert expiring == written(record_row("expiring"), (1, 6, "m", 8, 9))
    member = MemberMetadata(
        member_id="id",
        group_instance_id=None,
        client_id="client",
        client_host="host",
        rebalance_timeout_ms=10,
        session_timeout_ms=11,
        subscription=b"subscription",
        assignment=b"assignment",
    )
    metadata = GroupMetadata(
        protocol_type="consumer",
        generation_id=12,
        protocol_name="range",
        leader="id",
        state_timestamp_ms=13,
        members=(member,),
    )
    value = written(record_row("group value"), (3, "consumer", 12, "range", "id", 13, 1))
    value += written(
        record_row("member"), ("id", None, "client", "host", 10, 11, b"subscription", b"assignment")
    )
    assert records.encode_group_value(metadata) == value


def map_keys(document: str | None) -> list[str]:
    """The keys in the picture of a MessagePack map."""
    assert document is not None
    return re.findall(r'"(\w+)"', "".join(re.findall(r'^    (".*)$', document, re.MULTILINE)))


def test_pictures_of_metadata_tell_the_versions_that_are_written() -> None:
    """In one place, to which the pictures point: a new version is a line there, and nothing in them."""
    for document in (stored.__doc__, commands.__doc__):
        assert document is not None
        assert re.findall(r'^    "version" +that of (\S+?);?(?: |$)', document, re.MULTILINE) == [
            versions.__name__
        ]
    assert versions.__doc__ is not None
    told = re.findall(r"^- (\d+):", versions.__doc__, re.MULTILINE)
    assert told == [str(number) for number in range(1, versions.METADATA_VERSION + 1)], "what is new in it"


def test_maps_of_metadata_have_the_keys_of_their_pictures() -> None:
    fields = set(stored.ImageData.__struct_fields__)
    assert set(map_keys(stored.__doc__)) - {"ranges"} == fields
    entry = msgspec.msgpack.decode(encode_entry(new_entry([ReleaseWal(1, 2)], "w", 3, 4)))
    assert list(entry) == ["commands", "writer", "now_ms", "version", "wal_end"]
    assert set(map_keys(commands.__doc__)) == {*entry, "type"}
    assert entry["commands"] == [{"type": "wal-", "node_id": 1, "node_epoch": 2}]


def number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def test_a_group_is_what_its_picture_says() -> None:
    commit = GroupCommit()
    commit.start(1000, 7)
    commit.append([b"first"])
    commit.append([b"second"])
    group = commit.take()
    assert group is not None
    parts, digest = encode_group(
        log_id=11,
        cursor=Cursor(1000, 7, 13),
        epoch=17,
        confirmed_position=900,
        appends=group.appends,
        payloads=group.payloads,
    )
    data = b"".join(bytes(part) for part in parts)
    head = parsed(framing.__doc__, "group header, 72 bytes", data)
    last = parsed(framing.__doc__, "entry header, 24 bytes", data[72 + 24 + 5 :])
    assert data[:4] == b"PSWG"
    assert number(head["log id"]) == 11
    assert number(head["sequence"]) == 7
    assert number(head["position of this header in the log"]) == 1000
    assert number(head["epoch of the owner that wrote it"]) == 17
    assert number(head["confirmed position"]) == 900
    assert number(head["length"]) == len(data)
    assert number(head["entries"]) == 2
    assert number(head["digest of the group before"]) == 13
    assert head["digest of the entries"] == last["chained CRC-32C"]
    assert number(head["CRC-32C of the bytes before"]) == digest
    assert number(last["length of the payload"]) == 6
    assert number(last["position of this header in the log"]) == 1000 + 72 + 24 + 5


def test_a_header_slot_is_what_its_picture_says() -> None:
    header = Header(
        sequence=1,
        log_id=2,
        cluster_id="cluster",
        node_id=3,
        epoch=4,
        incarnation=bytes(range(16)),
        ring_bytes=5,
        trim_position=6,
        start=Cursor(7, 8, 9),
        confirmed_position=10,
        window_bytes=11,
        settled_position=12,
        settled_epoch=13,
    )
    slot = parsed(wal_block.__doc__, "slot, 260 bytes, then zeros", header.encode())
    wanted = {
        "sequence of the header": 1,
        "log id": 2,
        "node id of the owner": 3,
        "epoch of the owner": 4,
        "ring bytes": 5,
        "trim position": 6,
        "start": 7,
        "its sequence": 8,
        "and the digest of the group before it": 9,
        "confirmed position": 10,
        "window bytes": 11,
        "settled position": 12,
        "settled epoch": 13,
    }
    assert {name: number(slot[name]) for name in wanted} == wanted
    assert slot["incarnation of the owner"] == bytes(range(16))
    assert slot["cluster id"].rstrip(b"\0") == b"cluster"
    for flags, changed in ((1, replace(header, sealed=True)), (2, replace(header, clean=True))):
        slot = parsed(wal_block.__doc__, "slot, 260 bytes, then zeros", changed.encode())
        assert number(slot["flags"]) == flags


def test_ranges_are_what_their_picture_says() -> None:
    stored = ranges.Ranges([ranges.StreamRange(1, 2, 3, 4, 5)]).to_bytes()
    assert ranges.__doc__ is not None
    rows = picture(ranges.__doc__, "range, 40 bytes")
    assert [int.from_bytes(stored[at : at + size], "little") for at, size, _ in rows] == [1, 2, 3, 4, 5]
    names = [text.split(",")[0] for _, _, text in rows]
    assert names == ["start offset", "end offset", "object id", "size of the payload", "greatest timestamp"]


def test_a_mark_is_what_its_picture_says() -> None:
    head, name = marks.encode_mark(marks.Mark(21, "cluster"), 22, 23)
    found = parsed(marks.__doc__, "header, 41 bytes", head)
    assert number(found["stream id"]) == 0
    assert number(found["epoch of the node"]) == 22
    assert number(found["index of the metadata entry"]) == 21
    assert number(found["time"]) == 23
    assert name == b"cluster"


def test_a_metadata_object_is_what_its_picture_says() -> None:
    head = metadata_object.encode_header(metadata_object.ENTRY_MAGIC, 31, b"payload", bytes(range(16)))
    found = parsed(metadata_object.__doc__, "header, 40 bytes", head)
    assert found["magic"] == b"PSML"
    assert number(found["index of the entry"]) == 31
    assert number(found["length of the payload"]) == 7
    assert found["nonce of the writer"] == bytes(range(16))
