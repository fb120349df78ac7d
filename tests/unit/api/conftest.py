"""Fixtures of the API tests."""

from __future__ import annotations

import pytest
from tests.unit.api.fakes import FakeLogs


@pytest.fixture
def logs() -> FakeLogs:
    """A broker with the topic ``t`` of three partitions."""
    logs = FakeLogs()
    logs.add("t", 3)
    return logs
