"""Events of the stream engine for other rooms; those that observers get as well are in :mod:`penstock.spi.events`."""

from __future__ import annotations

__all__ = ("BlockUploaded",)

from dataclasses import dataclass

from penstock.spi.events import UploadCommitted
from penstock.spi.log_cache import LogCacheBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockUploaded:
    """A block of the log cache is in the object store and committed; it may lose streams that are deleted later."""

    event: UploadCommitted
    block: LogCacheBlock
