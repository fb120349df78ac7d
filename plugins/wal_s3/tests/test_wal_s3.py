"""What wal_s3 does over what the conformance suite asks of every WAL: fencing, strays, doubt, deletion, requests."""

from __future__ import annotations

import random
import weakref
from contextlib import AsyncExitStack, suppress
from functools import partial

import anyio
import pytest
from penstock_wal_s3 import ObjectWal
from tests.depth import seeds
from tests.patience import HANG_S
from tests.wal_bucket import Place, bodies, recovered

from penstock.errors import (
    AlreadyExistsError,
    CapabilityError,
    CorruptError,
    FencedError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.spi.object_store import ObjectStoreCapabilities
from penstock.spi.wal import WalAppend

pytestmark = pytest.mark.anyio


@pytest.fixture
def place() -> Place:
    return Place(linger=0)


async def append(wal: ObjectWal, payloads: list[bytes]) -> list[WalAppend]:
    """One object each."""
    appends = []
    for payload in payloads:
        appends.append(wal.append([payload]))
        await appends[-1].wait_durable()
    return appends


class Gate:
    """Holds up the first put of a slot, before its effect."""

    def __init__(self, place: Place, slot: str) -> None:
        self._slot = slot
        self.open = anyio.Event()
        self.reached = anyio.Event()
        place.bucket.before = self._step

    async def _step(self, action: str, key: str) -> None:
        epoch, _, slot = key.rpartition("/")[2].partition(".")
        first = not self.reached.is_set()
        if action == "put" and first and f"{int(epoch or 0)}.{int(slot or 0)}" == self._slot:
            self.reached.set()
            await self.open.wait()


# --- the life of a log


async def test_slots_are_numbered_through_all_owners(place: Place) -> None:
    async with place.recovered(3) as wal:
        await append(wal, bodies(2))
    async with place.recovered(7) as wal:
        await append(wal, bodies(1))
    assert place.slots() == ["0.0", "3.1", "3.2", "3.3", "7.4"]
    assert await place.read(9) == bodies(2) + bodies(1)


async def test_an_idle_log_costs_no_request(place: Place) -> None:
    async with place.recovered(1) as wal:
        await append(wal, bodies(1))
        before = place.bucket.requests.copy()
        await anyio.wait_all_tasks_blocked()
        assert place.bucket.requests == before


async def test_a_lone_append_is_one_put(place: Place) -> None:
    async with place.recovered(1) as wal:
        before = place.bucket.requests.copy()
        await append(wal, bodies(3))
        assert place.bucket.requests - before == {"put": 3}


async def test_payload_is_let_go_when_it_is_durable(place: Place) -> None:
    """Also by a log that is idle from then on: the memory is the broker's again."""

    class Payload(bytearray):
        pass

    async with place.recovered(1) as wal:
        payload = Payload(b"x" * 1000)
        seen = weakref.ref(payload)
        one = wal.append([payload])
        await one.wait_durable()
        await anyio.wait_all_tasks_blocked()
        del payload
        assert seen() is None


async def test_a_store_without_put_if_absent_is_refused(place: Place) -> None:
    place.bucket.capabilities = ObjectStoreCapabilities()
    with pytest.raises(CapabilityError, match="put_if_absent"):
        async with place.open(1):
            pass
    assert place.spec.requires == {"put_if_absent"}


async def test_the_log_is_the_one_of_the_node_whoever_opens_it(place: Place) -> None:
    """Taking over: with another node's id, beside one's own log."""
    async with place.recovered(1) as dead:
        await append(dead, bodies(3))
    async with place.open(2, node_id=2) as own:
        assert await recovered(own) == []
        await append(own, bodies(1, owner=2))
        async with place.open(3, node_id=1) as taken:
            assert await recovered(taken) == bodies(3)
            await taken.trim(taken.statistics().end_position)
        await append(own, bodies(1, owner=3))
    assert await place.read(4) == []


# --- fencing


async def test_a_put_that_comes_after_the_seal_is_never_acknowledged(place: Place) -> None:
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(place.recovered(1))
        await append(old, bodies(2))
        gate = Gate(place, "1.3")
        late = old.append([b"late"])
        await gate.reached.wait()
        assert await place.read(2) == bodies(2)
        gate.open.set()
        with pytest.raises(FencedError, match="a newer owner took the wal over"):
            await late.wait_durable()
        assert old.statistics().state == "fenced"
    assert await place.read(3) == bodies(2)


async def test_an_owner_that_was_overtaken_before_it_recovered_is_fenced_and_sees_no_loss(
    place: Place,
) -> None:
    """Its successor deletes what it has trimmed: that isn't missing. Found by the simulation (seed 5010)."""
    async with place.recovered(1) as wal:
        await append(wal, bodies(5))
    async with place.open(2) as slow:
        async with place.recovered(3) as new:
            for number in range(3):
                await append(new, bodies(2, owner=number))
                await new.trim(new.statistics().end_position)
        assert "1.2" not in place.slots()
        with pytest.raises(FencedError, match="a newer owner took the wal over"):
            await recovered(slow)


async def test_what_landed_behind_the_seal_is_no_part_of_the_log(place: Place) -> None:
    """Strays: neither acknowledged nor recovered by any later owner, before and after what is around is trimmed."""
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(place.recovered(1))
        await append(old, bodies(1))
        gate = Gate(place, "1.2")
        appends = []
        for payload in bodies(4, owner=9):
            appends.append(old.append([payload]))
            await anyio.wait_all_tasks_blocked()
        assert place.slots() == ["0.0", "1.1", "1.3", "1.4", "1.5"]
        async with place.open(2) as new:
            assert place.slots() == ["0.0", "1.1", "1.2", "1.3", "1.4", "1.5"]
            assert await recovered(new) == bodies(1)
            gate.open.set()
            for each in appends:
                with pytest.raises(FencedError):
                    await each.wait_durable()
    # the successor's seal has strays behind it, and nothing else tells of the successor
    async with place.open(3) as wal:
        assert await recovered(wal) == bodies(1)
        await append(wal, bodies(2, owner=3))
    assert await place.read(4) == bodies(1) + bodies(2, owner=3)
    async with place.recovered(5) as wal:
        (last,) = await append(wal, [b"last"])
        await wal.trim(last.position)
    assert not [slot for slot in place.slots() if slot in ("1.3", "1.4", "1.5")]
    assert await place.read(6) == [b"last"]


async def test_an_owner_that_is_faster_than_its_successor_is_stopped_by_barriers(place: Place) -> None:
    """It puts into each slot that the successor wants, just before it."""
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(place.recovered(1))
        acked: list[bytes] = []

        async def be_faster(action: str, key: str) -> None:
            if action == "put" and busy and not key.endswith(f"{old._next_slot:020d}"):
                return
            if action == "put" and not inside and busy:
                inside.append(key)
                payload = f"busy {len(acked)}".encode()
                with suppress(FencedError):
                    await old.append([payload]).wait_durable()
                    acked.append(payload)
                inside.pop()

        inside: list[str] = []
        busy = True
        place.bucket.before = be_faster
        async with place.open(2) as new:
            busy = False
            assert acked, "the owner was faster at least once"
            assert await recovered(new) == acked
            await append(new, [b"new"])
            with pytest.raises(FencedError):
                await old.append([b"late"]).wait_durable()
    assert await place.read(3) == [*acked, b"new"]


async def test_of_two_that_take_over_at_once_the_newer_one_has_it(place: Place) -> None:
    async with place.recovered(1) as wal:
        await append(wal, bodies(2))
    gate = Gate(place, "1.3")
    async with anyio.create_task_group() as tasks:
        outcome: list[object] = []

        ended = anyio.Event()

        async def older() -> None:
            try:
                async with place.recovered(2) as wal:
                    await append(wal, [b"older"])
            except FencedError as error:
                outcome.append(error)
            ended.set()

        tasks.start_soon(older)
        await gate.reached.wait()
        place.bucket.before = _pass
        async with place.recovered(3) as wal:
            gate.open.set()
            await append(wal, [b"newer"])
            with anyio.fail_after(HANG_S):
                await ended.wait()
            assert len(outcome) == 1, "the older one is told"
    assert await place.read(4) == [*bodies(2), b"newer"]


async def _pass(action: str, key: str) -> None:
    """Nothing is held up."""


async def test_who_seals_a_place_that_was_trimmed_meanwhile_is_not_the_owner(place: Place) -> None:
    """It looked, slept, and its seal lands where the log was long ago."""
    place.now = 0.0
    async with place.recovered(1) as wal:
        await append(wal, bodies(2))
    gate = Gate(place, "1.3")
    async with anyio.create_task_group() as tasks:
        outcome: list[FencedError] = []
        ended = anyio.Event()

        async def sleeper() -> None:
            try:
                async with place.open(2):
                    pass
            except FencedError as error:
                outcome.append(error)
            ended.set()

        tasks.start_soon(sleeper)
        await gate.reached.wait()
        place.bucket.before = _pass
        async with place.recovered(3) as wal:
            await _trim_all(place, wal)
            assert "1.3" not in place.slots()
            gate.open.set()
            with anyio.fail_after(HANG_S):
                await ended.wait()
            assert "1.3" in place.slots(), "it landed"
            assert len(outcome) == 1
            await append(wal, [b"still the owner"])
    assert (await place.read(4))[-1] == b"still the owner"


async def _trim_all(place: Place, wal: ObjectWal) -> None:
    """So that nothing before the newest objects is left, an hour after the opening."""
    assert place.now is not None
    place.now += 4000.0
    for number in range(3):
        (one,) = await append(wal, [f"trimmed {number}".encode()])
        await wal.trim(one.next_position)


async def test_a_put_that_lands_where_the_seal_was_deleted_is_not_acknowledged(place: Place) -> None:
    """The slot is vacant again, so the put succeeds; it took so long that the owner looks before it believes it."""
    place.now = 0.0
    async with AsyncExitStack() as stack:
        old = await stack.enter_async_context(place.recovered(1))
        await append(old, bodies(2))
        gate = Gate(place, "1.3")
        late = old.append([b"late"])
        await gate.reached.wait()
        place.bucket.before = _pass
        async with place.recovered(2) as new:
            await _trim_all(place, new)
            assert "1.3" not in place.slots(), "the seal is gone"
            gate.open.set()
            with pytest.raises(FencedError):
                await late.wait_durable()
            assert "1.3" in place.slots(), "the put landed"
            await append(new, [b"goes on"])
    assert (await place.read(3))[-1] == b"goes on"


async def test_a_slow_put_of_the_owner_itself_is_acknowledged(place: Place) -> None:
    place.now = 0.0
    async with place.recovered(1) as wal:
        for slot in ("1.1", "1.2"):
            gate = Gate(place, slot)
            slow = wal.append([b"slow"])
            await gate.reached.wait()
            place.now += 100.0
            gate.open.set()
            await slow.wait_durable()
        assert place.bucket.requests["head"] == 2


async def test_a_seal_is_kept_for_an_hour(place: Place) -> None:
    place.now = 0.0
    async with place.recovered(1) as wal:
        await append(wal, bodies(2))
    async with place.recovered(2) as wal:
        for number in range(3):
            (one,) = await append(wal, [f"{number}".encode()])
            await wal.trim(one.next_position)
        assert [slot for slot in place.slots() if slot.startswith(("0.", "1."))] == ["0.0", "1.3"]
        await _trim_all(place, wal)
        assert [slot for slot in place.slots() if slot.startswith(("0.", "1."))] == []


async def test_a_sealed_log_takes_no_appends_and_can_be_trimmed(place: Place) -> None:
    async with place.recovered(1) as wal:
        appends = await append(wal, bodies(3))
        await wal.seal()
        with pytest.raises(FencedError, match="sealed"):
            wal.append([b"late"])
    async with place.open(2) as wal:
        assert await recovered(wal) == bodies(3)
        with pytest.raises(FencedError, match="sealed"):
            wal.append([b"late"])
        await wal.trim(appends[1].next_position)
    assert await place.read(3) == [bodies(3)[2]]
    async with place.open(4) as wal:
        await recovered(wal)
        with pytest.raises(FencedError, match="sealed"):
            wal.append([b"late"])


@pytest.mark.parametrize("busy", [False, True])
async def test_a_seal_that_is_cancelled_leaves_no_hole_behind_which_appends_are_acknowledged(
    place: Place, busy: bool
) -> None:
    async with place.recovered(1) as wal:
        appends = await append(wal, bodies(1))
        gate = Gate(place, "1.2")
        if busy:
            appends.append(wal.append([b"busy"]))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wal.seal)
            await gate.reached.wait()
            tasks.cancel_scope.cancel()
        gate.open.set()
        with anyio.fail_after(HANG_S), suppress(FencedError):
            appends.append(wal.append([b"late"]))
            for each in appends[1:]:
                await each.wait_durable()
        acknowledged = sum(each.done and each.error is None for each in appends)
        assert acknowledged > busy
    assert len(await place.read(2)) == acknowledged


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_who_lost_the_log_while_sealing_it_deletes_nothing_of_it_at_its_end(
    place: Place, is_cancelled: bool
) -> None:
    """The successor begins where it was told to when it took over; without these objects it would speak of a loss."""
    async with place.recovered(1) as wal:
        appends = await append(wal, bodies(4))
        await wal.trim(appends[2].next_position)
        if is_cancelled:
            gate = Gate(place, "1.5")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wal.seal)
                await gate.reached.wait()
                tasks.cancel_scope.cancel()
        async with place.open(2) as successor:
            if not is_cancelled:
                with pytest.raises(FencedError, match="a newer owner took the wal over"):
                    await wal.seal()
            await wal.close()
            assert await recovered(successor) == bodies(4)


async def test_a_seal_after_one_that_was_cancelled_seals(place: Place) -> None:
    """It once took the first one for done. What it puts is where the first one was to be: a hole ends the log."""
    async with place.recovered(1) as wal:
        appends = await append(wal, bodies(2))
        await wal.trim(appends[0].next_position)
        gate = Gate(place, f"1.{len(place.slots())}")
        with anyio.fail_after(HANG_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wal.seal)
                await gate.reached.wait()
                tasks.cancel_scope.cancel()
        gate.open.set()
        await wal.seal()
    async with place.open(2) as wal:
        assert (await recovered(wal))[-1:] == bodies(2)[1:]
        with pytest.raises(FencedError, match="sealed"):
            wal.append([b"late"])


async def test_an_epoch_is_used_once(place: Place) -> None:
    async with place.recovered(5) as wal:
        await append(wal, bodies(1))
    with pytest.raises(FencedError, match="a newer owner holds the wal"):
        async with place.open(5):
            pass


# --- ambiguity


@pytest.mark.parametrize("error", [AlreadyExistsError, UnavailableError])
async def test_a_put_whose_reply_is_lost_is_acknowledged(place: Place, error: type[PenstockError]) -> None:
    """A retry meets its own object, or the store says that it failed: the object itself tells."""
    lost: set[str] = set()

    async def lose(action: str, key: str) -> None:
        if action == "put" and key not in lost:
            lost.add(key)
            raise error("the reply is lost")

    async with place.recovered(1) as wal:
        place.bucket.after = lose
        with anyio.fail_after(HANG_S):
            await append(wal, bodies(2))
        place.bucket.after = _pass
    assert await place.read(2) == bodies(2)


async def test_half_an_object_that_the_store_kept_is_never_acknowledged(place: Place) -> None:
    """A connection that is lost in the middle of a put: some stores take what came for the object."""

    async def cut(action: str, key: str) -> None:
        if action == "put":
            place.bucket.objects[key] = place.bucket.objects[key][:-1]
            raise UnavailableError("the connection was lost")

    async with place.recovered(1) as wal:
        place.bucket.after = cut
        with pytest.raises(CorruptError, match="its puts aren't atomic"), anyio.fail_after(HANG_S):
            await wal.append([b"entry"]).wait_durable()
        place.bucket.after = _pass


@pytest.mark.parametrize("error", [AlreadyExistsError, UnavailableError])
async def test_a_seal_whose_reply_is_lost_holds(place: Place, error: type[PenstockError]) -> None:
    async with place.recovered(1) as wal:
        await append(wal, bodies(2))

    async def lose(action: str, key: str) -> None:
        if action == "put":
            place.bucket.after = _pass
            raise error("the reply is lost")

    place.bucket.after = lose
    assert await place.read(2) == bodies(2)


async def test_a_store_that_takes_no_seal_is_told(place: Place) -> None:
    """A start isn't held up for ever."""

    async def fail(action: str, key: str) -> None:
        if action == "put":
            raise UnavailableError("not now")

    place.bucket.before = fail
    with pytest.raises(UnavailableError, match="not now"), anyio.fail_after(HANG_S):
        await place.read(1)
    assert place.bucket.requests["put"] > 1


async def test_a_store_that_fails_is_waited_for(place: Place) -> None:
    """The log holds its appends back; nothing is told to have failed."""
    failures = 3

    async def fail(action: str, key: str) -> None:
        nonlocal failures
        if action == "put" and failures:
            failures -= 1
            raise UnavailableError("not now")

    async with place.recovered(1) as wal:
        place.bucket.before = fail
        with anyio.fail_after(HANG_S):
            await append(wal, bodies(1))
    assert await place.read(2) == bodies(1)


async def test_a_slow_put_is_made_a_second_time_and_counts_once() -> None:
    place = Place(linger=0, hedge_after=1)
    async with place.recovered(1) as wal:
        held = anyio.Event()
        holding = True

        async def hold_first(action: str, key: str) -> None:
            nonlocal holding
            if action == "put" and holding:
                holding = False
                await held.wait()

        place.bucket.before = hold_first
        with anyio.fail_after(HANG_S):
            await append(wal, bodies(1))
        assert place.bucket.requests["put"] == 3, "the birth, and the append twice"
        await append(wal, bodies(1, owner=1))
    assert await place.read(2) == bodies(1) + bodies(1, owner=1)


async def test_a_bug_in_a_put_that_was_given_up_is_logged_and_the_other_one_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Place(linger=0, hedge_after=1)
    async with place.recovered(1) as wal:
        firsts = iter([True])

        async def break_first(action: str, key: str) -> None:
            if action == "put" and next(firsts, False):
                try:
                    await anyio.sleep_forever()
                finally:
                    raise ValueError("a bug of the store")

        place.bucket.before = break_first
        with anyio.fail_after(HANG_S):
            await append(wal, bodies(1))
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert "given up failed: key=" in record.getMessage()
    assert "a bug of the store" in caplog.text
    assert await place.read(2) == bodies(1)


# --- loss and damage


@pytest.mark.parametrize("lost", ["1.1", "1.2", "1.3"])
async def test_a_hole_below_the_confirmed_position_stops_recovery(place: Place, lost: str) -> None:
    """I10: never skipped, and the sentence names the object."""
    async with place.recovered(1) as wal:
        await append(wal, bodies(4))
    (key,) = [key for key in place.bucket.objects if key.endswith(f"{int(lost[2:]):020d}")]
    del place.bucket.objects[key]
    with pytest.raises(CorruptError, match="position=") as caught:
        await place.read(2)
    assert key in str(caught.value)


async def test_an_object_that_a_listing_missed_since_it_was_put_meanwhile_is_no_hole(place: Place) -> None:
    """A listing needn't tell what is put while it goes on, and may tell what was put after that."""
    async with place.recovered(1) as wal:
        await append(wal, bodies(4))
        objects = place.bucket.objects
        missed: dict[str, bytes] = {}
        late = sorted(objects)[-2]

        async def step(action: str, key: str) -> None:
            if action == "list" and not missed:
                missed[late] = objects.pop(late)
            elif action != "list":
                objects.update(missed)

        place.bucket.before = step
        assert await place.read(2) == bodies(4)
    assert missed


async def test_a_lost_object_before_a_later_owner_stops_recovery(place: Place) -> None:
    for epoch in (1, 2):
        async with place.recovered(epoch) as wal:
            await append(wal, bodies(2, owner=epoch))
    for slot, key in [
        (slot, key) for slot, key in zip(place.slots(), sorted(place.bucket.objects), strict=True)
    ]:
        if slot == "0.0":
            continue
        kept = place.bucket.objects.copy()
        del place.bucket.objects[key]
        if slot != "2.5":  # the newest one: nothing here tells that it was confirmed
            with pytest.raises(CorruptError):
                await place.read(9)
        place.bucket.objects = kept


@pytest.mark.parametrize("at", [3, 50, 95, 100, 160, -1])
async def test_damage_stops_recovery(place: Place, at: int) -> None:
    """I11: header, group and entries."""
    async with place.recovered(1) as wal:
        await append(wal, bodies(4))
    (key,) = [key for key in place.bucket.objects if key.endswith(f"{2:020d}")]
    data = bytearray(place.bucket.objects[key])
    data[at] ^= 1
    place.bucket.objects[key] = bytes(data)
    with pytest.raises(CorruptError, match="position=") as caught:
        await place.read(2)
    assert key in str(caught.value)


# --- trimming


async def test_trimmed_objects_are_deleted_and_the_end_of_the_log_stays(place: Place) -> None:
    async with place.recovered(1) as wal:
        appends = await append(wal, bodies(10))
        await wal.trim(appends[6].next_position)
        assert len(place.slots()) == 11, "no object tells of it yet"
        await append(wal, [b"tells of it"])
        await wal.trim(appends[7].next_position)
        assert place.slots() == ["0.0", "1.8", "1.9", "1.10", "1.11"]
    assert await place.read(2) == [*bodies(10)[8:], b"tells of it"]


async def test_after_a_clean_stop_nothing_that_was_trimmed_is_left_to_read(place: Place) -> None:
    async with place.recovered(1) as wal:
        appends = await append(wal, bodies(10))
        await wal.trim(appends[-1].next_position)
        end = wal.statistics().end_position
    assert place.slots() == ["0.0", "1.10", "1.11"]
    async with place.open(2) as wal:
        assert await recovered(wal) == []
        assert wal.statistics().end_position == end, "also of an empty log"
        (one,) = await append(wal, [b"next"])
        assert one.position >= end


async def test_objects_that_could_not_be_deleted_are_deleted_later(place: Place) -> None:
    async def fail(action: str, key: str) -> None:
        if action == "delete":
            raise UnavailableError("not now")

    async with place.recovered(1) as wal:
        appends = await append(wal, bodies(5))
        place.bucket.before = fail
        await wal.trim(appends[3].next_position)
        await append(wal, [b"x"])
        await wal.trim(appends[4].position)
        await wal.trim(appends[4].next_position)
        assert len(place.slots()) == 7
        place.bucket.before = _pass
        (one,) = await append(wal, [b"y"])
        await wal.trim(one.position)
        assert place.slots() == ["0.0", "1.6", "1.7"]


async def test_what_an_owner_left_that_was_killed_is_deleted_by_its_successor(place: Place) -> None:
    async with place.recovered(1) as wal:
        appends = await append(wal, bodies(5))
        killed = place.bucket.objects.copy()
        await wal.trim(appends[3].next_position)
        (one,) = await append(wal, [b"x"])
        killed = killed | place.bucket.objects
    place.bucket.objects = killed  # nothing was deleted, nothing noted
    async with place.recovered(2) as wal:
        await append(wal, bodies(1))
        await wal.trim(one.position)
    assert place.slots() == ["0.0", "1.6", "1.7", "2.8", "2.9"]


async def test_a_put_that_lands_again_after_its_deletion_disturbs_nobody(place: Place) -> None:
    """As the second of two hedged puts may."""
    async with place.recovered(1) as wal:
        appends = await append(wal, bodies(5))
        again = {key: data for key, data in place.bucket.objects.items() if key.endswith(f"{2:020d}")}
        await wal.trim(appends[3].next_position)
    place.bucket.objects |= again
    assert await place.read(2) == bodies(5)[4:]
    assert await place.read(3) == bodies(5)[4:]


# --- looking from outside


async def test_looking_changes_nothing_and_asks_nobody_to_stop(place: Place) -> None:
    async def read() -> list[bytes]:
        assert place.spec.read is not None
        return [bytes(entry.data) async for entry in place.spec.read(place.settings, place.services(0))]

    assert place.spec.describe is not None
    with pytest.raises(NotFoundError):
        await read()
    async with place.recovered(1) as wal:
        appends = await append(wal, bodies(3))
        await wal.trim(appends[0].next_position)
        before = dict(place.bucket.objects)
        assert await read() == bodies(3), "no object tells of the trim yet"
        facts = await place.spec.describe(place.settings, place.services(0))
        assert (facts["owner_epoch"], facts["entries"], facts["error"]) == (1, 3, None)
        assert place.bucket.objects == before
        await append(wal, [b"goes on"])
    assert await read() == [*bodies(3)[1:], b"goes on"]


# --- all of it at random


class Owner:
    """One owner of a random history; it goes on as long as it may, whoever comes after it."""

    def __init__(self, epoch: int, base: list[bytes]) -> None:
        self.epoch = epoch
        #: What it recovered, then what it appended.
        self.entries = base
        self.acked = len(base)
        #: So many of the entries may be gone.
        self.trimmed = 0

    async def live(self, wal: ObjectWal, rng: random.Random, turns: int) -> None:
        def ended(done: WalAppend, index: int) -> None:
            if done.error is None:
                assert index == self.acked, "acknowledged in order"
                self.acked += 1

        for number in range(turns):
            self.entries.append(f"{self.epoch}/{number}".encode())
            one = wal.append([self.entries[-1]])
            one.set_callback(partial(ended, index=len(self.entries) - 1))
            if rng.random() < 0.3:
                await one.wait_durable()
                if rng.random() < 0.3:
                    self.trimmed = len(self.entries)
                    await wal.trim(one.next_position)
            await _pause(rng)

    def check_successor(self, found: list[bytes]) -> None:
        """What the next owner found continues this one's entries, and has all that was ever acknowledged."""
        first = self.entries.index(found[0]) if found else len(self.entries)
        assert found == self.entries[first : first + len(found)], "entries are missing, or out of order"
        assert not found or first <= self.trimmed, "acknowledged entries are lost"
        assert first + len(found) >= self.acked or self.acked <= self.trimmed, "the newest ones are lost"


async def _pause(rng: random.Random) -> None:
    for _ in range(rng.choice((0, 0, 1, 5, 30))):
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("seed", seeds("wal_s3_histories"))
async def test_any_history_keeps_what_was_acknowledged(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """I1, I3, I10 over owners that end anywhere or live on as zombies, and a store that is slow and loses replies."""
    monkeypatch.setattr("penstock_wal_s3._puts._DELAY_S", (0.0, 0.0))
    monkeypatch.setattr("penstock_wal_s3._log._PAUSE_S", 0.0)
    rng = random.Random(seed)
    place = Place(
        linger=rng.choice((0, 1)), writes_max=rng.choice((1, 3, 8)), hedge_after=rng.choice((0, 1, 1000))
    )

    async def before(action: str, key: str) -> None:
        await _pause(rng)
        if rng.random() < 0.02:
            raise UnavailableError("the request is lost")

    async def after(action: str, key: str) -> None:
        await _pause(rng)
        if action == "put" and rng.random() < 0.05:
            raise rng.choice((UnavailableError, AlreadyExistsError))("the reply is lost")

    place.bucket.before, place.bucket.after = before, after
    owners: list[tuple[Owner, list[bytes]]] = []

    async def own(epoch: int, started: anyio.Event) -> None:
        with suppress(FencedError, UnavailableError):
            async with place.open(epoch) as wal:
                found = await recovered(wal)
                owner = Owner(epoch, found.copy())
                owners.append((owner, found))
                started.set()
                await owner.live(wal, rng, rng.randrange(60))
        started.set()

    async with anyio.create_task_group() as tasks:
        for epoch in range(1, 20):
            started = anyio.Event()
            tasks.start_soon(own, epoch, started)
            await started.wait()
            for _ in range(rng.randrange(300)):
                await anyio.lowlevel.checkpoint()
    place.bucket.before = place.bucket.after = _pass
    found = await place.read(99)
    assert len(owners) > 3, "several owners came so far"
    for (owner, _), (_, successor_found) in zip(owners, [*owners[1:], (owners[0][0], found)], strict=True):
        owner.check_successor(successor_found)
