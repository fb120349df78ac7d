"""Object store: ranged reads, atomic puts, put-if-absent, ordered listing.

Keys are ``/``-separated printable ASCII without a leading slash; no part between slashes is empty, ``.`` or ``..``.
Every method is safe to call from several tasks at once. A cancelled call may or may not have taken effect; what took
effect is whole.

Every method may raise UnavailableError when the store fails, stalls or refuses for now. Implementations
retry nothing that isn't idempotent without resolving the outcome first. Errors are logged: they name keys, and tell
nothing of what is in objects, nor of settings that are marked as secret.

Plugins import all of this from :mod:`penstock.spi.object_store`, where the registration is, too.
"""

from __future__ import annotations

__all__ = (
    "AppendableStore",
    "MultipartUpload",
    "ObjectInfo",
    "ObjectStore",
    "ObjectStoreCapabilities",
    "ObjectStoreStatistics",
    "RESERVED_PREFIXES",
)

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from penstock.spi.buffers import Buffer
from penstock.spi.statistics import counter, gauge, text

#: Keys with these beginnings are the kernel's own: objects with records. What else is there belongs to plugins, each
#: below what its spec tells (``PluginSpec.key_prefixes``).
RESERVED_PREFIXES = ("objects/",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStoreCapabilities:
    """What a store can do. True is proved and False is refused with InvalidRequestError by the suite."""

    #: ``put_if_absent`` is atomic over every process that uses the store: exactly one creator wins.
    put_if_absent: bool = False
    #: ``compare_and_swap`` is atomic over every process that uses the store.
    compare_and_swap: bool = False
    #: ``append`` is there (:class:`AppendableStore`): an object grows at its end, atomically over every process that
    #: uses the store.
    append: bool = False
    #: ``create_multipart`` is there: an object can be written in parts and appears only when completed.
    multipart: bool = False
    #: ``list`` gives keys in ascending order and takes ``start_after``. Directory buckets of S3 list in any order.
    ordered_listing: bool = True
    #: Objects outlive the process that wrote them.
    durable: bool = True
    #: The fault domain that a completed put survives: ``process``, ``host``, ``zone`` or ``region``.
    durability_domain: str = "host"
    #: A hint, no promise: large buffers are written from where they are, without a copy, if their address and their
    #: position in the object agree (``penstock.direct_io``). The engine then lays objects out so.
    direct_io: bool = False
    #: A hint, no promise: parts of any size cost no more than their bytes. Uploads then go in small parts, spread
    #: over time, beside the log; elsewhere a part costs a request.
    small_parts: bool = False
    #: A hint, no promise: so many requests are on their way at once without one waiting in the store's own client.
    #: The kernel divides them among its classes of traffic (``penstock.spi.traffic``), the write-ahead log first.
    requests_max: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One object as listed: key, size in bytes, last modification in ms since the epoch (0 if unknown)."""

    key: str
    size: int
    modified_ms: int = 0
    #: Version token for ``compare_and_swap``; empty where the store has none. In a listing it may be empty wherever
    #: the store doesn't list it, page by page: ``head`` tells it.
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectStoreStatistics:
    """Counters since the store was opened."""

    gets: Annotated[int, counter("requests", "Reads of objects and ranges.")] = 0
    puts: Annotated[int, counter("requests", "Writes of objects and parts.")] = 0
    deletes: Annotated[int, counter("requests", "Deletions.")] = 0
    lists: Annotated[int, counter("requests", "Listings.")] = 0
    bytes_read: Annotated[int, counter("bytes", "Bytes read.")] = 0
    bytes_written: Annotated[int, counter("bytes", "Bytes written.")] = 0
    #: Calls that raised UnavailableError. A refusal, or an object that isn't there, is an answer.
    errors: Annotated[int, counter("requests", "Requests that failed.")] = 0
    #: Attempts that the store repeats by itself count too. An answer of the medium, also a refusal, makes it 0 again.
    consecutive_failures: Annotated[
        int,
        gauge(
            "attempts",
            "Attempts that failed since one succeeded.",
        ),
    ] = 0
    #: Kept when attempts succeed again; empty as long as none has failed.
    last_error: Annotated[str, text("Why the last of them failed.")] = ""
    outage_s: Annotated[float, gauge("s", "For how long nothing has worked; the kernel fills it in.")] = 0.0


class MultipartUpload(Protocol):
    """An object being written in parts; invisible until ``complete`` returns. One call at a time."""

    async def write_part(self, part: Sequence[Buffer]) -> None:
        """Append one part. The buffers may be reused once this returns. Parts go in call order.

        Raises UnavailableError; the upload is then to be aborted.
        """

    async def complete(self) -> None:
        """Make the object visible and durable, whole, replacing what was there.

        Raises UnavailableError; the object is then either absent or whole.
        """

    async def abort(self) -> None:
        """Drop what was written. Never raises for an upload that is already gone, and leaves what it completed."""


class ObjectStore(Protocol):
    """The contract of an object store."""

    @property
    def capabilities(self) -> ObjectStoreCapabilities:
        """What this instance can do, after its settings were taken into account."""

    @property
    def location(self) -> str:
        """Where the data are, for people (a URL without secrets)."""

    async def get(self, key: str, start: int = 0, end: int | None = None) -> Buffer:
        """The bytes ``[start, end)`` of the object; to its end if ``end`` is None or past the end.

        The result is read-only for the caller and stays valid as long as it is referenced.
        Raises InvalidRequestError if ``start`` is negative or greater than ``end``, whether there is such an object
        or not; then NotFoundError if there is none; InvalidRequestError if ``start`` is past the object's end.
        """

    async def head(self, key: str) -> ObjectInfo:
        """Size and token of one object. Raises NotFoundError."""

    async def put(self, key: str, body: Sequence[Buffer]) -> str:
        """Write the object as the concatenation of ``body``, any sequence, replacing what was there; its token.

        Atomic: readers see the old bytes or the new ones, never a mixture, also over a crash.
        Durable on the claimed domain when it returns.
        """

    async def put_if_absent(self, key: str, body: Sequence[Buffer]) -> str:
        """Like ``put``, but only if there is no such object; returns its token.

        When the outcome of an attempt is unknown (a reply was lost), the implementation reads the object
        back and compares before it answers: meeting one's own bytes is a success. So callers put something
        unique (owner, epoch, nonce) into bodies that race.
        Raises AlreadyExistsError if somebody else's object is there; InvalidRequestError if unclaimed.
        """

    async def compare_and_swap(self, key: str, body: Sequence[Buffer], token: str) -> str:
        """Replace the object only if its token is still ``token``; returns the new token.

        The same bytes may have the same token again, as where it is a hash of them; other bytes have another one,
        also where the object was deleted and made again, and an empty one is none. Raises ConflictError if it changed
        or vanished; InvalidRequestError if unclaimed.
        """

    async def create_multipart(self, key: str) -> MultipartUpload:
        """Start an upload in parts. Raises InvalidRequestError if unclaimed."""

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects; those that don't exist are fine."""

    def list(self, prefix: str = "", start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects whose key starts with ``prefix`` and is greater than ``start_after``, in ascending order.

        Without ``ordered_listing`` they come in any order, and a ``start_after`` raises InvalidRequestError.
        Sees every object whose put completed before the call (no listing cache).
        """

    def statistics(self) -> ObjectStoreStatistics:
        """A snapshot of the counters."""


class AppendableStore(ObjectStore, Protocol):
    """The contract of an object store that claims ``append``."""

    async def append(self, key: str, body: Sequence[Buffer], offset: int) -> str:
        """Write ``body`` behind the first ``offset`` bytes of the object, which must be all of it; its new token.

        An object that isn't there has no bytes, so an append at 0 makes one. Atomic and durable as ``put`` is; of
        several appends at one offset one takes effect. When the outcome of an attempt is unknown, the implementation
        reads what is behind ``offset`` and compares before it answers: meeting one's own bytes is a success. So
        callers put something unique into what they append.
        Raises ConflictError if the object ends elsewhere, also where it takes no more appends; InvalidRequestError if
        ``offset`` is negative, ``body`` has no bytes, the store takes no more appends to this object (each takes one
        at least, whichever way it was made), or it is unclaimed.
        """
