"""Clauses of ``penstock.spi.wal`` about calls that meet each other, the end of the log, or somebody who gives up."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import ConfigError, FencedError, FullError, PenstockError
from penstock.spi.wal import BoundedLog, WalAppend
from penstock_conformance._child import Child
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, given_up, raises, together
from penstock_conformance._private import each_access, without_umask
from penstock_conformance._told_sizes import check_memory, told_sizes
from penstock_conformance._wal_steps import append_all, check_same, make_bodies, read, recovered, surviving

KIND = "wal"

#: Turns of the event loop after which somebody gives up, or another comes.
_TURNS = (0, 1, 2, 3, 5)
#: Appends that follow each other without a pause; of a slow log there would be millions.
_AT_FULL_SPEED = 20_000


# --- trims


@clause(claims="bounded")
async def test_each_of_several_trims_at_once_has_made_room(env: Env) -> None:
    """A bounded log has their room again when *this* returns, also when another trim is on its way."""
    async with env.open() as wal:
        await recovered(wal)
        for number, places in enumerate(((8, 8), (3, 8), (8, 3, 5), (2, 8, 8, 6))):
            appends = await append_all(wal, make_bodies(9, owner=number))
            too_early: list[int] = []

            async def trim(place: int, appends: list[WalAppend], too_early: list[int]) -> None:
                await wal.trim(appends[place].next_position)
                if wal.statistics().trimmed_position < appends[place].next_position:
                    too_early.append(place)

            await together([partial(trim, place, appends, too_early) for place in places])
            assert not too_early, (
                f"of trims at once to entries {places} of 9 those to {too_early} returned without their room"
            )


@clause(claims="bounded")
async def test_trim_of_who_was_just_told_makes_room(env: Env) -> None:
    """What was acknowledged when ``trim`` is called has its room again: also in the turn in which that was told."""
    async with env.open() as wal:
        await recovered(wal)
        for number in range(3):
            appends = [wal.append([body]) for body in make_bodies(5, owner=number)]
            end = appends[-1].next_position
            async with anyio.create_task_group() as tasks:
                appends[-1].set_callback(lambda _, end=end, tasks=tasks: tasks.start_soon(wal.trim, end))
                await appends[-1].wait_durable()
            told = wal.statistics().trimmed_position
            assert told >= end, f"acknowledged up to {end} when a trim was called, and trimmed up to {told}"


# --- seals


@clause(claims="seal")
async def test_each_of_several_seals_has_sealed(env: Env) -> None:
    """From the return of *this* call on nothing is acknowledged: beside another seal, and after one given up."""

    async def seal(wal: Any, who: str) -> None:
        try:
            await wal.seal()
        except PenstockError:
            return  # it isn't said to be sealed
        returned.append(who)
        try:
            await wal.append([b"late"]).wait_durable()
        except PenstockError:
            return
        acked.append(who)

    for number, turns in enumerate(_TURNS):
        returned: list[str] = []
        acked: list[str] = []
        place = env.elsewhere(f"sealed-{turns}")
        async with place.open(epoch=1) as wal:
            await recovered(wal)
            await append_all(wal, make_bodies(2))
            if number % 2:
                await given_up(turns, wal.seal)
                await seal(wal, "the one after it was given up")
            else:
                await together([partial(seal, wal, f"number {each}") for each in range(3)])
                assert returned, "of several seals at once none was done"
            assert not acked, f"a seal returned, {acked[0]}, and an append behind it was acknowledged"
        async with place.open(epoch=2) as wal:
            found = [bytes(entry.data) for entry in await recovered(wal)]
            check_same(found[:2], make_bodies(2), "of a sealed log")
            if returned:
                with raises(PenstockError):
                    await wal.append([b"later"]).wait_durable()


# --- the end


async def test_what_is_under_way_when_the_log_is_left_is_answered(env: Env) -> None:
    """Leaving the context answers every waiter: also trims and seals; one that says that it has sealed has."""
    epoch = 0
    for turns in _TURNS:
        epoch += 2
        returned: list[str] = []

        async def call(what: str, function: Callable[[], Awaitable[object]], returned: list[str]) -> None:
            with suppress(PenstockError):
                await function()
                returned.append(what)

        place = env.elsewhere(f"left-{turns}")
        async with anyio.create_task_group() as tasks:
            async with place.open(epoch=epoch) as wal:
                await recovered(wal)
                appends = await append_all(wal, make_bodies(6))
                pending = [wal.append([body]) for body in make_bodies(2, owner=1)]
                tasks.start_soon(call, "trim", partial(wal.trim, appends[3].next_position), returned)
                if wal.capabilities.seal and turns % 2:
                    tasks.start_soon(call, "seal", wal.seal, returned)
                for _ in range(turns):
                    await checkpoint()
            assert all(append.done for append in pending), "an append wasn't answered when the log was left"
        async with place.open(epoch=epoch + 1) as wal:
            if wal.capabilities.durability_domain == "process":
                continue
            found = [bytes(entry.data) for entry in await recovered(wal)]
            # what is trimmed may come again, and what wasn't acknowledged may be there
            every = [*make_bodies(6), *make_bodies(2, owner=1)]
            begin = every.index(found[0]) if found and found[0] in every else len(every)
            end = begin + len(found)
            assert found == every[begin:end], "other entries than were appended, or in another order"
            acked = 6 + sum(append.error is None for append in pending)
            assert begin <= 4, "entries are lost that weren't trimmed"
            assert end >= acked, f"of {acked} acknowledged entries the last {acked - end} are lost"
            if "seal" in returned:
                with raises(PenstockError):
                    await wal.append([b"later"]).wait_durable()


# --- appends


async def test_entries_that_keep_coming_hold_no_other_up(env: Env) -> None:
    """An append completes when it is durable, and a trim returns, however many others come meanwhile."""
    async with env.open() as wal:
        await recovered(wal)
        old = (await append_all(wal, make_bodies(2)))[-1]
        until = time.monotonic() + env.target.deadline_s / 4
        count = 0
        first = last = wal.append([b"first"])
        trimmed: list[bool] = []

        async def trim() -> None:
            await wal.trim(old.next_position)
            trimmed.append(True)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(trim)
            while not (first.done and trimmed) and time.monotonic() < until:
                try:
                    last = wal.append([b"another"])
                except FullError:
                    break
                count += 1
                await (checkpoint() if count < _AT_FULL_SPEED else anyio.sleep(0.001))
            had_to_wait = not first.done
            trim_had_to_wait = not trimmed and time.monotonic() >= until
            together_with: list[bool] = []
            first.set_callback(lambda _: together_with.append(wal.statistics().pending_entries == 0))
            await last.wait_durable()
        # a medium may be slower than that, and takes the first group alone all the same
        assert not (had_to_wait and together_with[0]), "nothing became durable until nothing more came"
        assert had_to_wait or not trim_had_to_wait, (
            "a trim didn't return as long as something was appended, and entries became durable meanwhile"
        )


async def test_statistics_know_what_a_callback_is_told(env: Env) -> None:
    """``pending_entries`` wait to be durable: not the entry whose completion is told just now, nor one before it."""
    async with env.open() as wal:
        await recovered(wal)
        for count in (1, 2, 30):
            appends = [wal.append([body]) for body in make_bodies(count, owner=count)]
            too_many: list[int] = []

            def told(
                append: WalAppend, appends: list[WalAppend] = appends, too_many: list[int] = too_many
            ) -> None:
                behind = len(appends) - 1 - appends.index(append)
                if wal.statistics().pending_entries > behind:
                    too_many.append(behind)

            for append in appends:
                append.set_callback(told)
            await appends[-1].wait_durable()
            assert not too_many, (
                f"as the entry before {too_many[0]} others was told to be durable, more than these pend"
            )


# --- openings


async def test_opening_that_was_given_up_keeps_nobody_out(env: Env) -> None:
    """Who is cancelled while he opens or recovers the log leaves it to the next owner, with all that is there."""
    bodies = make_bodies(12)
    async with env.open(epoch=1) as wal:
        surviving(wal)
        await recovered(wal)
        await append_all(wal, bodies)
    for number, turns in enumerate((*_TURNS, 9, 20)):

        async def begin(epoch: int = 2 * number + 2) -> None:
            async with env.open(epoch=epoch) as wal:
                seen = 0
                try:
                    async for _ in wal.recover():
                        seen += 1
                except BaseException:
                    if seen < len(bodies):  # behind the last one it may be over
                        with raises(PenstockError):
                            wal.append([b"recovery didn't come to its end"])
                    raise

        await given_up(turns, begin)
        found = await read(env, 2 * number + 3)
        check_same(found, bodies, f"after an opening that was given up after {turns} turns")


@clause(claims="fencing")
async def test_refused_opener_changes_nothing(env: Env) -> None:
    """FencedError if a newer owner holds the log, or held it: of entries, trims and a seal all is as it was."""
    for seals in (False, True):
        place = env.elsewhere(f"refused-{seals}")
        bodies = make_bodies(10)
        async with place.open(epoch=5) as wal:
            await recovered(wal)
            appends = await append_all(wal, bodies)
            await wal.trim(appends[4].next_position)
            if seals:
                if not wal.capabilities.seal:
                    break
                await wal.seal()
        for epoch in (1, 4, 5):
            with raises(FencedError):
                async with place.open(epoch=epoch) as older:
                    await recovered(older)
        async with place.open(epoch=6) as wal:
            found = [bytes(entry.data) for entry in await recovered(wal)]
            check_same(found[-5:], bodies[5:], "after openers that were refused")
            end = wal.statistics().end_position
            assert end < 0 or end >= appends[-1].next_position, "the log ends before its last entry"
            if seals:
                with raises(FencedError):
                    await wal.append([b"late"]).wait_durable()
                continue
            added = (await append_all(wal, make_bodies(1, owner=1)))[0]
            assert added.position >= appends[-1].next_position, "a position was given twice"


@clause(level=2, claims="identity")
async def test_logs_of_two_processes_have_two_identities(env: Env) -> None:
    """Another one for every other log, wherever it is made: also by processes that began alike."""
    identities: list[str] = []
    for number in range(2):
        place = env.elsewhere(f"process-{number}")
        async with Child(place, "make_log") as child:
            identities += await child.finish()
    assert None not in identities, "there is a log, and it has no identity"
    if len(set(identities)) < 2:
        async with env.elsewhere("one").open() as one, env.elsewhere("two").open(epoch=2) as two:
            if one.location == two.location:
                not_applicable("the settings name one place, whatever the data directory")
    assert len(set(identities)) == 2, f"logs of two processes have one identity: {identities[0]}"


async def test_formatting_asks_before_anything_is_lost(env: Env) -> None:
    """ConfigError where a log is, unless the words that this error asks for are said; then all there is lost."""
    spec = env.spec()
    if getattr(spec, "format", None) is None:
        not_applicable("the plugin makes no place ready for a log")
    bodies = make_bodies(4)
    async with env.open(epoch=1) as wal:
        surviving(wal)
        claims_identity = wal.capabilities.identity
        await recovered(wal)
        await append_all(wal, bodies)
    identity = await env.identify() if claims_identity else None
    asked: list[str] = []
    told = ""
    for words in ("", "yes", "force", "erase", "-"):
        if words and words in told:  # in quotes or without, it may be asked for
            continue
        try:
            await env.format(words)
        except ConfigError as error:
            told = str(error)
            asked = re.findall(r"[\'\"]([^\'\"]+)[\'\"]", str(error))
        else:
            raise AssertionError(f"a log was formatted for {words!r}, and nobody asks for that")
        assert (await env.identify() if claims_identity else None) == identity, (
            "who was refused has changed the log"
        )
    check_same(await read(env, 2), bodies, "of a log whose formatting was refused")
    if not asked:
        not_applicable(
            "the error doesn't quote the words that it asks for: nobody can tell them from the others"
        )
    alike = {each for words in asked for each in (words.upper(), words[:-1], words.split(" ")[0])}
    for words in sorted(alike - {"", *asked}):
        with raises(ConfigError):
            await env.format(words)
    for words in asked:  # the error may quote other things, too
        try:
            await env.format(words)
            break
        except ConfigError:
            continue
    else:
        raise AssertionError(f"none of the words that the error quotes is taken: {asked}")
    check_same(await read(env, 3), [], "of a log that was formatted")
    assert not claims_identity or await env.identify() != identity, (
        "a formatted log has the old one's identity"
    )
    with raises(ConfigError):  # a log without entries is one
        await env.format("")
    async with env.open(epoch=4) as wal:
        await recovered(wal)
        await wal.trim((await append_all(wal, bodies))[-1].next_position)
        path = Path(str(wal.location))
    with raises(ConfigError):  # so is one that was trimmed to its end
        await env.format("")
    if _spoiled(path, env.random.randbytes(8192)):
        with raises(ConfigError):  # what can't be read may be somebody's
            await env.format("")


def _spoiled(path: Path, noise: bytes) -> bool:
    """Whether the log is a file, which begins with ``noise`` now."""
    if not path.is_file():
        return False
    path.write_bytes(noise + path.read_bytes()[len(noise) :])
    return True


# --- entries


async def test_recovered_entries_outlive_their_log(env: Env) -> None:
    """``data`` stays so while it is referenced: when the log is closed, trimmed and written anew, too."""
    bodies = make_bodies(20, 300)
    async with env.open(epoch=1) as wal:
        await recovered(wal)
        await append_all(wal, bodies)
    async with env.open(epoch=2) as wal:
        entries = await recovered(wal)
        wanted = [bytes(entry.data) for entry in entries]
        outside = await env.read_outside() if env.can_read_outside() else []
        for number in range(3):
            end = (await append_all(wal, make_bodies(20, 300, owner=number + 1)))[-1].next_position
            await wal.trim(end)
    check_same(
        [bytes(entry.data) for entry in entries], wanted, "recovered, looked at when the log was closed"
    )
    if outside:
        check_same([bytes(entry.data) for entry in outside], wanted, "read from outside, looked at later")


async def test_sizes_are_told_before_as_they_are(env: Env) -> None:
    """``sizes`` tells before anything is opened what an opened log then claims: the largest entry, and its room; and
    what it charges as long as it is open."""
    told = told_sizes(env)
    async with env.open() as wal:
        check_memory(env, told)
        largest = wal.capabilities.entry_bytes_max
        assert told.entry is None or told.entry.size == largest, (
            f"sizes tells of entries of {told.entry and told.entry.size} bytes, and the log takes {largest}"
        )
        if wal.capabilities.bounded and isinstance(wal, BoundedLog):
            await recovered(wal)
            assert wal.would_fit(largest), "an empty log has no room for its largest entry"


async def test_files_are_for_nobody_else(env: Env) -> None:
    """``access`` are the modes of local directories and files that hold data, whatever the umask says."""
    for place, access in each_access(env):
        with without_umask(place, access) as check_modes:
            for epoch in (1, 2):
                async with place.open(epoch=epoch, access=access) as wal:
                    await recovered(wal)
                    await append_all(wal, make_bodies(3, 300, owner=epoch))
                    check_modes()
