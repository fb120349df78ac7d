"""The rules of ``penstock.time_shares``, in a simulated loop that is never idle while somebody wants it."""

from __future__ import annotations

import pytest

from penstock.time_shares import (
    BUSY_PART,
    DEBT_S_MAX,
    NAMES,
    QUIET_S,
    SPARE_PART,
    WINDOW_S,
    TimeMember,
    TimeShares,
)

SLICE_S = 0.0005


class Loop:
    """Runs members that always want more (in turn), and others that want a little now and then (at once)."""

    def __init__(self) -> None:
        self.shares = TimeShares()
        self.now = 0.0
        self.speed = 1.0
        self.used: dict[TimeMember, float] = {}
        #: The longest that one waited, of those that want little.
        self.waited_s = 0.0

    def join(self, address: str) -> TimeMember:
        member = self.shares.join(address)
        self.used[member] = 0.0
        return member

    def compute(self, member: TimeMember, seconds: float) -> None:
        self.now += seconds / self.speed
        self.used[member] += seconds
        self.shares.used(member, seconds, seconds / self.speed, self.now)

    def run(
        self,
        seconds: float,
        greedy: list[TimeMember],
        modest: list[TimeMember] | None = None,
        every: float = 0.01,
    ) -> None:
        """``modest`` need a fifth of a millisecond ``every`` so often, and ask one thing at a time."""
        end, due = self.now + seconds, self.now
        for member in self.used:
            self.used[member] = 0.0
        while self.now < end:
            if modest and self.now >= due:
                due = self.now + every
                for one in modest:
                    ready_at = self.shares.ready_at(one, self.now, is_greedy=False)
                    self.waited_s = max(self.waited_s, ready_at - self.now)
                    self.compute(one, SLICE_S / 2.5)
            times = [self.shares.ready_at(member, self.now) for member in greedy]
            now = self.now
            for member, at in zip(greedy, times, strict=True):
                if at <= now:
                    self.compute(member, SLICE_S)
            if self.now == now:  # idle until somebody is ready, or due
                self.now = max(now + SLICE_S / 5, min([*times, due, end] if modest else [*times, end]))

    def part(self, member: TimeMember, seconds: float) -> float:
        return self.used[member] / seconds


def test_a_lone_client_uses_all_of_the_loop() -> None:
    loop = Loop()
    one = loop.join("a")
    loop.run(5.0, [one])
    assert loop.part(one, 5.0) == pytest.approx(1.0, abs=0.01)


def test_equals_use_all_of_the_loop_together() -> None:
    loop = Loop()
    many = [loop.join(address) for address in ("a", "a", "b", "c")]
    loop.run(5.0, many)
    assert sum(loop.used.values()) == pytest.approx(5.0, abs=0.05)


@pytest.mark.parametrize("addresses", ["aaaa", "abcd"])
def test_equals_that_use_about_what_would_be_divided_arent_limited(addresses: str) -> None:
    """Whichever of them is below its part in a window; and what they did a moment ago doesn't count either."""
    loop = Loop()
    many = [loop.join(address) for address in addresses]
    for window in range(40):
        load = 0.9 if window % 8 == 0 else 1.15  # of what would be divided
        for at, member in 20 * list(enumerate(many)):
            differs = (0.8, 1.0, 1.1, 1.1)[(at + window) % 4]
            loop.compute(member, BUSY_PART * WINDOW_S * load * differs / len(many) / 20)
        loop.now = (window + 1) * WINDOW_S + SLICE_S
        assert not any(member.may_wait for member in many), f"window={window}"


@pytest.mark.parametrize("address", ["a", "b"])
def test_beside_a_modest_client_the_greedy_leave_a_part_of_the_loop_idle(address: str) -> None:
    loop = Loop()
    greedy = [loop.join("a") for _ in range(8)]
    modest = loop.join(address)
    loop.run(1.0, greedy, [modest])
    loop.waited_s = 0.0
    loop.run(5.0, greedy, [modest])
    assert sum(loop.used.values()) / 5.0 < BUSY_PART + 0.1
    assert sum(loop.used.values()) / 5.0 > BUSY_PART - 0.2
    assert loop.waited_s <= 0, "the modest one never waits"


def test_who_is_limited_gets_its_part_evenly() -> None:
    loop = Loop()
    greedy = [loop.join("a") for _ in range(4)]
    modest = loop.join("a")
    loop.run(1.0, greedy, [modest])
    loop.run(5.0, greedy, [modest])
    parts = [loop.part(member, 5.0) for member in greedy]
    assert min(parts) > 0.8 * max(parts)


def test_parts_are_divided_between_addresses_first() -> None:
    """A hundred connections of one address get no more than one of another."""
    loop = Loop()
    crowd = [loop.join("a") for _ in range(100)]
    lone, modest = loop.join("b"), loop.join("c")
    loop.run(1.0, [*crowd, lone], [modest])
    loop.run(2.0, [*crowd, lone], [modest])
    assert loop.part(lone, 2.0) > 0.7 * sum(loop.part(member, 2.0) for member in crowd)


def test_what_is_used_beyond_a_part_counts_in_the_next_window() -> None:
    """One long piece of work doesn't get more than many short ones."""
    loop = Loop()
    long, short, modest = loop.join("a"), loop.join("a"), loop.join("a")
    end, used = 10.0, [0.0, 0.0]
    while loop.now < end:
        loop.compute(modest, SLICE_S / 5)
        for at, (member, seconds) in enumerate(((long, 0.06), (short, SLICE_S))):
            if loop.shares.ready_at(member, loop.now) <= loop.now:
                loop.compute(member, seconds)
                used[at] += seconds * (loop.now > 2.0)
        loop.now += SLICE_S / 5
    assert used[0] < 2.0 * used[1]


def test_nobody_waits_long_for_one_piece_of_work_however_slowly_the_loop_gets_on() -> None:
    """Where others use the processors, a part is a fraction of a millisecond, and a piece of work some hundreds."""
    loop = Loop()
    loop.speed = 0.02
    greedy, modest = loop.join("a"), loop.join("a")

    def go_on() -> bool:
        loop.now += WINDOW_S / 10
        loop.compute(modest, SLICE_S / 50)
        return loop.shares.ready_at(greedy, loop.now) <= loop.now

    pieces = 0
    while pieces < 100 or not greedy.is_limited:
        if go_on():
            loop.compute(greedy, 2 * SLICE_S)
            pieces += 1
    loop.speed = 1.0
    loop.compute(greedy, 0.3)
    loop.speed = 0.02
    since = loop.now
    while not go_on():
        assert loop.now - since < 2 * DEBT_S_MAX


def test_limits_end_when_nobody_profits_by_them() -> None:
    loop = Loop()
    greedy, modest = loop.join("a"), loop.join("a")
    loop.run(2.0, [greedy], [modest])
    assert loop.part(greedy, 2.0) < BUSY_PART + 0.15
    loop.run(QUIET_S + 2 * WINDOW_S, [greedy])
    loop.run(2.0, [greedy])
    assert loop.part(greedy, 2.0) == pytest.approx(1.0, abs=0.01)


def test_a_loop_that_shares_its_processor_divides_what_it_gets() -> None:
    """It's busy all the time with a fifth of a processor: the greedy are limited to a part of that."""
    loop = Loop()
    loop.speed = 0.2
    greedy = [loop.join("a") for _ in range(3)]
    modest = loop.join("a")
    loop.run(2.0, greedy, [modest], every=0.05)
    loop.run(5.0, greedy, [modest], every=0.05)
    assert sum(loop.used.values()) / 5.0 < (BUSY_PART + 0.15) * loop.speed


def test_a_client_that_pauses_is_served_at_once_when_it_comes_again() -> None:
    loop = Loop()
    greedy, modest = loop.join("a"), loop.join("b")
    loop.run(1.0, [greedy], [modest], every=0.3)
    loop.waited_s = 0.0
    loop.run(5.0, [greedy], [modest], every=0.3)
    assert loop.waited_s <= 0
    assert loop.part(greedy, 5.0) < BUSY_PART + 0.15


def test_a_loop_that_is_far_from_busy_is_told_the_time_that_passed_and_another_processor_time() -> None:
    """Readings of the processor's clock are system calls, and parts are made of busy windows only."""
    loop = Loop()

    def is_measured() -> bool:
        return loop.shares.is_measured

    a = loop.join("a")
    part = WINDOW_S * BUSY_PART / 2
    loop.compute(a, part * 0.9)
    assert not is_measured()
    loop.compute(a, part * 0.2)
    assert is_measured(), "from here on the window may become a busy one"
    loop.now += WINDOW_S
    loop.compute(a, SLICE_S)
    assert is_measured(), "most likely, this one too"
    loop.now += WINDOW_S
    loop.compute(a, SLICE_S)
    assert not is_measured()
    modest = loop.join("modest")
    loop.run(1.0, [a], [modest])
    assert a.is_limited
    loop.now += WINDOW_S
    loop.compute(modest, SLICE_S)
    loop.now += WINDOW_S
    loop.compute(modest, SLICE_S)
    assert is_measured() == a.is_limited, "as long as anybody is limited"


def test_nothing_is_left_of_those_who_are_gone() -> None:
    loop = Loop()
    for number in range(1000):
        member = loop.join(f"a{number}")
        loop.compute(member, SLICE_S)
        loop.shares.leave(member)
    loop.run(1.0, [loop.join("z")])
    assert len(loop.shares._addresses) == 1


def test_who_comes_again_while_work_of_a_former_connection_ends_is_at_the_same_address() -> None:
    """What ended late took the address of those who had come since away: each newcomer was one of its own."""
    loop = Loop()
    gone, other = loop.join("a"), loop.join("b")
    loop.compute(gone, SLICE_S)
    loop.shares.leave(gone)
    for _ in range(3):
        loop.now += WINDOW_S
        loop.compute(other, SLICE_S)
    first = loop.join("a")
    loop.compute(gone, SLICE_S)
    for _ in range(3):
        loop.now += WINDOW_S
        loop.compute(other, SLICE_S)
    assert loop.join("a").among is first.among


def test_a_crowd_that_asks_for_one_kind_of_work_doesnt_push_aside_who_asks_for_another() -> None:
    """Of the same address, though it uses several times what a connection of the crowd gets."""
    loop = Loop()
    crowd = [loop.join("a") for _ in range(40)]
    other = loop.join("a")
    other.kind = 1
    loop.run(1.0, crowd, [other], every=0.002)
    loop.waited_s = 0.0
    loop.run(2.0, crowd, [other], every=0.002)
    assert loop.waited_s <= 0
    assert not other.is_limited
    assert loop.part(other, 2.0) > 4 * BUSY_PART / 41
    assert sum(loop.used.values()) / 2.0 < BUSY_PART + 0.1


def test_a_crowd_of_one_name_doesnt_push_aside_another_that_asks_for_the_same_kind_of_work() -> None:
    """Of the same address: hundreds of connections of one program, beside another program's."""
    loop = Loop()
    crowd = [loop.join("a") for _ in range(100)]
    other = loop.join("a")
    other.set_name("other")
    loop.run(1.0, crowd, [other], every=0.002)
    loop.waited_s = 0.0
    loop.run(2.0, crowd, [other], every=0.002)
    assert loop.waited_s <= 0
    assert not other.is_limited
    assert loop.part(other, 2.0) > 10 * BUSY_PART / 101


def test_who_makes_up_names_takes_no_more_from_those_who_ask_for_another_kind_of_work() -> None:
    loop = Loop()
    crowd = [loop.join("a") for _ in range(100)]
    for number, one in enumerate(crowd):
        one.set_name(f"made-up-{number}")
    other = loop.join("a")
    other.kind = 1
    loop.run(1.0, crowd, [other], every=0.002)
    loop.waited_s = 0.0
    loop.run(2.0, crowd, [other], every=0.002)
    assert loop.waited_s <= 0
    assert not other.is_limited


def test_names_are_bounded_however_many_a_client_makes_up() -> None:
    loop = Loop()
    member = loop.join("a")
    for number in range(10 * NAMES):
        member.set_name(f"made-up-{number}")
        loop.compute(member, WINDOW_S)
    assert len(member.among.kind.names) <= NAMES


def test_a_kind_of_work_that_floods_leaves_the_others_their_part() -> None:
    """Two connections that flood with one kind get together what forty get that flood with another."""
    loop = Loop()
    crowd, few = [loop.join("a") for _ in range(40)], [loop.join("a") for _ in range(2)]
    for one in few:
        one.kind = 1
    modest = loop.join("a")
    loop.run(2.0, [*crowd, *few], [modest])
    loop.run(2.0, [*crowd, *few], [modest])
    parts = [sum(loop.part(member, 2.0) for member in members) for members in (crowd, few)]
    assert parts[1] == pytest.approx(parts[0], rel=0.3)


def test_what_is_left_of_the_loop_is_for_who_asks_one_thing_at_a_time() -> None:
    """Beside a crowd that keeps requests of the same kind waiting, which leaves each a seventieth."""
    loop = Loop()
    crowd = [loop.join("a") for _ in range(40)]
    single, modest = loop.join("a"), loop.join("a")
    loop.run(1.0, crowd, [single], every=0.002)
    loop.waited_s = 0.0
    served_at_once = asked = 0
    end = loop.now + 2.0
    while loop.now < end:
        loop.run(0.002, crowd)
        loop.compute(modest, SLICE_S / 100)
        asked += 1
        if loop.shares.ready_at(single, loop.now, is_greedy=False) <= loop.now:
            served_at_once += 1
            loop.compute(single, SLICE_S / 2.5)
    assert single.is_limited
    assert served_at_once > 0.95 * asked


def test_who_asks_one_thing_at_a_time_waits_when_the_loop_has_nothing_left() -> None:
    """A crowd of such clients is no way around the limits: a part of the loop stays idle for who asks for little."""
    loop = Loop()
    crowd = [loop.join("a") for _ in range(40)]
    modest = loop.join("a")
    end = 3.0
    while loop.now < end:
        loop.compute(modest, SLICE_S / 100)
        for one in crowd:
            if loop.shares.ready_at(one, loop.now, is_greedy=False) <= loop.now:
                loop.compute(one, SLICE_S / 5)
        loop.now += SLICE_S / 5
    assert sum(loop.used.values()) / end < SPARE_PART + 0.1


def test_who_asks_one_thing_at_a_time_goes_on_as_soon_as_the_loop_has_something_left_not_at_its_pace() -> (
    None
):
    loop = Loop()
    crowd = [loop.join("a") for _ in range(40)]
    single, modest = loop.join("a"), loop.join("a")
    loop.run(1.0, [*crowd, single], [modest])
    loop.compute(single, WINDOW_S / 2)
    pace = loop.shares.ready_at(single, loop.now)
    ready = loop.shares.ready_at(single, loop.now, is_greedy=False)
    assert loop.now < ready < pace
    loop.now = ready
    assert loop.shares.ready_at(single, loop.now, is_greedy=False) <= loop.now


def test_a_connection_counts_for_the_kind_of_work_that_it_asked_for_last() -> None:
    loop = Loop()
    crowd = [loop.join("a") for _ in range(20)]
    changing, modest = loop.join("a"), loop.join("a")
    loop.run(1.0, [*crowd, changing], [modest])
    assert loop.part(changing, 1.0) < 0.1
    changing.kind = 1
    loop.run(1.0, [*crowd, changing], [modest])
    loop.run(2.0, [*crowd, changing], [modest])
    assert loop.part(changing, 2.0) > 0.2
