"""Clauses of ``penstock.spi.object_store`` for each way of writing, and for listings and openers beside others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise
from typing import Any, Final, overload

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, ConflictError, InvalidRequestError, NotFoundError
from penstock.spi.plugin import Buffer
from penstock_conformance._body import check_body, make_body
from penstock_conformance._child import Child, Moment, Race, killed, share_of
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, raises, together
from penstock_conformance._jobs import HALTED, WRITES, write
from penstock_conformance._listings import check_listings_beside_each_other, in_order, keys_listed
from penstock_conformance._store_clock import ticked

KIND = "object_store"

#: Clocks of file systems move on by then.
_TICK_S = 0.03

_MIB: Final = 2**20
_PROCESSES: Final = 3
#: Clocks of stores may be wrong by so much; units and time zones are wrong by more.
_CLOCK_MS: Final = 15 * 60 * 1000


class _Pieces(Sequence[Buffer]):
    """Buffers in a sequence that is no list and no tuple."""

    def __init__(self, *pieces: Buffer) -> None:
        self._pieces = pieces

    def __len__(self) -> int:
        return len(self._pieces)

    @overload
    def __getitem__(self, index: int) -> Buffer: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Buffer]: ...

    def __getitem__(self, index: int | slice) -> Buffer | Sequence[Buffer]:
        return self._pieces[index]


#: Bodies of the same bytes, in one buffer and in two, as lists, tuples and others.
_CUTS: Final[Sequence[Callable[[bytearray], Sequence[Buffer]]]] = (
    lambda buffer: [memoryview(buffer)[:100], memoryview(buffer)[100:]],
    lambda buffer: (memoryview(buffer)[:100], memoryview(buffer)[100:300], memoryview(buffer)[300:]),
    lambda buffer: (buffer,),
    lambda buffer: _Pieces(memoryview(buffer)[:7], memoryview(buffer)[7:]),
)


def _ways(store: Any) -> Sequence[str]:
    """The ways of writing that the store claims."""
    return [way for way in WRITES if way == "put" or getattr(store.capabilities, way)]


def _shared(store: Any) -> None:
    if store.capabilities.durability_domain == "process" or not store.capabilities.durable:
        not_applicable("the store lives and dies with its process")


def _pieces(body: bytes, size: int = 256 * 1024) -> list[Buffer]:
    return [body[at : at + size] for at in range(0, len(body), size)]


# --- 1: semantics


async def test_each_way_of_writing_is_atomic(env: Env) -> None:
    """Readers see the old bytes or the new ones, never a mixture or nothing, whatever the way and the size."""
    async with env.open() as store:
        for way in _ways(store):
            await _write_beside_readers(store, way)


async def _write_beside_readers(store: Any, way: str) -> None:
    key = f"atomic/{way}"
    if way != "put_if_absent":
        await store.put(key, [make_body(0, 0, 3 * _MIB)])
    done = anyio.Event()

    async def write_all() -> None:
        for sequence, size in enumerate((300_000, 3 * _MIB, 2 * _MIB, 3 * _MIB), start=1):
            if way == "put_if_absent":
                await store.delete([key])
            await write(store, way, key, _pieces(make_body(0, sequence, size)))
        done.set()

    async def read() -> None:
        while not done.is_set():
            try:
                found = await store.get(key)
            except NotFoundError:
                assert way == "put_if_absent", f"an object that {way} replaces is missing for a moment"
                await checkpoint()
                continue
            try:
                check_body(found)
            except AssertionError as error:
                raise AssertionError(f"a reader beside {way}: {error}") from error

    await together([write_all, read, read])
    assert check_body(await store.get(key)).sequence == 4, f"the last {way} isn't there"


async def test_each_way_of_writing_may_be_cancelled(env: Env) -> None:
    """A cancelled call may or may not have taken effect; what took effect is whole, and what was there stays."""
    async with env.open() as store:
        for way in _ways(store):
            for turns in (0, 1, 2, 3, 5, 8, 10, 12, 15):
                key = f"cancelled/{way}-{turns}"
                replaces = way != "put_if_absent"
                if replaces:
                    await store.put(key, [make_body(0, 0, 1000)])
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(write, store, way, key, _pieces(make_body(1, turns, 700_000), 100_000))
                    for _ in range(turns):
                        await checkpoint()
                    tasks.cancel_scope.cancel()
                try:
                    check_body(await store.get(key))
                except NotFoundError:
                    assert not replaces, f"a cancelled {way} took away what was there"
                except AssertionError as error:
                    raise AssertionError(f"a cancelled {way}: {error}") from error


async def test_no_way_of_writing_keeps_a_buffer(env: Env) -> None:
    """A plugin must not keep a writable buffer past the call that it got it in; a body is any sequence of them."""
    async with env.open() as store:
        for way in _ways(store):
            for number, cut in enumerate(_CUTS):
                key = f"buffer/{way}{number}"
                if way == "compare_and_swap":
                    await store.put(key, [b"old"])
                buffer = bytearray(b"before" * 1000)
                await write(store, way, key, cut(buffer))
                buffer[:] = b"later!" * 1000
                await anyio.sleep(0.01)
                assert bytes(await store.get(key)) == b"before" * 1000, f"later bytes came in by {way}"


@clause(claims="compare_and_swap")
async def test_swap_minds_the_token_at_every_size(env: Env) -> None:
    """Replace the object only if its token is still ``token``, also by nothing, and by a large object."""
    async with env.open() as store:
        bodies: list[list[Buffer]] = [[], [b""], [b"x"], [make_body(0, 0, 9 * _MIB)]]
        for body in bodies:
            size = sum(map(len, body))
            stale = await store.put("key", [b"first"])
            current = await store.put("key", [b"second"])
            with raises(ConflictError):
                await store.compare_and_swap("key", body, stale)
            assert bytes(await store.get("key")) == b"second", f"a refused swap of {size} bytes took effect"
            newer = await store.compare_and_swap("key", body, current)
            assert bytes(await store.get("key")) == b"".join(body), f"a swap of {size} bytes has no effect"
            assert newer != current, f"a swap of {size} bytes didn't change the token"
            assert (await store.head("key")).token == newer, "swap and head disagree about the token"


async def test_what_was_written_is_told_alike(env: Env) -> None:
    """Key, size, token and time of one object: the same from ``head`` and ``list``, whichever way it was written."""
    bodies: Mapping[str, list[Buffer]] = {"nothing": [], "empty": [b""], "some": [b"123", b"", b"45678"]}
    bodies = {**bodies, "pieces": [b"%d" % number for number in range(20)]}
    async with env.open() as store:
        for way in _ways(store):
            for name, body in bodies.items():
                await _check_told(store, way, f"told/{way}-{name}", body)


async def test_time_of_an_object_is_that_of_its_newest_put(env: Env) -> None:
    """``modified_ms`` stays as long as nobody writes the object, and moves on when somebody does; 0 if unknown."""
    async with env.open() as store:
        told, ticks = [], []
        ways = [way for way in _ways(store) if way != "put_if_absent"]  # which takes only what isn't there
        for way in ("put", *ways):
            await write(store, way, "key", [b"x"])
            told.append(await store.head("key"))
            ticks.append(await ticked(store, told[-1].modified_ms))
            await anyio.sleep(_TICK_S)
            now = await store.head("key")
            listed = [each async for each in store.list("key")]
            times = {told[-1].modified_ms, now.modified_ms, *(each.modified_ms for each in listed)} - {0}
            assert len(times) <= 1, f"the time moves on though nobody writes: {sorted(times)}"
        for (earlier, later), had_ticked, way in zip(pairwise(told), ticks, ways, strict=False):
            assert not had_ticked or earlier.modified_ms < later.modified_ms, (
                f"written again by {way}, and the time is that of before: {earlier.modified_ms}"
            )


async def _check_told(store: Any, way: str, key: str, body: list[Buffer]) -> None:
    if way == "compare_and_swap" or (way != "put_if_absent" and not body):  # by nothing it's replaced, too
        await store.put(key, [b"old"])
    token = await write(store, way, key, body)
    try:
        info = await store.head(key)
    except NotFoundError:
        raise AssertionError(f"{way} returned, and there is no object: key={key}") from None
    listed = [each async for each in store.list(key)]
    assert [each.key for each in listed] == [key], f"{way} isn't listed: {listed}"
    assert (info.key, info.size) == (key, sum(map(len, body))), f"head after {way}: {info}"
    assert listed[0].size == info.size, f"a wrong size is listed after {way}: {listed[0]}"
    assert token in (None, info.token), f"head and {way} disagree about the token: {token} {info}"
    assert listed[0].token in ("", info.token), f"another token is listed after {way}: {listed[0]} {info}"
    now_ms = time.time_ns() // 1_000_000
    for each in (info, listed[0]):
        late = each.modified_ms and abs(each.modified_ms - now_ms) > _CLOCK_MS
        assert not late, f"the time isn't in ms since the epoch: modified_ms={each.modified_ms} now={now_ms}"
    if store.capabilities.compare_and_swap:
        await store.compare_and_swap(key, [b"swapped"], info.token)
        assert bytes(await store.get(key)) == b"swapped", f"the token after {way} is none to swap with"


async def test_ranges_of_empty_objects_are_empty(env: Env) -> None:
    """The bytes [start, end) of the object; to its end if ``end`` is None or past the end, however far."""
    async with env.open() as store:
        await store.put("empty", [])
        await store.put("some", [b"0123456789"])
        for end in (None, 0, 1, 4096, 2**32, 2**32 + 5, 2**40, 2**62):
            assert bytes(await store.get("empty", 0, end)) == b"", f"a range of an empty object: end={end}"
            if end is None or end >= 10:
                for start in (0, 3, 10):
                    found = bytes(await store.get("some", start, end))
                    assert found == b"0123456789"[start:], f"the range [{start}, {end}) is {found!r}"
        for start, end in ((1, None), (1, 1), (1, 5)):
            with raises(InvalidRequestError):
                await store.get("empty", start, end)


async def test_listings_are_each_for_itself(env: Env) -> None:
    """A listing tells all objects, beside another one, after one that was left half-way, and as they are deleted."""
    keys = [f"each/{number:02}" for number in range(35)]
    async with env.open() as store:
        for key in keys:
            await store.put(key, [b"x"])
        await check_listings_beside_each_other(store, "each/", keys)
        told = []
        async for info in store.list("each/"):
            told.append(info.key)
            await store.delete([info.key])
        assert in_order(store, told) == keys, (
            f"a listing whose objects are deleted tells {len(told)} of {len(keys)}"
        )
        for key in keys:
            await store.put(key, [b"x"])
        told = []
        async for info in store.list("each/"):
            if not told:
                await store.delete(keys[1::2])
            told.append(info.key)
            assert info.size == 1, f"an object that never was so large is listed: {info}"
        lost = set(keys[::2]) - set(told)
        assert not lost, f"a listing ahead of which objects are deleted misses others: {sorted(lost)}"


async def test_openers_end_each_for_itself(env: Env) -> None:
    """Leaving the context ends what was opened, and nothing of another opener."""

    async def use(store: Any, number: int) -> None:
        key = f"opener/{number}"
        await store.put(key, [key.encode()])
        assert bytes(await store.get(key)) == key.encode()
        assert key in await keys_listed(store)

    async with AsyncExitStack() as last:
        uploads: list[Any] = []
        for number in range(3):
            async with AsyncExitStack() as first:
                one = await first.enter_async_context(env.open())
                other = await last.enter_async_context(env.open())
                await together([partial(use, one, number), partial(use, other, number + 10)])
                if other.capabilities.multipart:
                    uploads.append(await other.create_multipart(f"upload/{number}"))
                    await uploads[-1].write_part([b"first-"])
            await use(other, number + 20)
        for number, upload in enumerate(uploads):  # begun before others were opened, and left
            await upload.write_part([b"second"])
            await upload.complete()
            assert bytes(await other.get(f"upload/{number}")) == b"first-second", "an upload lost a part"


# --- 2: races between processes


@clause(level=2)
async def test_objects_appear_whole_between_processes(env: Env) -> None:
    """Atomic: readers see no object, the old one or the new one, whichever way another process writes it."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(env.open())
        _shared(store)
        ways = [way for way in _ways(store) for _ in range(6 * env.rounds)]
        child = await stack.enter_async_context(Child(env, "write_when_told", size=2 * _MIB))
        assert await child.next() == "ready", "the child process failed to open the store"
        for number, way in enumerate(ways):
            key = f"appears/{number}"
            halts = number % 6 >= 2  # after those by which it has learned how long one takes
            if way != "put_if_absent":
                # half of what is replaced is as large as what comes
                await store.put(key, [make_body(0, 0, (2 + number % 2) * _MIB)])
            order = {"key": key, "way": way, "sequence": number + 1}
            await child.tell({**order, "halt": share_of(number) if halts else 0.0})
            answer = await child.next() if halts else None
            if answer == HALTED:
                async with child.asleep():
                    await _sequence_of(store, key, way)
                answer = await child.next()
            while await _sequence_of(store, key, way) != number + 1:
                pass
            assert (answer or await child.next()) == number + 1, "the child process failed"
            await store.delete([key])


async def _sequence_of(store: Any, key: str, way: str) -> int:
    """Of the object that another process writes in this way; 0 if it isn't there yet."""
    try:
        return check_body(await store.get(key)).sequence
    except NotFoundError:
        assert way == "put_if_absent", f"what {way} of another process replaces is missing"
    except AssertionError as error:
        raise AssertionError(f"a reader beside {way} of another process: {error}") from error
    return 0


@clause(level=2, claims="put_if_absent")
async def test_large_objects_have_one_creator_among_processes(env: Env) -> None:
    """``put_if_absent`` is atomic over every process that uses the store, whatever the size."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(env.open())
        _shared(store)
        children = [
            await stack.enter_async_context(Child(env, "create_race", owner=owner, size=2 * _MIB))
            for owner in range(_PROCESSES)
        ]
        for child in children:
            assert await child.next() == "ready", "a child process failed to open the store"
        race = Race(children)
        for number in range(18 * env.rounds):
            key = f"race/{number}"
            order = {"key": key, "at": time.monotonic() + 0.002}
            won = await race.answers(order, number % _PROCESSES if number % 3 else None, share_of(number))
            assert won.count(True) == 1, f"{won.count(True)} of {_PROCESSES} creators won: key={key}"
            assert check_body(await store.get(key)).owner == won.index(True), "the object isn't the winner's"
            with raises(AlreadyExistsError):
                await store.put_if_absent(key, [b"late"])
            await store.delete([key])


# --- 3: crashes


@clause(level=3, claims="durable")
async def test_created_and_completed_objects_survive_a_kill(env: Env) -> None:
    """Durable when it returns, and whole over a crash, whichever way an object is written."""
    async with env.open() as store:
        _shared(store)
    for owner in range(1, 8 * env.rounds + 1):
        order = {"owner": owner, "seed": env.random.randrange(2**32)}
        # more in a call, as the kill has to meet the very way of writing that leaves halves
        moment: Moment = "at an ack" if owner % 4 == 1 else "in a call"
        acked = await killed(env, "write_until_killed", moment, 12, **order)
        async with env.open() as store:
            for key, way, sequence in acked:
                try:
                    label = check_body(await store.get(key))
                except NotFoundError:
                    raise AssertionError(f"{way} was acknowledged and is lost: key={key}") from None
                assert label == (owner, sequence), f"another object than {way} wrote: key={key}"
            listed = await keys_listed(store)
            for key in listed:
                try:
                    check_body(await store.get(key))
                except AssertionError as error:
                    raise AssertionError(f"half an object after a crash: key={key} {error}") from error
            await store.delete(listed)
