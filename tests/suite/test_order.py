"""How a run is handed out to its workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.run import unit_of

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("file", "is_whole"),
    [
        ("tests/integration/test_crash.py", False),
        ("tests/integration/test_wire_log.py", True),  # a broker for the module
        ("tests/differential/test_answers.py", True),  # and a Kafka
        ("tests/unit/test_errors.py", True),
        ("plugins/partitioner/tests/test_partitioner.py", True),
    ],
)
def test_a_worker_gets_one_long_test_but_all_that_are_small_or_share_something(
    file: str, is_whole: bool
) -> None:
    test = f"{file}::test_something[a::b]"
    assert unit_of(REPOSITORY, test) == (file if is_whole else test)
