"""The commands of the metadata log and the entries that carry them.

Commands are facts to be decided on by the fold (:mod:`penstock.metadata.image`): ids and epochs are assigned there,
from the image and the entry's index, never by a clock. Times that a command needs are carried in its entry.
Fields may be added with defaults; a field never changes its meaning (version N reads N-1).

The version of an entry is that of the rules which decided on it when it was written, and decide ever after:

- 1: a node that started took every stream over, whoever had it.
- 2: nobody takes over what another node's WAL may hold (:mod:`penstock.metadata.owners`).
"""

from __future__ import annotations

__all__ = (
    "ENTRY_VERSION",
    "AbandonObjects",
    "AddPartitions",
    "AllocateProducerIds",
    "Command",
    "CommitUpload",
    "CreateTopic",
    "DeleteTopic",
    "Entry",
    "FormatCluster",
    "ForgetObjects",
    "OpenStreams",
    "PrepareObjects",
    "RegisterNode",
    "ReleaseWal",
    "SetTopicConfigs",
    "SkipLost",
    "TrimStreams",
    "UploadedObject",
    "UploadedRange",
    "UseWal",
    "decode_entry",
    "encode_entry",
    "new_entry",
    "refuse_newer",
)

from typing import TypeAlias

import msgspec

from penstock.errors import CorruptError, NewerVersionError

ENTRY_VERSION = 2


class _Command(msgspec.Struct, frozen=True, array_like=False, omit_defaults=True):
    """Base of all commands; the tag is the class name."""


class FormatCluster(_Command, tag="format", frozen=True):
    """Name the cluster, once; the first entry of every log."""

    cluster_id: str


class RegisterNode(_Command, tag="node", frozen=True):
    """A broker starts: its epoch becomes the index of this entry, which fences its earlier lives.

    Refused, so that nobody is fenced, if acknowledged records may be in a WAL that this broker didn't find: the one
    recorded for the node, or (version 2) for any other. If it found another node's, that node is fenced, and its WAL
    and streams are this node's from now on.
    """

    node_id: int
    #: Distinguishes two processes that register the same node.
    incarnation: str
    #: Identity of the WAL that the broker found; empty: there is none, or its plugin doesn't tell.
    wal: str = ""
    #: Where it looked, for people.
    place: str = ""
    #: Identity of the recorded WAL if what only that one holds is given up on purpose; version 1 wrote it.
    lost_wal: str = ""
    #: The same of any number of WALs, of whatever nodes.
    lost_wals: list[str] = []
    #: The WAL's plugin tells no identity: the broker goes on with whatever is there.
    unnamed: bool = False


class UseWal(_Command, tag="wal+", frozen=True):
    """From now on the node's acknowledged records may be in this WAL only; comes before the first append.

    Refused (version 2) while another node's WAL is in use.
    """

    node_id: int
    node_epoch: int
    #: Empty: its plugin doesn't tell.
    wal: str
    #: Where it is, for people.
    location: str


class ReleaseWal(_Command, tag="wal-", frozen=True):
    """A clean stop: all that the node's WAL held is uploaded and trimmed, and nothing is appended any more.

    This closes the node's streams: whoever comes may open them.
    """

    node_id: int
    node_epoch: int


class CreateTopic(_Command, tag="topic+", frozen=True):
    """Create a topic with all its partitions; each gets a log stream and a state stream."""

    name: str
    topic_id: bytes
    partition_count: int
    configs: dict[str, str] = {}
    internal: bool = False


class AddPartitions(_Command, tag="partitions+", frozen=True):
    """Grow a topic to ``partition_count`` partitions."""

    topic_id: bytes
    partition_count: int


class DeleteTopic(_Command, tag="topic-", frozen=True):
    """Delete a topic and its streams."""

    topic_id: bytes


class SetTopicConfigs(_Command, tag="configs", frozen=True):
    """Replace the config overrides of a topic."""

    topic_id: bytes
    configs: dict[str, str]


class OpenStreams(_Command, tag="open", frozen=True):
    """The node owns these streams from now on; their epoch becomes the index of this entry.

    Refused (version 2) if another node owns one of them whose WAL may hold its records.
    """

    node_id: int
    node_epoch: int
    stream_ids: list[int]


class TrimStreams(_Command, tag="trim", frozen=True):
    """Move the start of streams forward: (stream id, new start offset)."""

    node_id: int
    node_epoch: int
    starts: list[tuple[int, int]]


class PrepareObjects(_Command, tag="prepare", frozen=True):
    """Reserve ``count`` object ids until ``deadline_ms`` (wall clock); uncommitted ones are then deleted."""

    node_id: int
    node_epoch: int
    count: int
    deadline_ms: int


class UploadedRange(msgspec.Struct, frozen=True, array_like=True):
    """Offsets [start, end) of one stream inside an object; ``size`` payload bytes, greatest time of its entries."""

    stream_id: int
    start: int
    end: int
    size: int
    time_ms: int


class UploadedObject(msgspec.Struct, frozen=True, array_like=True):
    """An object that is whole in the store."""

    object_id: int
    size: int
    ranges: list[UploadedRange]


class CommitUpload(_Command, tag="commit", frozen=True):
    """The data of these objects are part of their streams from now on: all of them, or none."""

    node_id: int
    node_epoch: int
    objects: list[UploadedObject]


class AbandonObjects(_Command, tag="abandon", frozen=True):
    """Prepared objects that will not be committed; they are deleted like any destroyed object."""

    object_ids: list[int]


class ForgetObjects(_Command, tag="forget", frozen=True):
    """Destroyed objects that are gone from the store."""

    object_ids: list[int]


class SkipLost(_Command, tag="skip", frozen=True):
    """Entries were lost and given up: pass over the ids that they may have given out."""

    #: No object gets an id below this.
    next_object_id: int
    #: So many ids of streams, and of producers, are passed over.
    count: int


class AllocateProducerIds(_Command, tag="pids", frozen=True):
    """Reserve a block of producer ids."""

    node_id: int
    node_epoch: int
    count: int


Command: TypeAlias = (
    FormatCluster
    | RegisterNode
    | UseWal
    | ReleaseWal
    | CreateTopic
    | AddPartitions
    | DeleteTopic
    | SetTopicConfigs
    | OpenStreams
    | TrimStreams
    | PrepareObjects
    | CommitUpload
    | AbandonObjects
    | ForgetObjects
    | AllocateProducerIds
    | SkipLost
)


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of the metadata log: a batch of commands that are folded in order; see :func:`new_entry`."""

    commands: list[Command]
    #: Who wrote it: lets a writer recognise its own entry after a lost reply.
    writer: str
    #: Wall clock of the writer in ms; decides nothing but deadlines and delays.
    now_ms: int
    #: Of the format and of the rules; what is absent is 1.
    version: int = 1
    #: Where the newest durable mark in the writer's WAL ended when this was written, so that a WAL that was rolled
    #: back is told from the right one; 0: that isn't said.
    wal_end: int = 0


def new_entry(commands: list[Command], writer: str, now_ms: int, wal_end: int = 0) -> Entry:
    """An entry under the rules of today."""
    return Entry(commands, writer, now_ms, ENTRY_VERSION, wal_end)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


def encode_entry(entry: Entry) -> bytes:
    """The bytes of an entry (MessagePack)."""
    return _encoder.encode(entry)


def decode_entry(index: int, data: bytes) -> Entry:
    """The entry at ``index``. Raises CorruptError if it can't be read, NewerVersionError."""
    try:
        entry = _decoder.decode(data)
    except msgspec.MsgspecError as error:
        refuse_newer(data, "a metadata entry", f"index={index}", known=ENTRY_VERSION)
        raise CorruptError(
            f"metadata entry can't be read, restore the metadata log from a backup: index={index} reason={error}"
        ) from error
    if entry.version > ENTRY_VERSION:
        raise NewerVersionError.of(
            "a metadata entry", f"index={index}", version=entry.version, known=ENTRY_VERSION
        )
    return entry


class _Versioned(msgspec.Struct):
    """What every version of an entry and of a snapshot has, whatever else changes."""

    version: int = 0


_version_decoder = msgspec.msgpack.Decoder(_Versioned)


def refuse_newer(data: bytes, what: str, where: str, *, known: int) -> None:
    """Raise NewerVersionError if ``data``, which can't be read, says that it is of a version above ``known``."""
    try:
        version = _version_decoder.decode(data).version
    except msgspec.MsgspecError:
        return
    if version > known:
        raise NewerVersionError.of(what, where, version=version, known=known)
