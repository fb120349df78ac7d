"""Which entries of a WAL must be uploaded: each is held against what metadata say is committed (pure)."""

from __future__ import annotations

__all__ = ("Replay", "rolled_back")

from penstock.errors import ConfigError, CorruptError, InvariantError
from penstock.metadata.image import Image
from penstock.metadata.nodes import NodeState
from penstock.spi.log_cache import StreamEntry
from penstock.spi.wal import WalEntry
from penstock.stream.entry import HEADER, WalHeader, decode_header
from penstock.stream.marks import Evidence, Mark


def rolled_back(node: NodeState, end: int, location: str, remark: str = "") -> CorruptError:
    """The WAL ends at ``end``, before what metadata know of it."""
    return CorruptError(
        f"the WAL ends before the position that metadata recorded, so acknowledged records are missing{remark}; is "
        "it an older copy, or was it cut off? put back the WAL that was used last; or if it is lost, move this one "
        "away and give up what only the lost one held with "
        f"broker.accept_lost_wal={node.wal_name}: node_id={node.node_id} "
        f"wal={location} end={end} recorded_end={node.wal_end}"
    )


class Replay:
    """One pass over the WAL at ``location``, which belongs to the node ``node_id`` in its life ``node_epoch``.

    What is committed, or of no living stream, is passed over. What else is there must continue what is committed, so
    a hole is an error (I10). It only reads the image, which may move on meanwhile.
    """

    def __init__(self, image: Image, node_id: int, node_epoch: int, location: str) -> None:
        self._image = image
        self._node_id = node_id
        self._node_epoch = node_epoch
        self._location = location
        self._evidence = Evidence()
        #: Where the next entry of a stream must begin, of streams that had one.
        self._ends: dict[int, int] = {}
        #: Entries that must be uploaded, and their payload.
        self.entries = 0
        self.payload_bytes = 0
        #: Entries with records that were passed over.
        self.skipped_entries = 0
        #: WAL position after the last entry, 0 if there was none.
        self.end_position = 0

    def take(self, recovered: WalEntry) -> StreamEntry | None:
        """The next entry of the WAL as one that must be uploaded, not charged to anybody; None if it needn't be.

        Raises CorruptError if acknowledged records (I10) or metadata entries are missing, or records belong to
        another WAL's history; ConfigError if the WAL is another cluster's, InvariantError if it repeats itself;
        NewerVersionError.
        """
        self.end_position = recovered.next_position
        if self._hear(recovered) is not None:
            return None
        header = decode_header(recovered.data, recovered.position)
        if not self._is_needed(header, recovered):
            self.skipped_entries += 1
            return None
        payload = recovered.data[HEADER.size :]
        self._ends[header.stream_id] = header.next_offset
        self.entries += 1
        self.payload_bytes += len(payload)
        return StreamEntry(
            header.stream_id,
            header.base_offset,
            header.next_offset,
            header.time_ms,
            payload,
            None,
            recovered.next_position,
        )

    def check_end(self, wal_end: int) -> None:
        """After the last entry: raise CorruptError if metadata know that the WAL went further.

        ``wal_end`` is where the WAL says that it ends, or up to where it is trimmed if it says nothing.
        """
        end = max(self.end_position, wal_end)
        node = self._image.nodes.get(self._node_id)
        if node is not None and node.epoch == self._node_epoch and end < node.wal_end:
            raise rolled_back(node, end, self._location)

    def _hear(self, recovered: WalEntry) -> Mark | None:
        """The mark of metadata in the entry, if there is one.

        What was there before this broker registered is below its epoch. Where a WAL can be read from outside, this
        was found before that.
        """
        mark = self._evidence.add(recovered)
        if mark is not None and mark.cluster_id != self._image.cluster_id:
            raise ConfigError(
                f"the WAL is of another cluster, point wal.path to a place of this one's own, or object_store.url to "
                f"that cluster's store: wal={self._location} wal_cluster={mark.cluster_id} "
                f"cluster={self._image.cluster_id}"
            )
        if self._evidence.index >= self._node_epoch:
            raise CorruptError(
                f"the newest metadata entries are lost, the WAL was written with more than there were when this "
                f"broker registered; restore the metadata log as a whole from a copy that isn't older than the WAL: "
                f"wal={self._location} reached={self._evidence.index} found={self._node_epoch - 1}"
            )
        return mark

    def _is_needed(self, header: WalHeader, recovered: WalEntry) -> bool:
        state = self._image.streams.get(header.stream_id)
        if state is None:
            return False  # deleted
        committed = max(state.start, state.end)
        if header.epoch != state.epoch:
            # what was recovered when the older ownership ended is below the offset at which the present one began
            if header.next_offset > state.opened_at:
                raise CorruptError(
                    f"the WAL holds records that were passed over when their stream was opened with another "
                    f"WAL; nothing was changed, keep {self._location} and start one broker per WAL: "
                    f"stream={header.stream_id} range=[{header.base_offset},{header.next_offset}) "
                    f"epoch={header.epoch} current={state.epoch} position={recovered.position}"
                )
            return False  # written under an older ownership, and recovered when that ended
        expected = self._ends.get(header.stream_id, committed)
        if header.next_offset <= expected:
            return False
        if header.base_offset > expected:
            raise CorruptError(
                f"acknowledged records are missing from the WAL, nothing was changed; restore the WAL at "
                f"{self._location}: stream={header.stream_id} missing=[{expected},{header.base_offset}) "
                f"position={recovered.position}"
            )
        if header.stream_id in self._ends and header.base_offset < expected:
            raise InvariantError(
                f"the WAL returned overlapping entries: stream={header.stream_id} position={recovered.position}"
            )
        return True
