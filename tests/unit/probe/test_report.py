"""What follows from a probe's findings, in words."""

from __future__ import annotations

from typing import Any

from penstock_metadata_object import penstock_register_metadata_log
from penstock_wal_block import penstock_register_wal as wal_block
from penstock_wal_s3 import penstock_register_wal as wal_s3

from penstock.spi.object_store import ObjectStoreCapabilities
from penstock.spi.plugin import PluginSpec
from penstock_tools.probe.report import Finding, Report, judge_plugins


def report(claimed: ObjectStoreCapabilities, *findings: Finding) -> Report:
    specs: list[PluginSpec[Any, Any]] = [penstock_register_metadata_log(), wal_block(), wal_s3()]
    verdicts = judge_plugins(specs, claimed, findings)
    return Report(
        location="s3://x", plugin="x", writers=2, findings=findings, latencies=(), plugins=verdicts, config=""
    )


def test_a_store_without_an_order_can_still_hold_one_place_of_a_log() -> None:
    """A directory bucket, for which the templates have a place; a store without put-if-absent has none."""
    found = report(ObjectStoreCapabilities(put_if_absent=True, ordered_listing=False))
    assert not found.carries_a_broker
    assert "alone: it has no ordered_listing\na log can be in it" in found.why_no_broker
    assert "config init --cloud aws-express" in found.why_no_broker
    found = report(ObjectStoreCapabilities())
    assert found.why_no_broker == "no broker can stand on this store alone: it has no put_if_absent"


def test_a_store_that_breaks_a_promise_is_good_for_nothing() -> None:
    found = report(
        ObjectStoreCapabilities(put_if_absent=True), Finding(name="list after write", verdict="broken")
    )
    assert found.why_no_broker == "no broker can stand on this store: it broke list after write"
