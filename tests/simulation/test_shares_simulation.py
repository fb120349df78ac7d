"""Shares among random peers in virtual time: whoever behaves well is served, whatever the others do.

The world receives frames as the server does: in pieces that are granted as bytes come (``LargeFrame``). Time passes
in steps. Peers announce frames of any size and send them at any rate; some stop, some send a byte now and then, and
those that were closed come again at once. A good client sends one frame of usual size after the other.
"""

from __future__ import annotations

import random

import pytest
from tests.depth import in_full, seeds

from penstock.server.large_frame import LargeFrame
from penstock.shares import GRACE_S, PACE_MIN, Member, Shares

KIB = 1024
MIB = 1024 * KIB
LIMIT = 64 * MIB
FRAME_MAX = 100 * MIB
STEP_S = 0.05
#: Of worlds in which the seed only says in which order equal peers take their steps.
#: Who lost its place is closed at this pace, and comes again then.
RETURNS_PER_STEP = 5
#: A good client waits for the grace of those that hold everything, twice for what arrived in bursts, and a step.
WAIT_MAX_S = 2 * GRACE_S + 2 * STEP_S


class Peer:
    """Sends frames of ``size`` at ``rate`` bytes a second; stops within the frame after ``stops_at`` bytes."""

    def __init__(
        self, world: World, address: str, size: int, rate: float, stops_at: int | None = None
    ) -> None:
        self.world = world
        self.address = address
        self.size = size
        self.rate = rate
        self.stops_at = stops_at
        self.frames = 0
        self.closed = 0
        self.waited_max_s = 0.0
        self.is_away = False
        self._sent = 0.0
        self.connect()

    def connect(self) -> None:
        self.member: Member = self.world.shares.join(self.address, self, self.world.now)
        self.begin()

    def begin(self) -> None:
        self.frame: LargeFrame | None = None
        self.waits_since: float | None = None
        self._sent = 0.0

    def step(self) -> None:
        """Send for one step of time."""
        if self.member.wants or self.is_away:
            return
        world, member = self.world, self.member
        self._sent += self.rate * STEP_S
        come = min(self.size, int(self._sent))
        if self.stops_at is not None:
            come = min(come, self.stops_at)
        if not come:
            return
        if self.frame is None:
            self.frame = LargeFrame(self.size, b"", at_once=self.size <= member.credit)
            self.grow(self.frame)
        frame = self.frame
        while not member.wants and frame.pos < come:
            got = min(come, frame.granted) - frame.pos
            frame.pos += got
            member.moved(got, world.now)
            if frame.is_whole:
                world.shares.give(member, member.held)
                world.shares.earn(member, self.size)
                self.frames += 1
                self.begin()
                return
            if frame.pos == frame.granted:
                self.grow(frame)

    def grow(self, frame: LargeFrame) -> None:
        upto = frame.next_grant()
        more, frame.granted = upto - frame.granted, upto
        rest = frame.size - upto
        if self.world.try_take(self.member, more, rest):
            return
        self.waits_since = self.world.now
        self.world.shares.wait(self.member, more, rest)

    def served(self) -> None:
        assert self.waits_since is not None
        self.waited_max_s = max(self.waited_max_s, self.world.now - self.waits_since)
        self.waits_since = None

    def lost(self) -> None:
        """What it held is others' now; it will be closed, and come again."""
        self.closed += 1
        self.world.shares.leave(self.member)
        self.connect()
        self.is_away = True
        self.world.leaving.append(self)


class World:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        #: When somebody looked in vain for members that are stuck.
        self.looked = -1.0
        #: Peers that lost their places.
        self.leaving: list[Peer] = []
        self.shares = Shares(LIMIT, credit=16 * KIB, credit_max=8 * MIB, passes_elder=True)
        self.peers: list[Peer] = []

    def add(self, address: str, size: int, rate: float, stops_at: int | None = None) -> Peer:
        peer = Peer(self, address, size, rate, stops_at)
        self.peers.append(peer)
        return peer

    def try_take(self, member: Member, size: int, rest: int) -> bool:
        while not self.shares.fits(member, size, rest):
            if self.looked == self.now or not self.close_one(member):
                self.looked = self.now
                return False
        self.shares.take(member, size, self.now)
        return True

    def close_one(self, spare: Member | None) -> bool:
        for member in self.shares.victims(self.now, spare=spare)[:1]:
            assert member.is_stuck(self.now)
            assert not member.busy
            assert not member.wants
            member.owner.lost()
            return True
        return False

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.now += STEP_S
            for peer in self.leaving[:RETURNS_PER_STEP]:
                peer.is_away = False
            del self.leaving[:RETURNS_PER_STEP]
            order = list(self.peers)
            self.random.shuffle(order)
            for peer in order:
                peer.step()
                self.serve()
                assert self.shares.used <= LIMIT + FRAME_MAX, "more is held than the limit and one frame"
            while self.shares.waiting and self.close_one(None):
                self.serve()
            for member in self.shares.hoarders()[:4]:
                member.owner.lost()
                self.serve()
            self.check()

    def serve(self) -> None:
        for member in self.shares.serve(self.now):
            member.owner.served()

    def check(self) -> None:
        assert self.shares.used == sum(peer.member.held for peer in self.peers)


def hostile(world: World, address: str) -> Peer:
    """Somebody who announces anything and sends it in any way but a good one."""
    draw = world.random
    size = draw.choice((64 * KIB, 200 * KIB, MIB, 8 * MIB, 90 * MIB))
    kind = draw.randrange(3)
    if kind == 0:
        return world.add(address, size, draw.choice((1.0, 100.0, 4000.0)))
    if kind == 1:
        return world.add(address, size, 50 * MIB, stops_at=draw.randrange(1, size))
    return world.add(address, size, draw.choice((5 * KIB, 15 * KIB, 30 * KIB)))


@pytest.mark.parametrize("seed", seeds("crowd_seeds"))
@pytest.mark.parametrize("same_address", [False, True], ids=["other address", "same address"])
def test_a_good_client_is_served_whatever_others_announce_and_however_they_send(
    seed: int, same_address: bool
) -> None:
    world = World(seed)
    good = world.add("10.0.0.1", 200 * KIB, 20 * MIB)
    for number in range(world.random.choice((5, 60, 200))):
        address = "10.0.0.1" if same_address else f"10.1.0.{number % world.random.choice((1, 3, 200))}"
        hostile(world, address)
    world.run(10)
    assert good.closed == 0
    assert good.waited_max_s <= WAIT_MAX_S
    assert good.frames >= 100, "alone it sends one in each step, 200"


@pytest.mark.parametrize(
    ("seed", "count"), [(0, 60), *in_full(*((seed, 60) for seed in range(1, 8)), (0, 200))]
)
def test_a_newcomer_is_served_although_a_crowd_of_its_address_came_first(seed: int, count: int) -> None:
    world = World(seed)
    for _ in range(count):
        world.add("10.0.0.1", 90 * MIB, 20 * MIB, stops_at=2 * MIB)
    world.run(3)
    good = world.add("10.0.0.1", 100 * KIB, 20 * MIB)
    world.run(10)
    assert good.waited_max_s <= WAIT_MAX_S
    assert good.frames >= 30


@pytest.mark.parametrize(
    ("count", "size", "stops_at"),
    [(400, 200 * KIB, 180 * KIB), *in_full((1000, 64 * KIB, 60 * KIB), (200, MIB, 900 * KIB))],
)
def test_a_newcomer_beside_a_crowd_of_its_address_that_stops_within_its_requests_is_soon_served_as_if_alone(
    count: int, size: int, stops_at: int
) -> None:
    world = World(0)
    for _ in range(count):
        world.add("10.0.0.1", size, 50 * MIB, stops_at=stops_at)
    world.run(1)
    good = world.add("10.0.0.1", 100 * KIB, 20 * MIB)
    world.run(4)
    before = good.frames
    world.run(1)
    assert good.closed == 0
    assert good.frames - before >= 18, "alone it sends one in each step, 20"


@pytest.mark.parametrize("limit", [48 * MIB, *in_full(LIMIT)])
def test_a_newcomer_with_a_small_request_is_soon_served_beside_a_crowd_that_stops_within_large_ones(
    limit: int,
) -> None:
    world = World(0)
    world.shares.limit = limit
    for _ in range(200):
        world.add("10.0.0.1", 90 * MIB, 50 * MIB, stops_at=2 * MIB)
    world.run(1)
    good = world.add("10.0.0.1", 100 * KIB, 20 * MIB)
    world.run(4)
    assert good.closed == 0
    assert good.waited_max_s <= GRACE_S
    assert good.frames >= 60, "alone it sends one in each step, 80"


def test_who_has_moved_something_does_not_wait_beside_a_crowd_of_its_address_that_comes_then() -> None:
    world = World(0)
    good = world.add("10.0.0.1", 100 * KIB, 20 * MIB)
    world.run(1)
    for _ in range(1000):
        world.add("10.0.0.1", 64 * KIB, 50 * MIB, stops_at=60 * KIB)
    world.run(3)
    assert good.closed == 0
    assert good.waited_max_s == 0.0
    assert good.frames >= 78, "one in each step"


def test_a_crowd_that_fills_the_room_of_its_address_leaves_room_for_newcomers_of_another() -> None:
    world = World(0)
    for _ in range(500):
        world.add("10.0.0.1", MIB, 50 * MIB, stops_at=900 * KIB)
    world.run(0.5)
    good = world.add("10.0.0.2", 100 * KIB, 20 * MIB)
    world.run(2)
    assert good.closed == 0
    assert good.waited_max_s <= STEP_S
    assert good.frames >= 38


@pytest.mark.parametrize(("size", "stops_at"), [(90 * MIB, 2 * MIB), *in_full((MIB, 900 * KIB))])
def test_a_crowd_of_as_many_addresses_as_peers_that_stops_within_large_requests_leaves_room_for_a_small_one(
    size: int, stops_at: int
) -> None:
    world = World(0)
    for number in range(200):
        world.add(f"10.1.0.{number}", size, 50 * MIB, stops_at=stops_at)
    world.run(0.3)
    good = world.add("10.0.0.1", 100 * KIB, 20 * MIB)
    world.run(0.5)
    assert good.closed == 0
    assert good.waited_max_s == 0.0
    assert good.frames >= 9, "one in each step"


@pytest.mark.parametrize("seed", seeds("crowd_seeds"))
def test_large_frames_that_can_not_all_be_held_are_received_one_after_the_other(seed: int) -> None:
    world = World(seed)
    peers = [world.add(f"10.0.0.{number % 2}", 90 * MIB, 10 * MIB) for number in range(6)]
    world.run(180)
    assert all(peer.frames for peer in peers)
    assert sum(peer.closed for peer in peers) == 0, "those that wait for memory aren't stuck"


@pytest.mark.parametrize("rate", [1.0, 100.0, PACE_MIN / 2])
def test_a_slow_client_is_left_in_peace_while_nobody_needs_what_it_holds(rate: float) -> None:
    world = World(1)
    slow = [world.add("10.0.0.1", 90 * MIB, rate) for _ in range(20)]
    good = world.add("10.0.0.2", 200 * KIB, 20 * MIB)
    world.run(30)
    assert good.waited_max_s == 0
    assert sum(peer.closed for peer in slow) == 0


def test_announcing_takes_nothing() -> None:
    world = World(1)
    for _ in range(50):
        world.add("10.0.0.1", FRAME_MAX, 1.0)
    world.run(5)
    assert world.shares.used <= 50 * 17 * KIB


def test_the_same_seed_gives_the_same_history() -> None:
    def history() -> list[tuple[int, int]]:
        world = World(7)
        for _ in range(30):
            hostile(world, "10.0.0.1")
        world.run(5)
        return [(peer.frames, peer.closed) for peer in world.peers]

    assert history() == history()
