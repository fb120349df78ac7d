"""The settings tree: one frozen model per section of the file, every key with its default and its meaning.

A new key is one line in its section; the loader, ``penstock config explain``, the template and the reference
in docs/configuration.md follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from penstock.limits import SNAPSHOT_ENTRIES
from penstock.spi.kinds import KINDS
from penstock.spi.settings import Duration, Settings, Size
from penstock.units import parse_size

KIB = 2**10
MIB = 2**20
SECOND = 1000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def _parse_bound(text: str | int) -> int:
    return -1 if text in (-1, "-1") else parse_size(text)


#: Bytes, or -1 for "without bound".
SizeBound = Annotated[
    int, BeforeValidator(_parse_bound), WithJsonSchema({"type": "string", "format": "size or -1"})
]


class Broker(Settings):
    """Who this broker is and where it keeps what is its own."""

    node_id: int = Field(
        default=1, ge=0, le=2**31 - 1, description="Number of this broker, unique in its cluster."
    )
    cluster_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        examples=["nYCTF1-8TfqBSgYMjE0rWA"],
        description="Name of the cluster; made by the first broker that starts when unset.",
    )
    data_dir: str = Field(
        default="penstock-data",
        min_length=1,
        description="Directory of local data; relative paths in plugin settings start here.",
    )
    data_access: Literal["owner", "group", "everybody"] = Field(
        default="owner",
        description="Who may read local data, whatever the umask: the user of the broker (directories are made with "
        "mode 0700, files 0600), the group too (0750, 0640), or everybody (0755, 0644).",
    )
    rack: str | None = Field(
        default=None,
        examples=["eu-central-1a"],
        description="Rack or zone that clients are told (KIP-36, KIP-392).",
    )
    start_timeout: Duration = Field(
        default=5 * MINUTE,
        ge=1,
        description="How long a start waits for an object store that doesn't work; then it ends with exit code 1.",
    )
    drain_timeout: Duration = Field(
        default=30 * SECOND,
        ge=0,
        description="How long a stop may take to upload; the next start recovers the rest from the WAL.",
    )
    accept_lost_metadata: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        examples=["1042"],
        description="How far lost metadata entries went that are given up: it starts without them. The refusal of a "
        "start says the value.",
    )
    accept_lost_wal: str | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        examples=["5b7e0c1f9a3d2846"],
        description="Identities of WALs, of whatever nodes, whose acknowledged records are given up: it starts "
        "without them. Several are separated by spaces.",
    )


class Listener(Settings):
    """Where clients connect, and what one connection may ask for."""

    bind: str = Field(
        default="127.0.0.1:9092",
        description="host:port to listen on; port 0 takes a free one, [::1]:9092 is IPv6.",
    )
    advertised: str | None = Field(
        default=None,
        examples=["broker.example.org:9092"],
        description="host:port that clients are told; when unset it is bind, with this machine's name in "
        "place of 0.0.0.0 or [::]; port 0 stands for the bound port.",
    )
    request_bytes_max: Size = Field(
        default=100 * MIB,
        ge=KIB,
        le=2**31 - 1,
        description="Largest request; a larger one closes the connection.",
    )
    connections_max: int = Field(
        default=10_000,
        ge=1,
        description="Connections of this process; a further one takes an idle one's place, or is closed at once.",
    )
    connections_per_address_max: int = Field(
        default=0,
        ge=0,
        description="The same of one address (IPv6: of one /64 network); 0 is half of connections_max.",
    )
    idle_timeout: Duration = Field(
        default=10 * MINUTE, ge=1, description="A connection without a request for this long is closed."
    )
    pipeline_depth: int = Field(
        default=128,
        ge=1,
        le=10_000,
        description="Unanswered requests of one connection before reading pauses.",
    )


class Memory(Settings):
    """What the process may use."""

    limit: Size = Field(
        default=512 * MIB,
        ge=64 * MIB,
        description="Resident memory that the whole process aims to stay under.",
    )
    reserve: Size = Field(
        default=160 * MIB,
        ge=0,
        description="Part of limit kept for interpreter, code and connections; the allocator gets the rest.",
    )


class Topics(Settings):
    """Defaults of topics; most can be set per topic too."""

    auto_create: bool = Field(
        default=True, description="Create a topic when a client asks for one that isn't there."
    )
    partitions: int = Field(default=1, ge=1, description="Partitions of a topic created without a number.")
    partitions_max: int = Field(default=10_000, ge=1, description="Partitions of all topics together.")
    retention: Duration = Field(
        default=7 * DAY,
        ge=-1,
        description="Age at which records are dropped; -1 keeps them (topic: retention.ms).",
    )
    retention_bytes: SizeBound = Field(
        default=-1, ge=-1, description="Bytes a partition keeps; -1 keeps all (topic: retention.bytes)."
    )
    message_bytes_max: Size = Field(
        default=1_048_588, ge=1, le=2**31 - 1, description="Largest record batch (topic: max.message.bytes)."
    )
    timestamp_type: Literal["CreateTime", "LogAppendTime"] = Field(
        default="CreateTime", description="Whose clock stamps records (topic: message.timestamp.type)."
    )
    compression_type: Literal["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"] = Field(
        default="producer",
        description="Codec of stored batches; producer keeps them as they come, for any other the broker compresses "
        "what comes differently (topic: compression.type).",
    )
    validate_records: Literal["header", "full"] = Field(
        default="full",
        description="What is checked of a produced batch: every record, as Kafka does, or only its header and CRC; "
        "with header a careless producer can store what no consumer gets past and what retention deletes at once.",
    )


class Groups(Settings):
    """Consumer groups."""

    initial_rebalance_delay: Duration = Field(
        default=0,
        ge=0,
        description="Wait for more members before an empty group's first rebalance; 3s suits applications that start "
        "many members at once.",
    )
    session_timeout_min: Duration = Field(
        default=6 * SECOND, ge=1, description="Shortest session timeout a member may ask for."
    )
    session_timeout_max: Duration = Field(
        default=30 * MINUTE, ge=1, description="Longest session timeout a member may ask for."
    )
    members_max: int = Field(default=10_000, ge=1, description="Members of one group.")
    member_bytes_max: Size = Field(
        default=MIB,
        ge=KIB,
        description="Subscription and other metadata of one member; above it the answer is GROUP_MAX_SIZE_REACHED.",
    )
    memory_max: Size = Field(
        default=0,
        ge=0,
        description="Memory of all groups, members and committed offsets; at the bound, what needs more is answered "
        "COORDINATOR_NOT_AVAILABLE; 0 is an eighth of the allocator.",
    )
    offsets_retention: Duration = Field(
        default=7 * DAY, ge=1, description="Committed offsets of an empty group are kept for this long."
    )
    offsets_partitions: int = Field(
        default=16,
        ge=1,
        le=1000,
        description="Partitions of __consumer_offsets; fixed once the topic exists.",
    )


class Stream(Settings):
    """The stream engine: when and how data goes to the object store, and when objects go away."""

    upload_bytes: Size = Field(
        default=0,
        ge=0,
        description="The log cache freezes a block at this size, and at a quarter of the WAL at the latest; 0 is a "
        "sixth of the allocator, at most 64MiB.",
    )
    upload_interval: Duration = Field(
        default=60 * SECOND, ge=1, description="A block is frozen at this age at the latest."
    )
    object_split_bytes: Size = Field(
        default=8 * MIB,
        ge=KIB,
        description="A stream with more than this in one upload gets an object of its own.",
    )
    block_bytes: Size = Field(
        default=512 * KIB, ge=KIB, le=64 * MIB, description="Data blocks in objects aim at this size."
    )
    multipart_bytes: Size = Field(
        default=32 * MIB,
        ge=5 * MIB,
        description="Objects above this are written in parts where the store can.",
    )
    prepare_deadline: Duration = Field(
        default=60 * MINUTE, ge=SECOND, description="An object not committed within this time is deleted."
    )
    delete_delay: Duration = Field(
        default=MINUTE, ge=0, description="Time between an object losing its last reference and its deletion."
    )
    orphan_sweep_interval: Duration = Field(
        default=6 * HOUR,
        ge=SECOND,
        description="How often the object store is listed for objects that metadata doesn't know, to delete them; "
        "the first time a minute after the start.",
    )
    orphan_grace: Duration = Field(
        default=HOUR, ge=0, description="Age below which an object that metadata doesn't know is left alone."
    )
    append_in_flight_bytes_max: Size = Field(
        default=0, ge=0, description="Bytes of unanswered produce requests; 0 is an eighth of the allocator."
    )
    fetch_in_flight_bytes_max: Size = Field(
        default=0, ge=0, description="Bytes of unsent fetch responses; 0 is a quarter of the allocator."
    )
    retention_interval: Duration = Field(
        default=5 * MINUTE,
        ge=1,
        description="How often retention looks for records to drop, as Kafka by default.",
    )
    metadata_snapshot_entries: int = Field(
        default=SNAPSHOT_ENTRIES,
        ge=1,
        le=1_000_000,
        description="The whole metadata is written anew each time that so many entries came; a start reads the "
        "newest and the entries behind it.",
    )


class Lake(Settings):
    """Tables of topics: what all of them share. Which topics have one, their configs say (`penstock.lake.enable`)."""

    defaults: dict[str, str | bool | int] = Field(
        default={},
        examples=[{"enable": True}],
        description="Topic configs of tables, without `penstock.lake.`, for topics that have none of their own.",
    )
    memory_max: Size = Field(
        default=0,
        ge=0,
        description="Memory of records on their way into tables; 0 is an eighth of the allocator.",
    )
    bandwidth: Size = Field(
        default=0,
        ge=0,
        description="Bytes per second that tables may read from the object store; 0 for no limit.",
    )
    concurrency: int = Field(
        default=2, ge=1, le=1000, description="Topics whose records are decoded and written at the same time."
    )
    retry_min: Duration = Field(
        default=SECOND,
        ge=1,
        description="Pause after a table failed for the first time; it doubles each time.",
    )
    retry_max: Duration = Field(default=MINUTE, ge=1, description="Longest pause after a table failed.")
    maintenance_interval: Duration = Field(
        default=6 * HOUR, ge=0, description="How often each table is brought into good shape; 0 is never."
    )


class Logging(Settings):
    """What `penstock serve` says while it runs; a program that embeds a broker sets up Python's logging itself."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe lines that are written."
    )
    format: Literal["text", "json"] = Field(
        default="text", description="text for people, or json: one object per line, for collectors."
    )
    file: str | None = Field(
        default=None,
        min_length=1,
        examples=["/var/log/penstock/penstock.log"],
        description="File to append to instead of stderr; it is opened anew when it was moved away (logrotate).",
    )


class Plugins(Settings):
    """Plugins that are loaded although no section selects them."""

    load: tuple[str, ...] = Field(
        default=(),
        examples=[["my_observer"]],
        description="Observers to load: names from the entry-point group penstock.plugins, or modules.",
    )


class PluginChoice(BaseModel):
    """The plugin selected for one kind, and its settings as written (the plugin's own model checks them).

    An empty name: none is.
    """

    model_config = ConfigDict(frozen=True)

    plugin: str
    settings: dict[str, Any] = Field(default_factory=dict)


#: The plugin that is taken when a kind's section names none, empty if none is; the order is that in which kinds are
#: opened.
DEFAULT_PLUGINS = {name: kind.default for name, kind in KINDS.items()}


class Tree(BaseModel):
    """The whole configuration, typed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    broker: Broker
    listener: Listener
    memory: Memory
    topics: Topics
    groups: Groups
    stream: Stream
    lake: Lake
    logging: Logging
    plugins: Plugins
    #: By kind.
    kinds: Mapping[str, PluginChoice]


#: Sections of the kernel itself.
SECTIONS: dict[str, type[Settings]] = {
    "broker": Broker,
    "listener": Listener,
    "memory": Memory,
    "topics": Topics,
    "groups": Groups,
    "stream": Stream,
    "lake": Lake,
    "logging": Logging,
    "plugins": Plugins,
}
