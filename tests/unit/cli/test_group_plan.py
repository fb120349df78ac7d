"""What `penstock group reset-offsets` plans, and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import anyio
import pytest

from penstock.errors import InvalidRequestError, NotFoundError
from penstock_tools.cli import main
from penstock_tools.cli._format import OffsetSpec
from penstock_tools.cli.group import Progress, Step, _plan, _target
from penstock_tools.client.admin import EARLIEST, LATEST, Admin, CommittedOffset, ListedOffset
from penstock_tools.client.cluster import PartitionInfo, TopicInfo


class FakeAdmin:
    """Two partitions of ``t``, holding 10..19 and 0..4; the group has committed 15 in the first."""

    async def committed_offsets(self, group: str) -> dict[tuple[str, int], CommittedOffset]:
        return {("t", 0): CommittedOffset(15, "")} if group == "g" else {}

    async def list_offsets(
        self, wanted: Mapping[tuple[str, int], int]
    ) -> dict[tuple[str, int], ListedOffset]:
        starts, ends = {0: 10, 1: 0}, {0: 20, 1: 5}
        by_time = {0: 17, 1: -1}
        return {
            key: ListedOffset({EARLIEST: starts, LATEST: ends}.get(timestamp, by_time)[key[1]], -1)
            for key, timestamp in wanted.items()
        }

    async def topics(self, names: Sequence[str]) -> list[TopicInfo]:
        partitions = tuple(PartitionInfo(index, 1, 0, (1,), (1,)) for index in range(2))
        return [TopicInfo(name, bytes(16), False, partitions) for name in names]


def plan(target: OffsetSpec | int, *wanted: tuple[str, list[int] | None], group: str = "g") -> list[Step]:
    async def run() -> list[Step]:
        return await _plan(cast(Admin, FakeAdmin()), group, list(wanted), target)

    return anyio.run(run)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (OffsetSpec("beginning"), [10, 0]),
        (OffsetSpec("end"), [20, 5]),
        (OffsetSpec("offset", 12), [12, 5]),
        (OffsetSpec("offset", 2), [10, 2]),
        (OffsetSpec("time", 1), [17, 5]),
    ],
)
def test_every_target_lands_inside_the_partition(target: OffsetSpec, expected: list[int]) -> None:
    steps = plan(target, ("t", None))
    assert [step.new for step in steps] == expected
    assert [step.committed for step in steps] == [15, None]


@pytest.mark.parametrize(("shift", "expected"), [(3, 18), (-2, 13), (-100, 10), (100, 20)])
def test_a_shift_counts_from_what_is_committed(shift: int, expected: int) -> None:
    assert [step.new for step in plan(shift, ("t", [0]))] == [expected]


def test_without_topics_the_plan_is_for_what_is_committed() -> None:
    assert [(step.topic, step.partition) for step in plan(OffsetSpec("end"))] == [("t", 0)]
    with pytest.raises(NotFoundError, match="committed nothing: group=other"):
        plan(OffsetSpec("end"), group="other")


def test_what_has_no_commit_cannot_be_shifted() -> None:
    with pytest.raises(InvalidRequestError, match="topic=t partition=1"):
        plan(1, ("t", None))


def test_a_partition_that_is_not_there_is_refused() -> None:
    with pytest.raises(NotFoundError, match="partition=2 partitions=2"):
        plan(OffsetSpec("end"), ("t", [2]))


def test_exactly_one_target() -> None:
    nothing: tuple[Any, ...] = (False, False, None, None, None)
    for wrong in (nothing, (True, True, None, None, None), (True, False, 0, None, None)):
        with pytest.raises(InvalidRequestError, match="exactly one of"):
            _target(*wrong)
    assert _target(False, False, None, None, 0) == 0
    assert _target(False, False, 0, None, None) == OffsetSpec("offset", 0)


def test_lag_is_never_negative_and_not_guessed() -> None:
    assert Progress(topic="t", partition=0, committed=3, end=5, member=None).lag == 2
    assert Progress(topic="t", partition=0, committed=9, end=5, member=None).lag == 0
    assert Progress(topic="t", partition=0, committed=None, end=5, member=None).lag is None


def test_the_command_wants_topics_and_a_target(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["group", "reset-offsets", "g", "--to-latest"]) == 2
    assert "give --topic, or --all-topics" in capsys.readouterr().err
    assert main(["group", "reset-offsets", "g", "--topic", "t"]) == 2
    assert "exactly one of" in capsys.readouterr().err
