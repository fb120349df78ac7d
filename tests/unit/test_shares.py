"""The rules of ``penstock.shares``, one by one."""

from __future__ import annotations

import pytest

from penstock.shares import GRACE_S, GRACE_SHORT_S, PACE_MIN, Member, Shares, address_of

KIB = 1024
MIB = 1024 * KIB


def shares(limit: int = 9 * MIB, *, passes_elder: bool = False) -> Shares:
    return Shares(limit, credit=64 * KIB, credit_max=MIB, passes_elder=passes_elder)


def crowd(of: Shares, count: int, address: str = "a", now: float = 0.0) -> list[Member]:
    return [of.join(address, None, now) for _ in range(count)]


def fill(of: Shares, member: Member, piece: int) -> int:
    """Take piece after piece for as long as it fits; the bytes held then."""
    while of.fits(member, piece):
        of.take(member, piece, 0.0)
        assert member.held < 100 * of.limit
    return member.held


def test_one_who_is_alone_may_take_everything_and_more_than_the_limit() -> None:
    of = shares()
    (member,) = crowd(of, 1)
    assert of.fits(member, 100 * MIB)
    of.take(member, 8 * MIB, 0.0)
    assert of.fits(member, 100 * MIB)


def test_a_member_holds_no_more_than_it_leaves_free_once_others_hold_something() -> None:
    of = shares()
    first, second = crowd(of, 2)
    of.take(second, 1, 0.0)
    first.credit = 9 * MIB
    assert fill(of, first, 64 * KIB) == pytest.approx(4.5 * MIB, abs=64 * KIB)


def test_newcomers_together_hold_at_most_half_of_the_limit_and_who_has_earned_more_holds_more() -> None:
    of = shares(90 * MIB)
    many = crowd(of, 100)
    for _ in range(100):
        for member in many[:-1]:
            if of.fits(member, 16 * KIB):
                of.take(member, 16 * KIB, 0.0)
    assert of.used <= of.limit // 2
    assert max(member.held for member in many) < 512 * KIB
    trusted = many[-1]
    assert not of.fits(trusted, 16 * KIB), "it begins when others of its address have got on"
    of.earn(trusted, 8 * MIB)
    assert of.fits(trusted, MIB - 64 * KIB), "it has shown that it moves what it holds"


def test_what_members_begin_with_is_not_earned() -> None:
    of = shares()
    for member in crowd(of, 1000):
        if of.fits(member, 16 * KIB):
            of.take(member, 16 * KIB, 0.0)
    assert of.used <= of.limit // 4, "who has begun finds room to go on"
    (trusted,) = crowd(of, 1)
    of.earn(trusted, 8 * 64 * KIB)
    assert of.fits(trusted, 64 * KIB)


def test_a_newcomer_begins_although_newcomers_of_another_address_hold_what_they_may() -> None:
    of = shares()
    (other,) = crowd(of, 1, "b")
    of.take(other, 1, 0.0)
    for member in crowd(of, 1000):
        fill(of, member, 16 * KIB)
    (newcomer,) = crowd(of, 1, "b")
    assert of.fits(newcomer, 16 * KIB)


def test_many_addresses_leave_a_quarter_of_what_may_be_held_unearned_to_those_who_need_little() -> None:
    of = shares(64 * MIB)
    (holder,) = crowd(of, 1, "holder")
    of.take(holder, 1, 0.0)
    for number in range(200):
        (member,) = crowd(of, 1, f"a{number}")
        while of.fits(member, 64 * KIB, 8 * MIB):
            of.take(member, 64 * KIB, 0.0)
    assert of.limit // 2 - of.used == pytest.approx(of.limit // 8, abs=64 * KIB)
    (newcomer,) = crowd(of, 1, "new")
    assert not of.fits(newcomer, 64 * KIB, MIB), "it needs more than a sixteenth of what is left"
    assert of.fits(newcomer, 64 * KIB, 36 * KIB)
    assert of.fits(newcomer, 100 * KIB)
    of.earn(newcomer, 8 * MIB)
    assert of.fits(newcomer, MIB - 64 * KIB, 8 * MIB), "what it has earned is its own"


def test_of_an_address_who_has_begun_is_served_first_and_of_these_who_needs_least_until_it_is_done() -> None:
    of = shares()
    holder, beginner, large, small, trusted = crowd(of, 5)
    of.earn(trusted, 8 * MIB)
    of.take(holder, 20 * MIB, 0.0)
    for member in (large, small):
        of.take(member, 16 * KIB, 0.0)
    of.wait(beginner, 16 * KIB, MIB)
    of.wait(large, 16 * KIB, MIB)
    of.wait(small, 16 * KIB, 100 * KIB)
    of.wait(trusted, 200 * KIB)
    of.give(holder, 20 * MIB)
    assert of.serve(0.0) == [trusted, small, large, beginner]


def test_who_needs_much_less_than_those_who_have_begun_begins_before_they_go_on() -> None:
    of = shares()
    holder, newcomer, large = crowd(of, 3)
    of.take(holder, 20 * MIB, 0.0)
    of.take(large, 16 * KIB, 0.0)
    of.wait(large, 16 * KIB, MIB)
    of.wait(newcomer, 16 * KIB, 84 * KIB)
    of.give(holder, 20 * MIB)
    assert of.serve(0.0) == [newcomer, large]


def test_in_turn_who_has_begun_may_hold_what_its_address_may() -> None:
    of = shares(90 * MIB)
    first, second = crowd(of, 2)
    of.take(second, 30 * MIB, 0.0)
    of.take(first, MIB, 0.0)
    assert not of.fits(first, 2 * MIB), "an eighth of what is left, by itself"
    of.wait(first, 2 * MIB)
    assert of.serve(0.0) == [first]


@pytest.mark.parametrize(("addresses", "part"), [(1, 8 / 9), (2, 16 / 17), (10, 80 / 81)])
def test_addresses_leave_room_for_a_newcomer(addresses: int, part: float) -> None:
    of = shares()
    members = [member for number in range(addresses) for member in crowd(of, 200, f"a{number}")]
    for member in members:
        of.earn(member, 8 * MIB)
    for _ in range(400):
        for member in members:
            if of.fits(member, 4 * KIB):
                of.take(member, 4 * KIB, 0.0)
    assert of.used == pytest.approx(part * of.limit, rel=0.03)
    held = [of.held_by(f"a{number}") for number in range(addresses)]
    assert max(held) - min(held) <= 4 * KIB * 200
    (newcomer,) = crowd(of, 1, "new")
    assert of.fits(newcomer, 4 * KIB)


def test_addresses_are_served_in_turn_however_many_wait_in_one() -> None:
    of = shares()
    holder, *many = crowd(of, 6)
    (other,) = crowd(of, 1, "b")
    of.take(holder, 9 * MIB, 0.0)
    for member in (*many, other):
        of.wait(member, 100 * KIB)
    assert of.serve(0.0) == []
    of.give(holder, 9 * MIB)
    assert of.serve(0.0) == [many[0], other, *many[1:]]
    assert of.waiting == 0


def test_one_after_the_other_passes_when_nobody_fits() -> None:
    of = shares(passes_elder=True)
    first, second, third = crowd(of, 3)
    for member in (first, second, third):
        of.take(member, 3 * MIB, 0.0)
        of.wait(member, 2 * MIB)
    assert of.serve(0.0) == [first]
    assert of.fits(first, 50 * MIB), "one goes on to its end, whatever the limit"
    assert of.serve(0.0) == []
    of.give(first, first.held)
    assert of.serve(0.0) == [second], "then the next"


def test_who_got_on_meanwhile_is_no_later_for_it() -> None:
    of = shares(90 * MIB, passes_elder=True)
    holder, early, late = crowd(of, 3)
    of.take(holder, 60 * MIB, 0.0)
    for member in (early, late):
        of.take(member, 5 * MIB, 0.0)
        of.wait(member, 25 * MIB)
    of.withdraw(early)
    of.take(early, MIB, 0.0)
    of.wait(early, 25 * MIB)
    assert of.serve(0.0) == [early], "it waits again, but for what it waited for before"


def test_others_leave_the_elder_what_it_waits_for() -> None:
    of = shares()
    holder, elder = crowd(of, 2)
    (small,) = crowd(of, 1, "b")
    of.take(holder, 5 * MIB, 0.0)
    of.wait(elder, 4 * MIB + 1)
    assert of.serve(0.0) == []
    assert not of.fits(small, 10), "it came later"
    of.give(holder, MIB)
    assert of.serve(0.0) == [elder]


def test_an_elder_that_stops_is_one_no_longer() -> None:
    of = shares(passes_elder=True)
    first, second = crowd(of, 2)
    for member in (first, second):
        of.take(member, 5 * MIB, 0.0)
        of.wait(member, MIB)
    assert of.serve(0.0) == [first]
    first.moved(MIB, 0.5)
    assert of.serve(0.5 + GRACE_SHORT_S - 0.01) == []
    assert of.serve(0.5 + GRACE_SHORT_S) == [second]


def test_who_gives_up_its_wait_is_passed_over() -> None:
    of = shares()
    holder, first, second = crowd(of, 3)
    of.take(holder, 9 * MIB, 0.0)
    of.wait(first, MIB)
    of.wait(second, MIB)
    of.withdraw(first)
    of.withdraw(first)
    of.give(holder, 9 * MIB)
    assert of.serve(0.0) == [second]


def test_who_moves_nothing_for_a_moment_is_stuck() -> None:
    of = shares()
    (member,) = crowd(of, 1)
    of.take(member, 100 * KIB, 0.0)
    assert not member.is_stuck(GRACE_S - 0.01), "everybody has a moment"
    assert member.is_stuck(GRACE_S)
    member.moved(50 * KIB, GRACE_S)
    assert not member.is_stuck(GRACE_S + 0.5)


def test_who_holds_what_it_has_not_earned_has_less_time_while_others_of_its_address_wait() -> None:
    of = shares()
    newcomer, trusted, waiter = crowd(of, 3)
    (other,) = crowd(of, 1, "b")
    of.earn(trusted, 8 * MIB)
    for member in (newcomer, trusted, other):
        of.take(member, 100 * KIB, 0.0)
    assert of.victims(GRACE_SHORT_S) == [], "nobody waits"
    of.wait(waiter, 100 * MIB)
    assert of.victims(GRACE_SHORT_S) == [newcomer]
    assert set(of.victims(GRACE_S)) == {newcomer, trusted, other}


def test_a_byte_now_and_then_is_no_movement() -> None:
    of = shares()
    (member,) = crowd(of, 1)
    of.take(member, 100 * KIB, 0.0)
    for tenth in range(1, 30):
        member.moved(1, tenth / 10)
        assert member.is_stuck(tenth / 10) == (tenth / 10 >= GRACE_S)


def test_a_burst_is_no_excuse_for_what_comes_after_it() -> None:
    of = shares()
    (member,) = crowd(of, 1)
    of.take(member, MIB, 0.0)
    member.moved(MIB, 0.1)
    for tenth in range(2, 30):
        member.moved(1, tenth / 10)
    assert member.is_stuck(3.0)


def test_who_holds_much_has_to_move_much() -> None:
    of = shares(200 * MIB)
    little, much = crowd(of, 2)
    of.take(little, 100 * KIB, 0.0)
    of.take(much, 64 * MIB, 0.0)
    for tenth in range(1, 30):
        for member in (little, much):
            member.moved(PACE_MIN // 5, tenth / 10)
    assert not little.is_stuck(2.95)
    assert much.is_stuck(2.95)


def test_who_waits_for_us_or_holds_nothing_is_not_stuck() -> None:
    of = shares()
    busy, waiting, empty = crowd(of, 3)
    for member in (busy, waiting):
        of.take(member, 4 * MIB, 0.0)
    busy.busy = True
    of.wait(waiting, 4 * MIB)
    assert not any(member.is_stuck(100.0) for member in (busy, waiting, empty))
    assert of.victims(100.0) == []


def test_the_address_that_holds_most_loses_first_and_in_it_who_holds_most() -> None:
    of = shares()
    a = crowd(of, 3, "a")
    (b,) = crowd(of, 1, "b")
    for member, size in zip((*a, b), (30, 50, 40, 100), strict=True):
        of.take(member, size * KIB, 0.0)
    assert of.victims(2.0) == [a[1], a[2], a[0], b]
    assert of.victims(2.0, spare=a[1]) == [a[2], a[0], b]


def test_credit_grows_with_what_was_moved_up_to_its_maximum() -> None:
    of = shares()
    (member,) = crowd(of, 1)
    assert of.allowance(member) == 64 * KIB
    of.earn(member, 800 * KIB)
    assert of.allowance(member) == 164 * KIB
    of.earn(member, 100 * MIB)
    assert of.allowance(member) == MIB
    (other,) = crowd(of, 1)
    of.take(other, 5 * MIB, 0.0)
    assert of.allowance(member) == 4 * MIB // 8


def test_who_leaves_takes_everything_along() -> None:
    of = shares()
    first, second = crowd(of, 2)
    of.take(first, 9 * MIB, 0.0)
    of.wait(second, MIB)
    of.leave(first)
    of.leave(second)
    assert (of.used, of.waiting, of.holders, of.members_of("a"), of.held_by("a")) == (0, 0, (), 0, 0)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
    ],
)
def test_an_ipv6_network_counts_as_one_address(host: str, address: str) -> None:
    assert address_of(host) == address


@pytest.mark.parametrize("how", ["gives all back", "earns what it wants", "takes some"])
def test_who_changes_while_it_waits_keeps_its_place(how: str) -> None:
    of = shares()
    other, member = crowd(of, 2)
    of.take(other, 8 * MIB, 0.0)
    if how == "gives all back":
        of.take(member, 32 * KIB, 0.0)
    of.wait(member, 512 * KIB)
    if how == "gives all back":
        of.give(member, member.held)
    elif how == "earns what it wants":
        of.earn(member, 8 * MIB)
    else:
        of.take(member, 1, 0.0)
    of.give(other, 8 * MIB)
    assert (of.serve(0.0), of.waiting) == ([member], 0)
