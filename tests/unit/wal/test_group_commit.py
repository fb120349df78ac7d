"""Order, batching, completion, capacity and failure of appends, without a medium."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.direct_io import LARGE_BYTES
from penstock.errors import ClosedError, FencedError, FullError, InvalidRequestError, UnavailableError
from penstock.spi.plugin import Buffer
from penstock.spi.wal import WalAppend
from penstock.wal import ENTRY_HEADER_BYTES, GROUP_HEADER_BYTES, Boundaries, Cursor, Group, GroupCommit
from penstock.wal.group_commit import BESIDE_BYTES_MAX

FRAME = ENTRY_HEADER_BYTES + GROUP_HEADER_BYTES


def started(*, alignment: int = 1, group: int = 1000, entry: int = 10_000, capacity: int = 0) -> GroupCommit:
    commit = GroupCommit(
        alignment=alignment, group_bytes_max=group, entry_bytes_max=entry, capacity_bytes=capacity
    )
    commit.start(0, 0)
    return commit


def test_nothing_is_appended_before_start() -> None:
    with pytest.raises(InvalidRequestError, match="recover"):
        GroupCommit().append([b"x"])


@pytest.mark.parametrize("data", [[], [b""], [bytes(10_001)], [bytes(6000), memoryview(bytes(6000))]])
def test_an_empty_or_oversized_entry_is_refused_and_changes_nothing(data: list[bytes]) -> None:
    commit = started()
    with pytest.raises(InvalidRequestError):
        commit.append(data)
    assert commit.idle


def test_a_group_closes_when_the_next_entry_would_not_fit() -> None:
    commit = started(group=FRAME + 100 + ENTRY_HEADER_BYTES + 100)
    for _ in range(3):
        commit.append([bytes(100)])
    full = commit.take(partial=False)
    assert full is not None
    assert len(full.appends) == 2
    assert commit.take(partial=False) is None
    rest = commit.take()
    assert rest is not None
    assert len(rest.appends) == 1
    assert rest.sequence == full.sequence + 1
    assert rest.position == full.end_position
    assert commit.take() is None


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(1, 900), st.integers(LARGE_BYTES, 2 * LARGE_BYTES)), st.integers(0, 63)
        ),
        min_size=1,
        max_size=40,
    )
)
def test_a_large_entry_starts_where_the_filler_puts_it(entries: list[tuple[int, int]]) -> None:
    """The payload's position gets the remainder modulo 64 that is asked for; a gap has room for a filler's header."""
    wanted = 0

    def filler_bytes(position: int, data: Sequence[Buffer]) -> int:
        return (wanted - position) % 64

    commit = GroupCommit(
        alignment=64,
        group_bytes_max=2 * LARGE_BYTES,
        entry_bytes_max=2 * LARGE_BYTES,
        filler_bytes=filler_bytes,
    )
    commit.start(0, 0)
    for size, remainder in entries:
        wanted = remainder
        append = commit.append([bytes(size)])
        assert size < LARGE_BYTES or (append.position + ENTRY_HEADER_BYTES) % 64 == remainder
        assert append.next_position == append.position + ENTRY_HEADER_BYTES + size
    assert commit.statistics().pending_bytes == sum(size for size, _ in entries)
    while (group := commit.take()) is not None:
        end = group.position + GROUP_HEADER_BYTES
        for append in group.appends:
            assert append.position == end or append.position - end >= ENTRY_HEADER_BYTES
            end = append.next_position
        assert group.length == end - group.position
        commit.finish(group)
    assert commit.statistics().appended_payload_bytes == sum(size for size, _ in entries)


def test_groups_finished_out_of_order_complete_in_order() -> None:
    commit = started(group=FRAME + 10)
    order: list[int] = []
    appends = [commit.append([bytes(10)]) for _ in range(3)]
    for append in appends:
        append.set_callback(lambda append: order.append(append.position))
    groups = [commit.take() for _ in range(3)]
    first, second, third = groups
    assert first is not None
    assert second is not None
    assert third is not None
    commit.finish(third)
    commit.finish(second)
    assert order == []
    assert commit.in_flight == 3
    commit.finish(first)
    assert order == [append.position for append in appends]
    assert commit.confirmed_position == third.end_position
    assert commit.idle


def test_a_callback_may_append() -> None:
    commit = started()
    again: list[WalAppend] = []
    commit.append([b"x"]).set_callback(lambda _: again.append(commit.append([b"y"])))
    group = commit.take()
    assert group is not None
    commit.finish(group)
    assert not again[0].done
    assert not commit.idle


def test_a_raising_callback_keeps_no_other_append_waiting() -> None:
    commit = started()

    def bug(append: WalAppend) -> None:
        raise ZeroDivisionError

    first, second = commit.append([b"x"]), commit.append([b"y"])
    first.set_callback(bug)
    group = commit.take()
    assert group is not None
    with pytest.raises(ZeroDivisionError):
        commit.finish(group)
    assert second.done
    assert commit.idle


def test_a_group_goes_beside_others_as_long_as_they_are_few_and_near_and_it_is_worth_a_write() -> None:
    commit = started(group=4096)
    assert commit.take_beside(3, 2**20) is None
    for _ in range(4):
        commit.append([b"x"])
    four = commit.take_beside(3, 2**20)
    assert four is not None
    commit.append([b"x"])
    assert commit.take_beside(3, 2**20) is None, "less than half of what is in flight"
    commit.append([b"x"])
    assert commit.take_beside(1, 2**20) is None, "as many as may be"
    assert commit.take_beside(3, 100) is None, "too far from the oldest"
    assert commit.take_beside(3, 2**20) is not None
    commit.append([b"x"])
    commit.append([bytes(4000)])
    assert commit.take_beside(3, 2**20) is not None, "a full one goes whatever is in flight"
    assert commit.take_beside(3, 2**20) is None
    commit.finish(four)
    assert commit.take_beside(3, 2**20) is None, "the last one is less than half of what is left"


def test_past_some_bytes_in_flight_only_full_groups_go_beside_others_unless_a_single_entry_is_in_flight() -> (
    None
):
    size = BESIDE_BYTES_MAX
    large = [bytes(size)]
    commit = started(group=8 * size, entry=size)
    commit.append(large)
    lone = commit.take_beside(4, 2**30)
    assert lone is not None
    commit.append(large)
    commit.append(large)
    pair = commit.take_beside(4, 2**30)
    assert pair is not None, "the second large request of two doesn't wait for the first"
    for _ in range(7):
        commit.append(large)
    assert commit.take_beside(4, 2**30) is None, "it shares the next write with what comes meanwhile"
    commit.append(large)
    full = commit.take_beside(4, 2**30)
    assert full is not None
    assert len(full.entries) == 7
    for group in (lone, pair, full):
        commit.finish(group)
    rest = commit.take_beside(4, 2**30)
    assert rest is not None
    assert len(rest.entries) == 1


def test_failure_answers_everybody_in_order_and_refuses_the_rest() -> None:
    commit = started(group=FRAME + 10)
    order: list[int] = []
    appends = [commit.append([bytes(10)]) for _ in range(4)]
    for append in appends:
        append.set_callback(lambda append: order.append(append.position))
    commit.take()
    late = commit.take()
    assert late is not None
    commit.finish(late)  # durable, but behind one that isn't: it must not be acknowledged
    commit.fail(UnavailableError("disk gone: errno=5"))
    assert order == [append.position for append in appends]
    assert all(isinstance(append.error, UnavailableError) for append in appends)
    assert len({id(append.error) for append in appends}) == 4
    assert commit.state == "failed"
    with pytest.raises(ClosedError, match="errno=5"):
        commit.append([b"x"])
    with pytest.raises(ClosedError, match="errno=5"):
        commit.check_open()


def test_a_failed_group_fails_all_later_ones_once_those_before_it_have_ended() -> None:
    commit = started(group=FRAME + 10)
    order: list[int] = []
    appends = [commit.append([bytes(10)]) for _ in range(4)]
    for append in appends:
        append.set_callback(lambda append: order.append(append.position))
    first, second, third = commit.take(), commit.take(), commit.take()
    assert first is not None
    assert second is not None
    assert third is not None
    commit.finish(third)
    commit.fail(UnavailableError("disk gone: errno=5"), group=second)
    assert commit.state == "failed"
    assert order == []
    with pytest.raises(ClosedError, match="errno=5"):
        commit.append([b"x"])
    commit.finish(first)
    assert order == [append.position for append in appends]
    assert [append.error is None for append in appends] == [True, False, False, False]
    assert commit.confirmed_position == first.end_position
    assert commit.idle


@given(groups=st.integers(1, 12), rng=st.randoms(use_true_random=False))
def test_in_whatever_order_groups_end_what_is_acknowledged_is_a_whole_beginning(
    groups: int, rng: random.Random
) -> None:
    commit = started(group=FRAME + 10)
    order: list[WalAppend] = []
    appends = [commit.append([bytes(10)]) for _ in range(groups)]
    for append in appends:
        append.set_callback(order.append)
    flying: list[tuple[int, Group]] = []
    ended: dict[int, bool] = {}
    taken = 0
    while taken < groups or flying:
        if taken < groups and (not flying or rng.random() < 0.5):
            group = commit.take()
            if group is None:  # answered before it was taken
                break
            flying.append((taken, group))
            taken += 1
            continue
        number, group = flying.pop(rng.randrange(len(flying)))
        ended[number] = rng.random() < 0.85
        if not ended[number]:
            commit.fail(UnavailableError("disk gone"), group=group)
        elif not group.done:
            commit.finish(group)
        acknowledged = sum(append.done and append.error is None for append in appends)
        assert all(ended.get(number) for number in range(acknowledged))
    assert order == appends
    failed = [number for number, is_durable in ended.items() if not is_durable]
    first_failed = min(failed, default=groups)
    assert [append.error is None for append in appends] == [number < first_failed for number in range(groups)]


def test_a_fence_is_told_as_a_fence() -> None:
    commit = started()
    commit.fail(FencedError("a newer owner took over: epoch=2"), state="fenced")
    assert commit.state == "fenced"
    with pytest.raises(FencedError, match="epoch=2"):
        commit.append([b"x"])


def test_close_refuses_appends_and_lets_pending_ones_finish() -> None:
    commit = started()
    append = commit.append([b"x"])
    commit.close()
    with pytest.raises(ClosedError):
        commit.append([b"y"])
    group = commit.take()
    assert group is not None
    commit.finish(group)
    assert append.error is None
    assert append.done
    assert commit.state == "closed"


def test_a_pause_refuses_until_it_ends_and_never_reopens_a_closed_log() -> None:
    commit = started()
    commit.pause(FullError("no space left"))
    with pytest.raises(FullError):
        commit.append([b"x"])
    commit.resume()
    commit.append([b"x"])
    commit.pause(FullError("no space left"))
    commit.close()
    commit.resume()
    with pytest.raises(ClosedError):
        commit.append([b"x"])


def test_an_entry_that_would_fit_fits_also_with_a_filler() -> None:
    commit = GroupCommit(
        alignment=4096,
        group_bytes_max=2**18,
        entry_bytes_max=2**18,
        capacity_bytes=2**20,
        filler_bytes=lambda position, data: -position % 4096,
    )
    commit.start(0, 0)
    sizes = [LARGE_BYTES, 100, 2 * LARGE_BYTES, 5000]
    while commit.would_fit(size := sizes[commit.statistics().pending_entries % 4]):
        commit.append([bytes(size)])
    assert commit.statistics().used_bytes > 2**19


def test_a_log_that_is_full_for_another_reason_would_fit_nothing() -> None:
    commit = started()
    assert commit.would_fit(1)
    commit.pause(FullError("the disk is full"))
    assert not commit.would_fit(1)
    commit.fail(UnavailableError("gone"))
    assert commit.would_fit(1), "append says why it takes nothing"


def test_a_refused_append_at_capacity_changes_nothing() -> None:
    commit = started(alignment=512, capacity=1024)
    commit.append([bytes(512 - FRAME)])
    commit.append([bytes(512 - FRAME)])
    before = commit.statistics()
    with pytest.raises(FullError, match="capacity_bytes=1024"):
        commit.append([bytes(100)])
    assert commit.statistics() == before


@given(
    sizes=st.lists(st.integers(1, 3000), max_size=60),
    alignment=st.sampled_from([1, 8, 512]),
    seed=st.integers(0, 2**32),
)
def test_groups_tile_the_log_within_capacity(sizes: list[int], alignment: int, seed: int) -> None:
    """Positions grow without overlap, groups are contiguous and aligned, and never more than the capacity is used."""
    rng = random.Random(seed)
    capacity = 16 * 512
    commit = started(alignment=alignment, group=1024, entry=3000, capacity=capacity)
    end, released, sequence = 0, 0, 0
    last_next = 0
    for size in sizes:
        fits = commit.would_fit(size)
        try:
            append = commit.append([bytes(size)])
        except FullError:
            append = None
        assert fits == (append is not None)
        if append is not None:
            assert append.next_position - append.position == size + ENTRY_HEADER_BYTES
            assert append.position >= last_next
            last_next = append.next_position
        while rng.random() < 0.5 and (group := commit.take()) is not None:
            assert (group.position, group.sequence) == (end, sequence)
            assert group.end_position % alignment == 0
            assert group.length <= 1024 or len(group.appends) == 1
            end, sequence = group.end_position, sequence + 1
            assert end - released <= capacity
            commit.finish(group)
            if rng.random() < 0.3:
                released = end
                commit.release(end, end)
    statistics = commit.statistics()
    assert statistics.confirmed_position == end
    assert statistics.used_bytes <= capacity


def test_statistics_count_entries_payload_and_medium() -> None:
    commit = started(alignment=512)
    commit.append([bytes(100)])
    group = commit.take()
    assert group is not None
    commit.finish(group)
    commit.append([bytes(7)])
    statistics = commit.statistics(last_group_us=5)
    assert statistics.appended_entries == 2
    assert statistics.appended_payload_bytes == 107
    assert (statistics.written_groups, statistics.written_bytes) == (1, 512)
    assert (statistics.pending_entries, statistics.pending_bytes) == (1, 7)
    assert statistics.used_bytes == 512 + FRAME + 7


def test_boundaries_cut_at_whole_groups_and_stay_few() -> None:
    boundaries = Boundaries(Cursor(), step_bytes=100)
    for sequence in range(1, 101):
        boundaries.add(sequence * 10 - 3, Cursor(sequence * 10, sequence, sequence))
    assert boundaries.trim(96) == Cursor()
    assert boundaries.trim(97) == Cursor(100, 10, 10)
    assert boundaries.trim(250) == Cursor(200, 20, 20)
    assert boundaries.trim(100) == Cursor(200, 20, 20)
    assert boundaries.trim(997) == Cursor(1000, 100, 100)
    assert boundaries.start == Cursor(1000, 100, 100)


# -- runs of appends -------------------------------------------------------------------------------------------

Told = list[tuple[str, list[int], Exception | None]]


def told_by(told: Told, name: str) -> Callable[[Sequence[WalAppend], Exception | None], None]:
    return lambda appends, error: told.append((name, [append.position for append in appends], error))


@given(st.lists(st.sampled_from("abs"), min_size=1, max_size=12), st.booleans())
def test_appends_with_one_run_callback_are_told_together_and_all_in_the_order_of_positions(
    kinds: list[str], fails: bool
) -> None:
    commit, told = started(), Told()
    callbacks = {name: told_by(told, name) for name in "ab"}
    expected: list[tuple[str, list[int]]] = []
    for kind in kinds:
        append = commit.append([b"x"])
        if kind == "s":
            append.set_callback(lambda append: told.append(("s", [append.position], append.error)))
        else:
            append.set_run_callback(callbacks[kind])
        if kind != "s" and expected and expected[-1][0] == kind:
            expected[-1][1].append(append.position)
        else:
            expected.append((kind, [append.position]))
    group = commit.take()
    assert group is not None
    if fails:
        commit.fail(UnavailableError("disk gone"))
    else:
        commit.finish(group)
    assert [(name, positions) for name, positions, _ in told] == expected
    assert all(isinstance(error, UnavailableError) if fails else error is None for _, _, error in told)


def test_a_run_callback_that_raises_keeps_no_other_append_waiting() -> None:
    commit = started()

    def bug(appends: Sequence[WalAppend], error: Exception | None) -> None:
        raise ZeroDivisionError

    commit.append([b"x"]).set_run_callback(bug)
    second = commit.append([b"y"])
    group = commit.take()
    assert group is not None
    with pytest.raises(ZeroDivisionError):
        commit.finish(group)
    assert second.done
    assert commit.idle


def test_a_wal_that_completes_appends_one_by_one_tells_runs_of_one() -> None:
    told = Told()
    late, early = WalAppend(0, 10), WalAppend(10, 20)
    early.set_run_callback(told_by(told, "a"))
    late.complete()
    late.set_run_callback(told_by(told, "a"))  # it is done already: at once
    early.complete()
    assert told == [("a", [0], None), ("a", [10], None)]


def test_an_entry_goes_into_the_open_group_up_to_its_bound_and_not_while_appends_are_refused() -> None:
    """What most appends look at says the same as all that it stands for."""
    commit = started(group=FRAME + 100 + ENTRY_HEADER_BYTES + 100, capacity=FRAME * 3 + 400)
    commit.append([bytes(100)])
    commit.append([bytes(100)])  # fills it exactly
    assert commit.take(partial=False) is None
    commit.append([bytes(1)])
    assert (commit.take(partial=False) is not None, commit.open_entries) == (True, 1)
    commit.pause(FullError("no space"))
    with pytest.raises(FullError, match="no space"):
        commit.append([bytes(1)])
    commit.resume()
    commit.append([bytes(1)])
    assert commit.open_entries == 2
    with suppress(FullError):
        while True:
            commit.append([bytes(1)])
    with pytest.raises(FullError, match="trim it"):
        commit.append([bytes(1)])
    commit.close()
    with pytest.raises(ClosedError):
        commit.append([bytes(1)])


@pytest.mark.parametrize("error", [None, UnavailableError("lost")])
def test_payload_is_let_go_when_it_is_answered(error: UnavailableError | None) -> None:
    """Also that of the newest group, as long as nothing else is appended: its memory is the broker's again."""

    class Payload(bytearray):
        pass

    commit = started()
    payload = Payload(b"x")
    seen = weakref.ref(payload)
    commit.append([payload])
    del payload
    group = commit.take()
    assert group is not None
    if error is None:
        commit.finish(group)
    else:
        commit.fail(error)
    assert seen() is None
