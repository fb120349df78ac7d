"""What each version of metadata stores: commands by their tags, other structs by their names, with their fields.

Fields have the types and defaults of the code: what is left out of a stored command is its default. "array of": their
names aren't stored. A version has the
lines of what came or changed with it, each whole, and "gone" for what went; other lines are those of the versions
before. Versions are added, and what is here stays. ``test_versions.py`` prints what to add.
"""

# ruff: noqa: E501 - a line for each struct

from __future__ import annotations

#: From version 5 on; what older ones stored is a part of it.
VERSIONS: dict[int, dict[str, str]] = {
    5: {
        "abandon": "object_ids: list[int]",
        "commit": "node_id: int; node_epoch: int; objects: list[UploadedObject]",
        "configs": "topic_id: bytes; configs: dict[str, str]",
        "forget": "object_ids: list[int]",
        "format": "cluster_id: str",
        "node": "node_id: int; incarnation: str; wal: str = ''; place: str = ''; lost_wal: str = ''; lost_wals: list[str] = list(); unnamed: bool = False",
        "open": "node_id: int; node_epoch: int; stream_ids: list[int]",
        "partitions+": "topic_id: bytes; partition_count: int",
        "pids": "node_id: int; node_epoch: int; count: int",
        "prepare": "node_id: int; node_epoch: int; count: int; deadline_ms: int",
        "skip": "next_object_id: int; count: int",
        "topic+": "name: str; topic_id: bytes; partition_count: int; configs: dict[str, str] = dict(); internal: bool = False",
        "topic-": "topic_id: bytes",
        "trim": "node_id: int; node_epoch: int; starts: list[tuple[int, int]]",
        "wal+": "node_id: int; node_epoch: int; wal: str; location: str",
        "wal-": "node_id: int; node_epoch: int",
        "Entry": "commands: list[AnyCommand]; writer: str; now_ms: int; version: int = 1; wal_end: int = 0",
        "ImageData": "version: int = 1; index: int = 0; cluster_id: str = ''; controller: int = -1; next_stream_id: int = 1; next_object_id: int = 1; next_producer_id: int = 1; nodes: dict[int, NodeState] = dict(); topics: dict[bytes, TopicState] = dict(); streams: dict[int, StreamState] = dict(); objects: dict[int, ObjectState] = dict()",
        "NodeState": "node_id: int; epoch: int; incarnation: str; wal: str = ''; wal_location: str = ''; wal_in_use: bool = False; lost_wals: list[str] = list(); wal_since: int = 0; wal_end: int = 0; wal_taken: str = ''",
        "ObjectState": "object_id: int; state: Literal['prepared', 'committed', 'destroyed']; size: int; at_ms: int; live_ranges: int = 0",
        "StreamRange": "array of start: int; end: int; object_id: int; size: int; time_ms: int",
        "StreamState": "stream_id: int; topic_id: bytes; partition: int; start: int = 0; end: int = 0; epoch: int = 0; node_id: int = -1; leader_epochs: list[tuple[int, int]] = list(); ranges: Ranges = Ranges()",
        "TopicState": "topic_id: bytes; name: str; configs: dict[str, str]; internal: bool; log_streams: list[int]; state_streams: list[int]; leaders: list[int] = list()",
        "UploadedObject": "array of object_id: int; size: int; ranges: list[UploadedRange]",
        "UploadedRange": "array of stream_id: int; start: int; end: int; size: int; time_ms: int",
    },
    6: {
        "word": "node_id: int; node_epoch: int; name: str; value: str; expected: str",
        "NodeState": "node_id: int; epoch: int; incarnation: str; wal: str = ''; wal_location: str = ''; wal_in_use: bool = False; lost_wals: list[str] = list(); wal_since: int = 0; wal_end: int = 0; wal_taken: str = ''; words: dict[str, str] = dict()",
    },
    7: {
        "lake+": "topic_id: bytes; node_id: int; node_epoch: int",
        "lake=": "topic_id: bytes; epoch: int; state: str; reason: str = ''",
        "LakeClaim": "epoch: int; node_id: int; state: str = ''; reason: str = ''; since_ms: int = 0",
        "TopicState": "topic_id: bytes; name: str; configs: dict[str, str]; internal: bool; log_streams: list[int]; state_streams: list[int]; leaders: list[int] = list(); lake: LakeClaim | None = None",
    },
    8: {
        "lake!": "topic_id: bytes; epoch: int; request: int; reason: str; saved_bytes: int; figures: dict[str, int]",
        "LakeClaim": "epoch: int; node_id: int; state: str = ''; reason: str = ''; since_ms: int = 0; maintained: LakeMaintained | None = None",
        "LakeMaintained": "ended_ms: int; request: int = 0; reason: str = ''; saved_bytes: int = 0; figures: dict[str, int] = dict()",
    },
}

#: Checksums of the lines of each version: they are changed by nobody unnoticed.
SEALS: dict[int, str] = {
    5: "cd48bd46",
    6: "a8c6db30",
    7: "229471d1",
    8: "e18cfa5d",
}
