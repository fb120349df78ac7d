"""The journal, and that Penstock takes its hooks."""

from __future__ import annotations

import json
import logging

import pytest

from penstock.plugins import PluginRegistry
from penstock.spi.events import TopicDeleted, UploadCommitted
from penstock_tools.scaffold.templates.observer import plugin
from penstock_tools.scaffold.templates.observer.plugin import Journal


def test_penstock_takes_the_hooks() -> None:
    registry = PluginRegistry(modules=[plugin.__name__])
    assert [info.kind for info in registry.infos()] == ["observer"]


def test_an_event_is_a_line_of_json(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "penstock.template_name")
    Journal().add(TopicDeleted(name="orders", topic_id="17"))
    assert json.loads(caplog.messages[0]) == {"event": "TopicDeleted", "name": "orders", "topic_id": "17"}


def test_uploads_are_summed_up() -> None:
    journal = Journal()
    for size in (3, 4):
        journal.add_upload(
            UploadCommitted(object_ids=(size,), stream_count=1, payload_bytes=size, duration_ms=2.0 * size)
        )
    assert (journal.events["UploadCommitted"], journal.uploaded_bytes, journal.upload_ms_max) == (2, 7, 8.0)
