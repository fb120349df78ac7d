"""The one place where entries become the image: each is applied once, in order, whoever wrote it."""

from __future__ import annotations

__all__ = ("BehindError", "Tailer", "follow", "load_image")

import logging
from collections.abc import Callable, Sequence
from typing import Any

import anyio

from penstock.bus import EventBus
from penstock.errors import (
    ClosedError,
    CorruptError,
    FencedError,
    NewerVersionError,
    NotFoundError,
    PenstockError,
    UnavailableError,
    again,
    kept,
)
from penstock.metadata.commands import Entry, decode_entry
from penstock.metadata.image import Image
from penstock.spi.metadata_log import MetadataLog
from penstock.work.retry import Backoff, doubling

logger = logging.getLogger("penstock.metadata")

#: Pauses while the log can't be read, or can't say whether there is news.
_PAUSES_S = doubling(0.1, 10.0)


async def load_image(log: MetadataLog) -> Image:
    """The image that the log holds now; reads only. Raises CorruptError, UnavailableError."""
    behind: BehindError | None = None
    tried = -1
    while True:
        snapshot = await log.read_snapshot()
        image = Image() if snapshot is None else Image.from_snapshot(snapshot.data)
        if snapshot is not None and image.index != snapshot.index:
            raise CorruptError(
                f"metadata snapshot isn't of its index: index={snapshot.index} found={image.index}"
            )
        if behind is not None and image.index <= tried:
            raise again(behind)
        tried = image.index
        try:
            await follow(log, image)
        except BehindError as error:
            behind = kept(error)  # others wrote snapshots while this one was read
        else:
            return image


async def follow(log: MetadataLog, image: Image) -> None:
    """Fold what the log holds past the image. Raises BehindError, CorruptError, UnavailableError."""
    try:
        async for read in log.read(image.index + 1):
            image.fold(read.index, decode_entry(read.index, read.data))
    except NotFoundError as error:
        raise BehindError(
            f"entries that follow the metadata snapshot were dropped while it was read: location={log.location} "
            f"index={image.index} cause={error}"
        ) from error


class BehindError(UnavailableError):
    """Entries that the image lacks were dropped below a snapshot: load that."""


class Tailer:
    """Applies entries to ``image``, and publishes what they changed on ``bus``.

    A writer hands its own entries over with :meth:`append`; what others append comes with :meth:`run`, the task that
    follows them, and with :meth:`catch_up`. These may overlap: whoever has the next entry first, applies it.
    """

    def __init__(self, log: MetadataLog, image: Image, bus: EventBus, check: Callable[[Image], None]) -> None:
        """``check`` is called with the image after others' entries; what it raises ends the task, as a fence must."""
        self.image = image
        self._log = log
        self._bus = bus
        self._check = check
        #: The entry that is being written.
        self._own = b""
        #: Its results, one per command, once it was found in the log.
        self.landed: Sequence[Any] | None = None
        #: The index at which it was found; others' entries behind it may have been applied since.
        self.landed_index = 0
        #: Entries that other writers appended since this was made.
        self.followed_entries = 0
        #: Set when an append ends, if one is under way.
        self._append_ended: anyio.Event | None = None

    def apply(self, index: int, entry: Entry) -> Sequence[Any]:
        """Fold the next entry and tell what changed; one result per command."""
        folded = self.image.fold(index, entry)
        for delta in folded.deltas:
            self._bus.publish(delta)
        return folded.results

    def expect(self, data: bytes) -> None:
        """An entry with these bytes is about to be written: :attr:`landed` are its results, once it is found."""
        self._own, self.landed = data, None

    async def append(self, entry: Entry, data: bytes) -> None:
        """Append the entry that is expected at the next index, and apply it.

        Raises the log's ConflictError if another writer was there first, UnavailableError if the entry may be there:
        :meth:`catch_up` finds it.
        """
        index = self.image.index + 1
        ended = self._append_ended = anyio.Event()
        try:
            await self._log.append(index, data)
            if self.image.index < index:
                self.landed, self.landed_index = self.apply(index, entry), index
        finally:
            self._append_ended = None
            ended.set()

    async def catch_up(self) -> None:
        """Apply what the log holds past the image.

        Raises UnavailableError, CorruptError, NewerVersionError, BehindError; in place of that what ``check`` raises.
        """
        while True:
            first = self.image.index + 1
            try:
                await self._read_from(first)
            except NotFoundError as error:
                if self.image.index >= first:
                    continue  # it was applied while we read, and dropped below a snapshot, perhaps of our own
                self._check(await load_image(self._log))  # who was fenced meanwhile must not start again
                raise BehindError(
                    f"this broker was away from the metadata log for so long that a new start is needed, which loads "
                    f"the newest snapshot: location={self._log.location} index={self.image.index} cause={error}"
                ) from error
            return

    async def _read_from(self, first: int) -> None:
        async for read in self._log.read(first):
            if read.index == self.image.index + 1:  # else it was applied while we read
                results = self.apply(read.index, decode_entry(read.index, read.data))
                if read.data == self._own:
                    self.landed, self.landed_index = results, read.index
                else:
                    self.followed_entries += 1

    async def run(self) -> None:
        """Follow other writers until cancelled; ends when the log is closed.

        Raises what ``check`` raises, NewerVersionError and BehindError: what can't be read can't be followed.
        """
        backoff = Backoff(_PAUSES_S, told_every=30)
        while True:
            index = self.image.index
            try:
                await self._log.wait_for_news(index)
                while self._append_ended is not None:
                    await self._append_ended.wait()  # most news is our own
                if self.image.index == index:
                    await self.catch_up()
                    self._check(self.image)
            except ClosedError:
                return
            except (BehindError, FencedError, NewerVersionError):
                raise
            except PenstockError as error:
                pause_s = backoff.failed()
                level = logging.WARNING if backoff.is_news else logging.DEBUG
                logger.log(level, "metadata log at %s can't be followed: %s", self._log.location, error)
                await anyio.sleep(pause_s)
            else:
                backoff.succeeded()
