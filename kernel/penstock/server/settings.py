"""Settings of the server (limits, listeners), and its statistics."""

from __future__ import annotations

__all__ = (
    "LARGE_FRAME_BYTES",
    "PEEK_BYTES",
    "SCRATCH_BYTES",
    "SHORT_BYTES",
    "ListenerSettings",
    "ServerSettings",
    "ServerStatistics",
)

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from penstock.limits import GROUP_REQUEST_BYTES_MAX
from penstock.spi.statistics import counter, gauge
from penstock.work.periodic import JobsStatistics

#: A frame of at least this size gets memory of its own and is received straight into it.
LARGE_FRAME_BYTES: Final = 32 * 1024
#: The one receive buffer that all connections share.
SCRATCH_BYTES: Final = 256 * 1024
#: After a large frame only so much is received blindly: the next frame is probably large too, and what is
#: received into the scratch buffer has to be copied.
PEEK_BYTES: Final = 512
#: When connections carry much between reads, they receive pieces of this size only (``penstock.server.carried``).
SHORT_BYTES: Final = 4 * 1024

# An unfinished small frame is carried over in the scratch buffer, in front of what comes next.
assert LARGE_FRAME_BYTES + 4 < SCRATCH_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerSettings:
    """One place where clients connect. Port 0 takes a free one; what is advertised defaults to what is bound."""

    name: str = "PLAINTEXT"
    host: str = "127.0.0.1"
    port: int = 9092
    advertised_host: str | None = None
    advertised_port: int | None = None
    #: Rack or zone that clients are told.
    rack: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Limits of the server; where Kafka has the setting, its name and default are the same."""

    #: Largest frame, hence largest Produce (``socket.request.max.bytes``).
    request_bytes_max: int = 100 * 1024 * 1024
    #: Partitions, or topics, in one Produce.
    produce_partitions_max: int = 50_000
    #: Largest frame of any other API: decoded, these may take a hundred times their size.
    control_request_bytes_max: int = 1024 * 1024
    #: The same for what carries the metadata of a whole group (JoinGroup, SyncGroup, OffsetCommit).
    group_request_bytes_max: int = GROUP_REQUEST_BYTES_MAX
    #: Connections beyond this are refused unless an idle one can go (``max.connections``).
    connections_max: int = 10_000
    #: The same of one address (``max.connections.per.ip``).
    connections_per_address_max: int = 10_000
    #: A connection without a request for this long is closed (``connections.max.idle.ms``).
    idle_timeout_ms: int = 600_000
    #: A connection that sent no complete request, or that stopped within one, is closed after this.
    half_open_timeout_ms: int = 30_000
    #: How long a client that has closed, or finished sending, may still wait for a request that is parked.
    half_closed_wait_ms: int = 2_000
    #: A connection that doesn't take its responses for this long is closed.
    stalled_write_timeout_ms: int = 120_000
    #: Unanswered requests per connection before it is no longer read.
    pipeline_requests_max: int = 512
    #: Unanswered request bytes per connection before it is no longer read.
    pipeline_bytes_max: int = 64 * 1024 * 1024
    #: Bytes of requests that aren't whole, or not handled yet, of all connections (``penstock.shares``).
    receive_bytes_max: int = 256 * 1024 * 1024
    #: Bytes that all connections carry between reads, at most, and a MiB (``penstock.server.carried``).
    carried_bytes_max: int = 16 * 1024 * 1024
    #: How long a large frame may wait for memory before its connection is closed.
    memory_wait_ms_max: int = 60_000
    #: How long requests in flight may take once the server stops.
    drain_timeout_ms: int = 10_000
    #: Length of the queue of connections not yet accepted.
    backlog: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatistics:
    """A snapshot."""

    connections: Annotated[int, gauge("connections", "Open connections.")]
    connections_total: Annotated[int, counter("connections", "Connections that were accepted.")]
    connections_rejected: Annotated[int, counter("connections", "Connections for which there was no room.")]
    connections_closed_for_fault: Annotated[
        int, counter("connections", "Closed for what they sent: malformed frames, unknown APIs.")
    ]
    connections_closed_for_timeout: Annotated[
        int, counter("connections", "Closed because nothing came for too long.")
    ]
    connections_closed_for_others: Annotated[
        int, counter("connections", "Closed: they held what others waited for and did not move.")
    ]
    requests_by_api: Annotated[
        Mapping[int, int], counter("requests", "Requests answered or being answered.", by="API key")
    ]
    requests_in_flight: Annotated[int, gauge("requests", "Requests that are not answered yet.")]
    handler_errors: Annotated[int, counter("requests", "Handlers that raised what they should not.")]
    received_bytes: Annotated[int, counter("bytes", "Bytes that came.")]
    sent_bytes: Annotated[int, counter("bytes", "Bytes that went.")]
    waiting_for_room: Annotated[int, gauge("connections", "Connections that wait for room in the log.")]
    waiting_for_memory: Annotated[
        int, gauge("connections", "Connections that wait for memory for a large frame.")
    ]
    receive_bytes: Annotated[int, gauge("bytes", "What requests hold that are not whole or not handled yet.")]
    preparing: Annotated[
        int, gauge("connections", "Connections whose Produce is prepared in a thread, or waits for it.")
    ]
    carried_bytes: Annotated[
        int, gauge("bytes", "What unfinished and blocked requests hold outside the allocator.")
    ]
    jobs: JobsStatistics
