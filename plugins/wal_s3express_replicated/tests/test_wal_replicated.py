"""What a replicated log promises, on media in memory that the tests steer; contract clauses are in conformance."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from penstock_wal_s3express_replicated import ReplicatedWal, Settings, _wal
from penstock_wal_s3express_replicated._format import HEADER_BYTES, Kind, Members, encode_header
from tests.depth import seeds
from tests.patience import HANG_S
from tests.steered_wal import Place, recovered

from penstock.errors import (
    ClosedError,
    ConfigError,
    CorruptError,
    FencedError,
    FullError,
    NewerVersionError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock.spi.wal import WalAppend

pytestmark = pytest.mark.anyio


async def acked(wal: ReplicatedWal, *bodies: bytes) -> list[WalAppend]:
    appends = [wal.append([body]) for body in bodies]
    with anyio.fail_after(HANG_S):
        for append in appends:
            await append.wait_durable()
    return appends


async def until_word(place: Place, number: int) -> None:
    """So many words were written."""
    with anyio.fail_after(HANG_S):
        await place.words.wait(lambda: len(place.words.history) >= number)


def done(*appends: WalAppend) -> list[bool]:
    return [append.done for append in appends]


def members(place: Place) -> set[str]:
    return set(Members.decode(place.words.word).since)


# -- acknowledging -----------------------------------------------------------------------------------------------


async def test_an_append_is_acknowledged_when_all_replicas_hold_it() -> None:
    place = Place(replicas=3)
    async with place.recovered() as wal:
        place.media[1].held = place.media[2].held = True
        first, second = wal.append([b"one"]), wal.append([b"t", b"wo"])
        await anyio.wait_all_tasks_blocked()
        assert place.holds(0) == [b"one", b"two"]
        place.media[2].release()
        assert done(first, second) == [False, False]
        place.media[1].release(1)
        assert done(first, second) == [True, False]
        place.media[1].release()
        assert done(first, second) == [True, True]
        assert second.position == first.next_position == HEADER_BYTES + 3
    assert await place.read() == [b"one", b"two"]


async def test_statistics_tell_latency_and_lag_of_each_replica() -> None:
    place = Place()
    async with place.recovered() as wal:
        await acked(wal, b"x")
        place.media[1].held = True
        wal.append([b"y"])
        wal.append([b"z"])
        await anyio.sleep(0.01)
        told = wal.statistics()
        assert (told.state, told.pending_entries, told.appended_entries) == ("open", 2, 3)
        fast, slow = told.replicas["replicas[0]"], told.replicas["replicas[1]"]
        assert (fast.state, fast.lag_entries, fast.lag_ms) == ("member", 0, 0)
        assert (slow.state, slow.lag_entries) == ("member", 2)
        assert slow.lag_ms > 0
        assert fast.latency_us > 0
        place.media[1].release()
        assert wal.statistics().replicas["replicas[1]"].lag_entries == 0


async def test_an_entry_that_has_no_room_in_one_replica_is_in_none() -> None:
    place = Place()
    place.media[1].capacity = 200
    async with place.recovered() as wal:
        assert wal.capabilities.bounded
        *_, last = await acked(wal, bytes(60), bytes(60))
        assert not wal.would_fit(60)
        with pytest.raises(FullError):
            wal.append([bytes(60)])
        assert place.holds(0) == place.holds(1) == [bytes(60), bytes(60)]
        await wal.trim(last.next_position)
        assert wal.would_fit(60)


async def test_of_two_trims_at_once_none_returns_before_there_is_room() -> None:
    place = Place()
    place.media[1].capacity = 200
    async with place.recovered() as wal:
        *_, last = await acked(wal, bytes(60), bytes(60))
        place.media[1].trimming = anyio.Event()
        fitted: list[bool] = []

        async def trim() -> None:
            await wal.trim(last.next_position)
            fitted.append(wal.would_fit(60))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trim)
            tasks.start_soon(trim)
            await anyio.wait_all_tasks_blocked()
            place.media[1].trimming.set()
        assert fitted == [True, True]


# -- dropping ----------------------------------------------------------------------------------------------------


async def test_a_failed_replica_is_dropped_after_the_smaller_set_is_recorded_under_a_new_epoch() -> None:
    place = Place()
    async with place.recovered() as wal:
        await acked(wal, b"before")
        epoch = place.words.index
        place.words.gate = anyio.Event()
        place.media[1].fail()
        append = wal.append([b"x"])
        await anyio.wait_all_tasks_blocked()
        assert place.holds(0) == [b"before", b"x"]
        assert not append.done, "the smaller set isn't recorded yet"
        place.words.gate.set()
        with anyio.fail_after(HANG_S):
            await append.wait_durable()
        assert place.words.index > epoch
        assert members(place) == {place.media[0].identity}
        told = wal.statistics()
        assert told.state == "degraded"
        assert "replicas[1] is out: the medium failed" in told.last_error
        assert told.replicas["replicas[1]"].dropped == 1
        await acked(wal, b"y")
    place.media[0].error = None
    assert await place.read() == [b"before", b"x", b"y"]


async def test_a_slow_replica_is_dropped_when_it_is_too_far_behind_the_fastest() -> None:
    place = Place(drop_after="30ms")
    async with place.recovered() as wal:
        place.media[0].held = True
        await acked(wal, b"x")
        assert members(place) == {place.media[1].identity}
        assert "too far behind" in wal.statistics().last_error


async def test_when_all_are_slow_nobody_is_dropped() -> None:
    place = Place(drop_after="5ms")
    async with place.recovered() as wal:
        place.media[0].held = place.media[1].held = True
        append = wal.append([b"x"])
        await anyio.sleep(0.05)
        assert done(append) == [False]
        place.media[0].release()
        place.media[1].release()
        assert done(append) == [True]
        assert len(members(place)) == 2


async def test_the_last_replica_is_not_dropped_the_log_fails() -> None:
    place = Place()
    async with place.recovered() as wal:
        append = wal.append([b"x"])
        for medium in place.media:
            medium.fail()
        with anyio.fail_after(HANG_S), pytest.raises(UnavailableError, match="every replica failed"):
            await append.wait_durable()
        with pytest.raises(ClosedError):
            wal.append([b"y"])
        assert wal.statistics().state == "failed"
        assert len(members(place)) == 2


async def test_a_trim_when_the_last_replica_failed_while_the_other_one_was_dropped_is_told() -> None:
    place = Place()
    async with place.recovered() as wal:
        (first,) = await acked(wal, b"one")
        place.words.gate = anyio.Event()
        place.media[0].fail()
        wal.append([b"two"])
        await anyio.wait_all_tasks_blocked()  # the smaller set is on its way to metadata
        place.media[1].fail()
        three = wal.append([b"three"])
        place.words.gate.set()
        with anyio.fail_after(HANG_S), pytest.raises(UnavailableError, match="every replica failed"):
            await three.wait_durable()
        with pytest.raises(UnavailableError, match="no replica is left to be trimmed: reason="):
            await wal.trim(first.next_position)


async def test_a_fence_of_one_replica_is_a_fence_of_the_log() -> None:
    place = Place()
    async with place.recovered() as wal:
        place.media[1].epoch += 1
        append = wal.append([b"x"])
        with anyio.fail_after(HANG_S), pytest.raises(FencedError):
            await append.wait_durable()
        assert wal.statistics().state == "fenced"
        assert len(members(place)) == 2


async def test_who_registered_later_keeps_the_old_owner_from_dropping_what_it_can_not_reach() -> None:
    place = Place()
    async with place.recovered() as wal:
        place.register()
        place.media[1].fail()
        append = wal.append([b"x"])
        with anyio.fail_after(HANG_S), pytest.raises(FencedError, match="newer owner registered"):
            await append.wait_durable()


async def test_while_the_return_of_a_replica_is_recorded_it_has_all_that_is_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Metadata may say so before its owner knows, and a recovery then asks that replica alone."""
    place = Place(return_after="5ms")
    reached, go_on = anyio.Event(), anyio.Event()
    words = type(place.words.of(0))
    write = words.write

    async def hold_larger(self: Any, name: str, value: str, expected: str) -> int:
        if len(Members.decode(expected or value).since) < len(Members.decode(value).since):
            reached.set()
            await go_on.wait()
        return await write(self, name, value, expected)

    async with place.recovered() as wal:
        place.media[1].fail()
        await acked(wal, b"one")
        monkeypatch.setattr(words, "write", hold_larger)
        place.media[1].error = None
        with anyio.fail_after(HANG_S):
            await reached.wait()
        place.media[1].held = True
        append = wal.append([b"two"])
        await anyio.wait_all_tasks_blocked()
        assert place.holds(0)[-1] == b"two"
        assert not append.done
        place.media[1].release()
        with anyio.fail_after(HANG_S):
            await append.wait_durable()
        go_on.set()
        await acked(wal, b"three")


# -- recovery ----------------------------------------------------------------------------------------------------


async def test_a_replica_that_lacks_the_newest_is_repaired() -> None:
    place = Place()
    async with place.recovered() as wal:
        await acked(wal, b"one")
    taken = place.media[1].entries.pop()
    assert taken
    async with place.open() as wal:
        assert await recovered(wal) == [b"one"]
        assert place.holds(1) == [b"one"]
    place.media[0].fail()
    assert await place.read() == [b"one"]


async def test_recovery_uses_the_last_recorded_set_only() -> None:
    place = Place()
    async with place.recovered() as wal:
        await acked(wal, b"one")
        place.media[1].held = True
        wal.append([b"lost"])  # the second one gets it too, and says so to nobody
        place.media[1].release()
        place.media[1].fail()
        await acked(wal, b"two")
    place.media[0].replace()
    place.media[1].error = None
    with pytest.raises(CorruptError, match="each replica is another log than the recorded one"):
        await place.read()


async def test_a_replica_that_was_out_is_given_the_log_at_the_next_start() -> None:
    place = Place()
    async with place.recovered() as wal:
        await acked(wal, b"one")
        place.media[1].fail()
        await acked(wal, b"two")
    place.media[1].error = None
    async with place.open() as wal:
        assert await recovered(wal) == [b"one", b"two"]
        assert len(members(place)) == 2
        assert wal.statistics().state == "open"
        await acked(wal, b"three")
    place.media[0].fail()
    async with place.open() as wal:
        assert await recovered(wal) == [b"one", b"two", b"three"]
        assert wal.statistics().state == "degraded"


async def test_what_a_replica_held_when_it_did_not_count_never_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also if its trim is forgotten."""
    monkeypatch.setattr(_wal, "CLOSE_TIMEOUT_S", 0.01)
    place = Place()
    async with place.recovered() as wal:
        await acked(wal, b"one")
        place.media[1].held = True
        unacked = wal.append([b"never"])
        place.media[0].fail()
        await anyio.wait_all_tasks_blocked()
        assert not unacked.done
    place.media[1].waiting.clear()
    place.media[1].held, place.media[0].error = False, None
    async with place.recovered() as wal:
        await acked(wal, b"two")
    place.media[0].trimmed = 0
    place.media[1].fail()
    assert await place.read() == [b"one", b"two"]


async def test_what_a_replica_holds_of_another_log_is_not_touched() -> None:
    """A path that points to somebody else's, or that log's path after a mistake."""
    place, another = Place(), Place()
    async with place.recovered() as wal, another.recovered() as other:
        await acked(wal, b"one")
        await acked(other, b"theirs")
    place.media[1].fail()
    async with place.recovered() as wal:
        await acked(wal, b"two")
    foreign = place.media[1] = another.media[1]
    held = list(foreign.entries)
    async with place.open() as wal:
        assert await recovered(wal) == [b"one", b"two"]
        assert wal.statistics().state == "degraded"
        assert (
            "wal.replicas[1] holds entries of another log, which aren't touched"
            in wal.statistics().last_error
        )
        assert members(place) == {place.media[0].identity}
    assert foreign.entries == held
    assert foreign.trimmed == 0


async def test_a_hole_that_no_replica_fills_stops_recovery_with_its_position() -> None:
    place = Place()
    async with place.recovered() as wal:
        (_, second, _) = await acked(wal, b"one", b"two", b"three")
    for medium in place.media:
        del medium.entries[1]
    with pytest.raises(CorruptError, match=f"lost entries: .*position={second.position} found="):
        await place.read()


@pytest.mark.parametrize("older", [0, 1])
async def test_a_replica_that_is_an_older_copy_costs_nothing(older: int) -> None:
    """Its medium was put back from a copy: of the log as it was a while ago, or before all of that was trimmed."""
    place = Place()
    medium = place.media[older]
    read = place.spec.read
    assert read is not None
    for trims in (False, True):
        async with place.recovered() as wal:
            await acked(wal, b"one")
            copy = list(medium.entries), medium.trimmed
            appends = await acked(wal, *(b"%40000d" % number for number in range(3)))
            if trims:
                await wal.trim(appends[1].next_position)
            await acked(wal, b"last")
        medium.entries, medium.trimmed = copy
        found = [bytes(entry.data) async for entry in read(place.settings, place.services(0))]
        assert found[-2:] == [b"%40000d" % 2, b"last"], "from outside, too"
        async with place.open() as wal:
            assert (await recovered(wal))[-2:] == [b"%40000d" % 2, b"last"]
            told = wal.statistics()
            assert told.state == ("degraded" if trims else "open")
            assert ("is an older copy" in told.last_error) == trims
            assert len(members(place)) == (1 if trims else 2)
    async with place.open() as wal:
        await recovered(wal)
        assert wal.statistics().state == "open", "the older copy was replaced"
    place.media[1 - older].fail()
    assert (await place.read())[-2:] == [b"%40000d" % 2, b"last"]


async def test_a_replica_with_a_hole_is_out_and_the_other_is_recovered() -> None:
    place = Place()
    async with place.recovered() as wal:
        await acked(wal, b"one", b"two", b"three")
    del place.media[0].entries[1]
    async with place.open() as wal:
        assert await recovered(wal) == [b"one", b"two", b"three"]
        assert r"wal.replicas[0] lost entries" in wal.statistics().last_error
        assert members(place) == {place.media[1].identity}


async def test_from_outside_a_damaged_replica_is_passed_over_while_another_has_it_all() -> None:
    place = Place()
    read = place.spec.read
    assert read is not None
    async with place.recovered() as wal:
        await acked(wal, b"one", b"two")
    place.media[0].entries[1] = (*place.media[0].entries[1][:2], b"garbage")
    found = [bytes(entry.data) async for entry in read(place.settings, place.services(0))]
    assert found == [b"one", b"two"]
    place.media[1].entries[:] = place.media[1].entries[:0]
    with pytest.raises(CorruptError):
        async for _ in read(place.settings, place.services(0)):
            pass


_KINDS = [FencedError, UnavailableError, FullError, NewerVersionError, CorruptError]


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
@pytest.mark.parametrize(("first", "second"), list(pairwise(_KINDS)))
async def test_of_two_errors_that_is_told_which_leaves_more_open(
    first: type[PenstockError], second: type[PenstockError], order: slice
) -> None:
    """Whichever replica has which: nobody is told of damage while the other replica may hold all."""
    place = Place()
    identify, read = place.spec.identify, place.spec.read
    assert identify is not None
    assert read is not None
    async with place.recovered() as wal:
        await acked(wal, b"one")
    for medium, kind in zip(place.media, [first, second][order], strict=True):
        medium.damage = kind(f"it is {kind.__name__}")
    reasons = f"it is {first.__name__}; it is {second.__name__}" if order.step is None else "it is"
    with pytest.raises(first, match=reasons):
        async for _ in read(place.settings, place.services(0)):
            pass
    for medium in place.media:
        medium.error, medium.damage = medium.damage, None
    with pytest.raises(first, match=reasons):
        await identify(place.settings, place.services(0))
    with pytest.raises(first, match=reasons):
        async for _ in read(place.settings, place.services(0)):
            pass


async def test_replicas_that_differ_stop_recovery() -> None:
    place = Place()
    async with place.recovered() as wal:
        await acked(wal, b"one")
    position, end, data = place.media[1].entries[0]
    place.media[1].entries[0] = (position, end, data[:-1] + b"!")
    with pytest.raises(CorruptError, match="two replicas hold different entries"):
        await place.read()


async def test_a_damaged_replica_is_out_and_the_other_is_recovered() -> None:
    place = Place()
    async with place.recovered() as wal:
        await acked(wal, b"one", b"two")
    place.media[0].entries[1] = (*place.media[0].entries[1][:2], b"garbage")
    async with place.open() as wal:
        assert await recovered(wal) == [b"one", b"two"]
        assert wal.statistics().state == "degraded"
        assert members(place) == {place.media[1].identity}


async def test_while_a_replica_is_only_unavailable_the_damage_of_another_loses_nothing() -> None:
    place = Place()
    async with place.recovered() as wal:
        await acked(wal, b"one")
    place.media[0].error = CorruptError("the log is damaged")
    place.media[1].fail()
    with pytest.raises(UnavailableError, match="no replica that holds the log can be used") as raised:
        await place.read()
    assert {"the log is damaged", "the medium failed"} == {
        reason.rpartition(": ")[2] for reason in str(raised.value).split("; ")
    }
    place.media[1].error = None
    assert await place.read() == [b"one"]


async def test_the_end_is_known_after_everything_was_trimmed() -> None:
    place = Place()
    async with place.recovered() as wal:
        appends = await acked(wal, b"one", b"two")
        await wal.trim(appends[-1].next_position)
        end = wal.statistics().end_position
        assert end > appends[-1].next_position, "a note keeps the place"
        await wal.trim(end)
        assert wal.statistics().end_position == end
    async with place.open() as wal:
        assert await recovered(wal) == []
        assert wal.statistics().end_position == end


async def test_the_first_start_needs_all_replicas_and_empty_ones() -> None:
    place = Place()
    place.media[1].fail()
    with pytest.raises(UnavailableError, match=r"^wal.replicas\[1\]: the medium failed"):
        await place.read()
    place.media[1].error = None
    place.media[1].entries = [(0, 25, encode_header(Kind.DATA, bytes(6), 0, 1) + b"x")]
    with pytest.raises(
        ConfigError, match=r"give it a place of its own; or empty this one, if .* was given up"
    ):
        await place.read()
    assert not place.words.history


async def test_two_replicas_are_not_the_same_log() -> None:
    place = Place()
    place.media[0].identity = place.media[1].identity = "same"
    with pytest.raises(ConfigError, match="two replicas are the same log"):
        await place.read()


async def test_two_replicas_in_one_place_are_refused_before_anything_is_opened() -> None:
    same = {"plugin": "wal_block", "path": "/x"}
    with pytest.raises(ValueError, match="each replica has a place of its own"):
        Settings.model_validate({"replicas": [same, {"plugin": "wal_s3"}, same]})


async def test_the_identity_is_there_as_long_as_a_replica_that_counts_is() -> None:
    place = Place()
    identify = place.spec.identify
    assert identify is not None
    assert await identify(place.settings, place.services(0)) is None
    async with place.recovered() as wal:
        identity = await identify(place.settings, place.services(0))
        assert identity
        place.media[1].fail()
        await acked(wal, b"x")
    assert await identify(place.settings, place.services(0)) == identity
    place.media[1].error = None
    place.media[0].fail()
    with pytest.raises(UnavailableError):
        await identify(place.settings, place.services(0))
    place.media[0].error = None
    place.media[0].replace()
    assert await identify(place.settings, place.services(0)) is None, "the one that is left doesn't count"


async def test_from_outside_a_replica_that_counts_is_read() -> None:
    place = Place()
    assert place.spec.read is not None
    assert place.spec.describe is not None
    with pytest.raises(NotFoundError):
        await place.spec.describe(place.settings, place.services(0))
    async with place.recovered() as wal:
        await acked(wal, b"one")
        place.media[0].fail()
        await acked(wal, b"two")
        place.media[0].error = None
        found = [bytes(entry.data) async for entry in place.spec.read(place.settings, place.services(0))]
        assert found == [b"one", b"two"]
        facts = await place.spec.describe(place.settings, place.services(0))
        assert facts["wal.replicas[0]"] == "doesn't count"
        assert facts["wal.replicas[1] entries"] == 2


# -- coming back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_replica_comes_back_while_the_log_is_written_and_holds_all_before_it_counts(
    replaced: bool,
) -> None:
    place = Place(return_after="20ms")
    async with place.recovered() as wal:
        bodies = [b"%d" % number for number in range(300)]
        appends = await acked(wal, *bodies[:100])
        await wal.trim(appends[49].next_position)
        place.media[1].fail()
        await acked(wal, *bodies[100:120])
        assert len(members(place)) == 1
        if replaced:
            place.media[1].replace()
        place.media[1].error = None
        with anyio.fail_after(HANG_S):
            for body in bodies[120:]:
                await wal.append([body]).wait_durable()
                await anyio.sleep(0.001)
            while wal.statistics().state == "degraded":
                await wal.append([b"more"]).wait_durable()
        assert len(members(place)) == 2
        await acked(wal, b"last")
    place.media[0].fail()
    found = [body for body in await place.read() if body != b"more"]
    assert found[-251:] == [*bodies[50:], b"last"]


async def test_a_replica_that_fails_while_another_one_returns_is_dropped_at_once() -> None:
    place = Place(replicas=3, return_after="10ms")
    async with place.recovered() as wal:
        place.media[2].fail()
        await acked(wal, b"one")
        place.media[2].opening = anyio.Event()
        place.media[2].error = None
        await until_word(place, len(place.words.history) + 1)
        place.media[1].fail()
        await acked(wal, b"two")
        place.media[2].opening.set()
        with anyio.fail_after(HANG_S):
            await place.words.wait(lambda: len(members(place)) == 2)
    place.media[0].fail()
    assert await place.read() == [b"one", b"two"]


async def test_a_damaged_replica_that_is_not_needed_is_to_be_emptied_not_restored() -> None:
    place = Place(return_after="5ms")
    async with place.recovered() as wal:
        await acked(wal, b"one")
    place.media[1].damage = CorruptError("the log is damaged; restore it from a copy")
    async with place.recovered() as wal:
        await until_word(place, len(place.words.history) + 1)
        await anyio.wait_all_tasks_blocked()
        assert "empty the place of replicas[1] and it's given the log" in (
            wal.statistics().replicas["replicas[1]"].last_error
        )
        place.media[1].replace()
        with anyio.fail_after(HANG_S):
            await place.words.wait(lambda: len(members(place)) == 2)


async def test_a_replica_that_can_not_return_is_tried_again_later_and_less_often() -> None:
    place = Place(return_after="5ms")
    async with place.recovered() as wal:
        place.media[1].fail()
        await acked(wal, b"one")
        tries = len(place.words.history)
        await until_word(place, tries + 3)
        assert "can't return: wal.replicas[1]: the medium failed" in (
            wal.statistics().replicas["replicas[1]"].last_error
        )
        assert wal.statistics().state == "degraded"
        await acked(wal, b"two")
        await until_word(place, tries + 5)
        assert len(wal._opened) <= 3, "what was closed is kept"


async def test_what_is_kept_for_a_replica_that_returns_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_wal, "_BACKLOG_BYTES_MAX", 100)
    place = Place(return_after="5ms")
    async with place.recovered() as wal:
        place.media[1].fail()
        await acked(wal, b"one")
        place.media[0].held = True
        two = wal.append([b"two"])
        place.media[1].error = None
        with anyio.fail_after(HANG_S):
            while wal._backlog is None:  # until it was given what is durable
                await anyio.lowlevel.checkpoint()
        appends = [wal.append([b"%d" % number * 30]) for number in range(50)]
        assert sum(len(parts[1]) for _, _, parts in wal._backlog) <= 100
        place.media[0].release()
        with anyio.fail_after(HANG_S):
            for append in (two, *appends):
                await append.wait_durable()
            await place.words.wait(lambda: len(members(place)) == 2)
    assert len(place.holds(1)) == 52


# -- random histories --------------------------------------------------------------------------------------------


class _History:
    """Owners that come and go, media that fail, hang, vanish and come back; at least one that counts stays."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.place = Place(replicas=self.random.choice([2, 3]), drop_after="3ms", return_after="3ms")
        self.acked: list[bytes] = []
        self.count = 0

    @asynccontextmanager
    async def owner(self) -> AsyncIterator[ReplicatedWal]:
        async with self.place.open() as wal:
            found = await recovered(wal)
            assert [body for body in found if body in set(self.acked)] == self.acked, (
                "what was acknowledged is there"
            )
            assert len(set(found)) == len(found)
            yield wal

    def append(self, wal: ReplicatedWal, fenced: bool) -> None:
        self.count += 1
        body = b"%d" % self.count

        def completed(append: WalAppend) -> None:
            if append.error is None:
                assert not fenced, "an old owner acknowledges nothing"
                self.acked.append(body)

        try:
            wal.append([body]).set_callback(completed)
        except PenstockError:
            return

    def disturb(self, wal: ReplicatedWal) -> None:
        counting = {replica.identity for replica in wal._counting if replica.error is None} & members(
            self.place
        )
        healthy = [m for m in self.place.media if m.error is None and not m.held and m.identity in counting]
        medium = self.random.choice(self.place.media)
        if medium.error is not None or medium.held:
            medium.error = None
            medium.release()
        elif medium not in healthy or len(healthy) > 1:
            if self.random.random() < 0.5:
                medium.held = True
            else:
                medium.fail()
                if self.random.random() < 0.5:
                    medium.replace()

    async def run(self, steps: int) -> None:
        async with AsyncExitStack() as zombies:
            old: list[ReplicatedWal] = []
            for _ in range(steps):
                wal = await zombies.enter_async_context(self.owner())
                for _ in range(self.random.randrange(1, 12)):
                    for _ in range(self.random.randrange(4)):
                        self.append(wal, fenced=False)
                    if old and self.random.random() < 0.3:
                        self.append(self.random.choice(old), fenced=True)
                    if self.random.random() < 0.4:
                        self.disturb(wal)
                    await anyio.sleep(self.random.choice([0, 0, 0.001, 0.004]))
                for (
                    medium
                ) in self.place.media:  # who starts finds its media working, as far as they are there
                    medium.error = None
                    medium.release()
                await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("seed", seeds("replica_histories"))
async def test_in_random_histories_what_was_acknowledged_is_recovered(seed: int) -> None:
    with anyio.fail_after(HANG_S):
        await _History(seed).run(8)
