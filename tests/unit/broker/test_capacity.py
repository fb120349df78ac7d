"""What DescribeLogDirs says about the place of the data."""

from __future__ import annotations

import shutil
from pathlib import Path

from penstock.broker._process import capacity_of


def test_a_local_place_has_the_size_of_its_disk(tmp_path: Path) -> None:
    found = capacity_of(f"file://{tmp_path}")
    assert found is not None
    total, usable = found
    assert total == shutil.disk_usage(tmp_path).total
    assert 0 <= usable <= total


def test_of_other_places_and_of_lost_ones_nothing_is_known(tmp_path: Path) -> None:
    assert capacity_of("s3://bucket/prefix") is None
    assert capacity_of(f"file://{tmp_path}/gone") is None
