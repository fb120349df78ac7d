"""Write-ahead log: what makes an append durable before it is acknowledged.

One WAL per broker, shared by all its partitions. Life: ``open`` (fences older owners) -> ``recover`` once, to
its end (from then on ``statistics().end_position`` says where the log ends, also of an empty one) -> any number of
``append``/``trim`` -> leave the context (flushes what was appended).

While nothing is asked of it, a log comes to rest and leaves its medium alone; it may write now and then, once a
second at the most, that its owner lives.

A *position* is an int64 that strictly grows with append order; an entry covers [position, next_position).
Positions are opaque to the kernel except for their order.
"""

from __future__ import annotations

__all__ = (
    "BoundedLog",
    "WalAppend",
    "WalCapabilities",
    "WalEntry",
    "WalSpec",
    "WalStatistics",
    "WriteAheadLog",
    "complete_all",
)

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

import anyio
import msgspec

from penstock.errors import again, kept
from penstock.spi.plugin import Buffer, PluginSpec, S, Services
from penstock.spi.statistics import counter, gauge, text


@dataclass(frozen=True, slots=True, kw_only=True)
class WalCapabilities:
    """What a WAL promises. Each claim is tested by the conformance suite."""

    #: The fault domain that an acknowledged entry survives.
    durability_domain: Literal["process", "host", "zone", "region"]
    #: Another host can open this log after its owner died (failover).
    shareable: bool = False
    #: ``open`` fences an older owner that is still alive: it never acknowledges again.
    fencing: bool = False
    #: Appends raise FullError when the log is at its capacity, until it is trimmed.
    bounded: bool = False
    #: ``seal`` is there: after it, no append of any owner is acknowledged.
    seal: bool = False
    #: ``WalSpec.identify`` is there: a lost, swapped or forgotten log is noticed before anything is acknowledged.
    identity: bool = False
    #: Median milliseconds from append to durable on the intended medium, for people and schedulers.
    expected_latency_ms_p50: float = 1.0
    #: The largest entry in bytes, however full the log is; of a bounded one no larger than what it has room for when
    #: it is empty.
    entry_bytes_max: int = 128 * 2**20


class WalAppend(msgspec.Struct, eq=False):  # made for each append, so without a step of Python
    """An append whose order is fixed; it completes when durable, or with an error.

    Appends complete in position order: when one is done, every earlier one is. Once one fails, every append
    that was made after it fails too, up to the moment at which its error was told; those that are made later
    are judged by themselves. So what a log holds of a caller never has a hole. Callbacks run on the event
    loop, in position order, directly from the completion. The WAL calls :meth:`complete` exactly once, or
    :func:`complete_all` for appends that follow each other.
    """

    position: int
    next_position: int
    done: bool = False
    #: None after success; FencedError, ClosedError, UnavailableError... after failure.
    error: Exception | None = None
    #: Set by ``set_run_callback``, for ``complete_all``.
    run_callback: Callable[[Sequence[WalAppend], Exception | None], None] | None = None
    _callback: Callable[[WalAppend], None] | None = None
    _event: anyio.Event | None = None

    def set_callback(self, callback: Callable[[WalAppend], None]) -> None:
        """Have ``callback(self)`` called at completion (at once if already done). One per append."""
        if self.done:
            callback(self)
        else:
            assert self._callback is None, "one callback per append"
            self._callback = callback

    def set_run_callback(self, callback: Callable[[Sequence[WalAppend], Exception | None], None]) -> None:
        """Have one call of ``callback`` for a whole run of appends that complete together; replaces ``set_callback``.

        ``callback(appends, error)`` gets appends that follow each other, have this very callback and complete at
        once; at least this one. ``done`` isn't set on them: nobody else may wait for such an append.
        """
        if self.done:
            callback((self,), self.error)
        else:
            self.run_callback = callback

    def complete(self, error: Exception | None = None) -> None:
        """For the WAL: the entry is durable (no error), or never will be acknowledged (error).

        Raises what the callback raises, when everybody who waits was woken.
        """
        assert not self.done, "an append completes once"
        self.done = True
        self.error = error
        if self.run_callback is not None:
            self.run_callback((self,), error)
            return
        callback = self._callback
        try:
            if callback is not None:
                self._callback = None
                callback(self)
        finally:  # who waits is woken, whatever the callback does
            if self._event is not None:
                self._event.set()

    async def wait_durable(self) -> None:
        """Return when the entry is durable. Raises the append's error. Cancelling doesn't take it back."""
        if not self.done:
            if self._event is None:
                self._event = anyio.Event()
            await self._event.wait()
        else:
            await anyio.lowlevel.checkpoint()
        if self.error is not None:
            raise again(self.error)


_run_callback_of = attrgetter("run_callback")


def complete_all(appends: Sequence[WalAppend], error: Exception | None = None) -> None:
    """``WalAppend.complete`` for appends that follow each other, in order; each gets an error of its own.

    All are completed, even if a callback raises; then the first error is raised.
    """
    first_error: Exception | None = None
    for callback, run in groupby(appends, _run_callback_of):  # no step of Python for each append of a run
        if callback is not None:
            try:
                callback(tuple(run), error)
            except Exception as raised:  # noqa: BLE001 - the other appends are answered before it is raised
                first_error = first_error or kept(raised)
            continue
        for append in run:
            try:
                append.complete(error if error is None else again(error))
            except Exception as raised:  # noqa: BLE001 - the other appends are answered before it is raised
                first_error = first_error or kept(raised)
    if first_error is not None:
        raise again(first_error)


@dataclass(frozen=True, slots=True)
class WalEntry:
    """One entry as recovered; ``data`` is the very bytes that were appended, and stays so while it is referenced."""

    position: int
    next_position: int
    data: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class WalStatistics:
    """A snapshot. Bytes count the medium (with framing and padding) unless they say payload.

    Counters are of this owner: what it recovers was appended by others, and is durable.
    """

    appended_entries: Annotated[int, counter("entries", "Entries that were appended.")] = 0
    appended_payload_bytes: Annotated[int, counter("bytes", "Their payload.")] = 0
    written_groups: Annotated[
        int, counter("groups", "Groups that are durable; one write and one sync each.")
    ] = 0
    written_bytes: Annotated[int, counter("bytes", "Bytes written to the medium.")] = 0
    pending_entries: Annotated[int, gauge("entries", "Entries that wait to be durable.")] = 0
    pending_bytes: Annotated[int, gauge("bytes", "Their bytes.")] = 0
    used_bytes: Annotated[int, gauge("bytes", "Bytes between the trim point and the end of the log.")] = 0
    capacity_bytes: Annotated[int, gauge("bytes", "Bytes that there is room for; 0 is unbounded.")] = 0
    trimmed_position: Annotated[int, gauge("", "Entries below are trimmed.")] = 0
    confirmed_position: Annotated[int, gauge("", "Entries below are durable.")] = 0
    end_position: Annotated[
        int,
        gauge("", "Where the log ends: every later entry is at or above; -1 as long as that isn't known."),
    ] = -1  # known once, it stays so, also of a log that was fenced, sealed or left
    last_group_us: Annotated[int, gauge("us", "How long the last group took on the medium.")] = 0
    state: Annotated[
        str,
        text(
            "One word: ``open``, ``degraded``, ``fenced``, ``failed``, ``closed``; ``degraded``: it goes on."
        ),
    ] = "open"
    last_error: Annotated[
        str, text("Why the state is ``degraded``, ``fenced`` or ``failed``: one sentence.")
    ] = ""


class WriteAheadLog(Protocol):
    """The contract of a write-ahead log."""

    @property
    def capabilities(self) -> WalCapabilities:
        """What this instance promises, after its settings and medium were taken into account."""

    @property
    def location(self) -> str:
        """Where the log is, for people."""

    def recover(self) -> AsyncIterator[WalEntry]:
        """All acknowledged entries since the trim point in append order, before the first append, once.

        What it returned is durable when it ends, also what an owner that was killed had only written. Who reads
        only a part has recovered nothing, and changed nothing. A second call raises InvalidRequestError, or
        begins anew.
        Entries that were appended but never acknowledged may be there or not, but only as a continuation:
        no entry is returned after a missing one, and an append that completed with an error never comes
        back once a later append was acknowledged. Entries below the trim point may come again.
        Raises CorruptError, naming the position, when an entry below the confirmed position is missing or
        fails its checksum (I10: never skipped); NewerVersionError where a newer version wrote on. Below it is at
        least what was acknowledged when the newest entry was appended, however its owner ended. An owner that was
        fenced meanwhile may recover to the end, or hear of it; what its successor has stays.
        """

    def append(self, data: Sequence[Buffer], checksum: int | None = None) -> WalAppend:
        """Append one entry, the concatenation of ``data``; the call fixes its order and returns at once.

        ``data`` is any sequence, and the caller's again when this returns; its buffers, whose views are of bytes, are
        left unchanged until the append is done. Until then a log may hold them, later none; it changes none, and
        releases no view of the caller's. ``checksum`` is the CRC-32C of the entry if the caller knows it: a
        log that keeps that one needn't go over the bytes, others ignore it. Callbacks append, too; while the
        context is left, that is flushed, or refused with ClosedError. Entries that are appended while nothing else
        can run share accesses to the medium, few for however many, unless each is durable when this returns.
        Raises FullError when a bounded log has no room (trim, then retry: nothing was appended);
        FencedError after a newer owner took over; ClosedError when closed or failed; InvalidRequestError
        when the entry is empty, larger than ``entry_bytes_max``, or ``recover`` wasn't run to its end. What is
        refused takes no room and leaves nothing, however often.
        """

    async def trim(self, position: int) -> None:
        """Entries whose next position is at most ``position`` may be dropped. Lower ones, also negative, are no-ops.

        That goes for what was acknowledged when this is called: a position beyond it stands for its end. What isn't
        acknowledged yet, or is appended later, stays, wherever it is, and later trims are as ever.
        A bounded log has their room again when this returns; others drop them then, later or never, as
        ``trimmed_position`` tells. May become durable later; a crash may bring trimmed entries back to ``recover``.
        May raise UnavailableError when the medium, or the log, has failed, and FencedError after a newer owner took
        over. From then on it changes nothing: the newer owner finds what was there when it opened.
        """

    async def seal(self) -> None:
        """From the return of this call on, no append of any owner is acknowledged.

        A log that is sealed already, by this owner or an earlier one, is sealed again, and nothing changes.
        Raises FencedError after a newer owner took over, whose appends go on; ClosedError when closed or failed;
        InvalidRequestError if unclaimed.
        """

    def statistics(self) -> WalStatistics:
        """A snapshot of the state, also when the context was left: nothing pends then."""


@runtime_checkable
class BoundedLog(Protocol):
    """A WAL that claims ``bounded`` has this, too; without it, it can be no member of a composite."""

    def would_fit(self, entry_bytes: int) -> bool:
        """Whether ``append`` of so many bytes surely wouldn't raise FullError, if it were called now.

        Who appends to several logs, all or none, asks each of them first. A log that is trimmed to its end says yes
        to every entry that it takes at all. No I/O.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class WalSpec(PluginSpec[S, WriteAheadLog]):
    """Registration of a WAL.

    ``open`` raises FencedError if a newer owner holds the log, or this epoch was used before, also by an owner that
    has closed the log; NewerVersionError if a newer version wrote it.

    *Taking over* (capability ``shareable``): the log that ``open`` opens is the one of ``Services.node_id``, whoever
    opens it and on whatever host, with the same settings. So a survivor opens a dead node's log with that node's id
    and a newer epoch, beside its own log, recovers it, and trims it. A sealed log can be opened, recovered and
    trimmed as well; only its appends raise FencedError.
    """

    kind: ClassVar[str] = "wal"
    capabilities: WalCapabilities
    #: Reads the log from outside, changing nothing and fencing nobody: what ``recover`` would return now. The
    #: log may belong to a live owner; then the end is wherever the reader got to. Raises CorruptError like
    #: ``recover``, NotFoundError if there is no log; one without entries is one. None: the plugin can't.
    read: Callable[[S, Services], AsyncIterator[WalEntry]] | None = None
    #: Facts about the log for people (owner, epoch, capacity, positions), read from outside likewise.
    describe: Callable[[S, Services], Awaitable[Mapping[str, object]]] | None = None
    #: The identity of the log that ``open`` would open with these settings, changing nothing and fencing nobody; None
    #: if it would create one. Up to 64 printable characters without spaces, drawn when the log is created: the
    #: same for every owner as long as the log is there, another one for every other log, wherever and whenever it
    #: is made. Called before ``open`` (``epoch`` is 0 then) and after it. Raises CorruptError if what is there
    #: can't be read, NewerVersionError, UnavailableError if the medium fails. Only with the capability ``identity``.
    identify: Callable[[S, Services], Awaitable[str | None]] | None = None

    #: Makes the place that the settings name ready for a log; facts for people about what was found and tried there.
    #: Raises ConfigError where something is, a log included, be it empty or beyond reading, unless the third
    #: argument is the words that this error asks for; then all that is there is lost. Never called by a broker. None:
    #: nothing can be made ready.
    format: Callable[[S, Services, str], Awaitable[Mapping[str, object]]] | None = None

    def fault(self) -> str:
        """``identify`` and its capability come together."""
        if getattr(self.capabilities, "identity", False) != (self.identify is not None):
            return "a WAL has identify if and only if it claims the capability identity"
        return ""
