"""Keeps a journal of a broker's life: one line of JSON per event, in the log ``penstock.template_name``, and sums."""

from __future__ import annotations

__all__ = (
    "JOURNAL",
    "Journal",
    "penstock_on_broker_started",
    "penstock_on_broker_stopping",
    "penstock_on_recovery_finished",
    "penstock_on_topic_created",
    "penstock_on_topic_deleted",
    "penstock_on_upload_committed",
)

import dataclasses
import json
import logging
from collections import Counter

from penstock.hookspecs import hookimpl
from penstock.spi.events import (
    BrokerStarted,
    BrokerStopping,
    RecoveryFinished,
    TopicCreated,
    TopicDeleted,
    UploadCommitted,
)

logger = logging.getLogger("penstock.template_name")


class Journal:
    """What happened so far, in numbers. Hooks are called on the event loop: they count, log, and return."""

    def __init__(self) -> None:
        self.events: Counter[str] = Counter()
        self.uploaded_bytes = 0
        self.upload_ms_max = 0.0

    def add(self, event: object) -> None:
        """Count an event, and write its line."""
        name = type(event).__name__
        self.events[name] += 1
        assert dataclasses.is_dataclass(event)
        assert not isinstance(event, type)
        logger.info("%s", json.dumps({"event": name, **dataclasses.asdict(event)}, default=str))

    def add_upload(self, event: UploadCommitted) -> None:
        """Sum up an upload. There may be many a second, so they get no line."""
        self.events["UploadCommitted"] += 1
        self.uploaded_bytes += event.payload_bytes
        self.upload_ms_max = max(self.upload_ms_max, event.duration_ms)


#: Of this process: a plugin is a module, loaded once.
JOURNAL = Journal()


@hookimpl
def penstock_on_broker_started(event: BrokerStarted) -> None:
    """The broker accepts clients."""
    JOURNAL.add(event)


@hookimpl
def penstock_on_broker_stopping(event: BrokerStopping) -> None:
    """The last that is heard of a broker, so the sums are told here."""
    JOURNAL.add(event)
    logger.info(
        "uploads=%d bytes=%d slowest_ms=%.1f",
        JOURNAL.events["UploadCommitted"],
        JOURNAL.uploaded_bytes,
        JOURNAL.upload_ms_max,
    )


@hookimpl
def penstock_on_recovery_finished(event: RecoveryFinished) -> None:
    """The log of an earlier run was replayed."""
    JOURNAL.add(event)


@hookimpl
def penstock_on_topic_created(event: TopicCreated) -> None:
    """A topic was created."""
    JOURNAL.add(event)


@hookimpl
def penstock_on_topic_deleted(event: TopicDeleted) -> None:
    """A topic was deleted."""
    JOURNAL.add(event)


@hookimpl
def penstock_on_upload_committed(event: UploadCommitted) -> None:
    """A block of the log cache is in the object store."""
    JOURNAL.add_upload(event)
