"""Clauses of ``penstock.spi.object_store``."""

from __future__ import annotations

import gzip
import time
import zlib
from collections import UserList
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, ConflictError, InvalidRequestError, NotFoundError
from penstock.spi.plugin import Buffer
from penstock_conformance._body import check_body, make_body
from penstock_conformance._child import MOMENTS, Child, Race, killed, share_of
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, call, raises, together
from penstock_conformance._jobs import HALTED
from penstock_conformance._listings import keys_listed

KIND = "object_store"

_PROCESSES = 4


def _shared(store: Any) -> None:
    """Races and crashes need a store that more than one process sees."""
    if store.capabilities.durability_domain == "process" or not store.capabilities.durable:
        not_applicable("the store lives and dies with its process")


# --- 1: semantics


async def test_get_returns_what_put_wrote(env: Env) -> None:
    """Write the object as the concatenation of ``body``: buffers of any kind, any number, also empty."""
    bodies: dict[str, list[Any]] = {
        "none": [],
        "empty": [b""],
        "one": [b"x"],
        "kinds": [b"ab", bytearray(b"cd"), memoryview(b"xefx")[1:3], b"", memoryview(bytearray(b"gh"))],
        "large": [env.random.randbytes(300_000), env.random.randbytes(700_001)],
        "many": [bytes([number % 256]) for number in range(3000)],
        # what a store might take for its own way of keeping objects
        "gzip": [gzip.compress(b"text")],
        "zlib": [zlib.compress(b"text" * 99)],
        "marked": [b"\xef\xbb\xbftext\r\n"],
    }
    async with env.open() as store:
        for key, body in bodies.items():
            await store.put(key, body)
        for key, body in bodies.items():
            assert bytes(await store.get(key)) == b"".join(body), f"other bytes came back: key={key}"


async def test_put_keeps_no_buffer_of_the_caller(env: Env) -> None:
    """A plugin must not keep a writable buffer past the call that it got it in."""
    async with env.open() as store:
        buffer = bytearray(b"before" * 1000)
        await store.put("key", [buffer])
        buffer[:] = b"later!" * 1000
        assert bytes(await store.get("key")) == b"before" * 1000, "the caller's later bytes are in the object"


async def test_get_returns_the_asked_range(env: Env) -> None:
    """The bytes [start, end) of the object; to its end if ``end`` is None or past the end."""
    data = env.random.randbytes(10_000)
    async with env.open() as store:
        await store.put("key", [data])
        ranges: list[tuple[int, int | None]] = [
            *((0, 0), (0, 1), (9_999, 10_000), (10_000, 10_000), (10_000, None), (0, None), (1, None)),
            *((9_999, 20_000), (0, 10_000), (4_096, 8_192), (4_095, 8_193)),
        ]
        for _ in range(40):
            start = env.random.randrange(10_001)
            ranges.append((start, env.random.randrange(start, 10_500)))
        for start, end in ranges:
            got = bytes(await store.get("key", start, end))
            assert got == data[start:end], f"wrong bytes for the range [{start}, {end}): {len(got)} bytes"


async def test_bad_ranges_are_refused(env: Env) -> None:
    """InvalidRequestError if ``start`` is negative or past ``end``, also of no object, or past the object's end."""
    async with env.open() as store:
        await store.put("key", [b"0123456789"])
        for start, end in ((11, None), (11, 20)):
            with raises(InvalidRequestError):
                await store.get("key", start, end)
        for key in ("key", "missing"):
            for start, end in ((-1, None), (-5, 5), (5, 4)):
                with raises(InvalidRequestError):
                    await store.get(key, start, end)


async def test_ranges_are_of_the_newest_object(env: Env) -> None:
    """Write the object, replacing what was there: a ranged read after a put never sees older bytes."""
    async with env.open() as store:
        for number in range(8):
            data = bytes([number]) * (6000 - 100 * number)
            await store.put("key", [data])
            assert bytes(await store.get("key", 1000, 5000)) == data[1000:5000], "a stale range"
            assert bytes(await store.get("key")) == data, "a stale object"
            assert (await store.head("key")).size == len(data), "a stale size"


async def test_result_of_get_outlives_the_object(env: Env) -> None:
    """The result is read-only for the caller and stays valid as long as it is referenced."""
    data = env.random.randbytes(20_000)
    large = env.random.randbytes(200_000)
    async with env.open() as store:
        await store.put("large", [large])
        parts = [await store.get("large", start, start + 150_000) for start in range(20)]
        await store.put("key", [data])
        whole, part = await store.get("key"), await store.get("key", 5_000, 15_000)
        await store.put("key", [bytes(20_000)])
        await store.delete(["key"])
        await store.put("other", [bytes(20_000)])
    assert bytes(whole) == data, "an earlier result changed"
    assert bytes(part) == data[5_000:15_000], "an earlier ranged result changed"
    changed = [start for start, found in enumerate(parts) if found != large[start : start + 150_000]]
    assert not changed, f"of 20 large results {len(changed)} changed"


async def test_missing_object_is_not_found(env: Env) -> None:
    """Raises NotFoundError if there is no such object."""
    async with env.open() as store:
        await store.put("there/deep", [b"x"])
        for key in ("missing", "missing/deep", "there", "there/dee"):
            with raises(NotFoundError):
                await store.get(key)
            for start in (0, 1, 2**40):  # no range of nothing is a wrong one
                with raises(NotFoundError):
                    await store.get(key, start, start + 1)
            with raises(NotFoundError):
                await store.head(key)


async def test_head_tells_key_and_size(env: Env) -> None:
    """Size and token of one object."""
    async with env.open() as store:
        token = await store.put("a/key", [b"12345", b"678"])
        info = await store.head("a/key")
        assert (info.key, info.size) == ("a/key", 8)
        assert info.token == token, "put and head disagree about the token"


async def test_deleted_objects_are_gone(env: Env) -> None:
    """Delete the objects; those that don't exist are fine."""
    async with env.open() as store:
        keys = [f"many/{number:03}" for number in range(30)]
        for key in keys:
            await store.put(key, [b"x"])
        await store.delete([*keys[:20], "never/was"])
        assert await keys_listed(store, "many/") == keys[20:]
        with raises(NotFoundError):
            await store.get(keys[0])
        await store.delete(keys[:20])
        await store.delete([])
        await store.delete(tuple(keys[20:25]))  # any sequence
        assert await keys_listed(store, "many/") == keys[25:], "keys that were named in a tuple are there"
        await store.delete(UserList(keys[25:28]))
        assert await keys_listed(store, "many/") == keys[28:], "keys are there that were named in a sequence"


@clause(claims="ordered_listing")
async def test_listing_is_ordered(env: Env) -> None:
    """Objects whose key starts with ``prefix`` and is greater than ``start_after``, in ascending order."""
    keys = [
        *("a", "a-b", "a.b/c", "a/b", "a/b-", "a0", "aB", "ab/1", "ab/10", "ab/2", "b/x/y/z", "b/x-y"),
        *("c/%41", "c/A", "c/a b", "c/~", "c/+", "c/#1", "z"),
    ]
    # A directory can't be an object at the same time where the store is a file tree; the contract leaves that open.
    keys.remove("a")
    async with env.open() as store:
        for key in env.random.sample(keys, len(keys)):
            await store.put(key, [key.encode()])
        for prefix in ("", "a", "a/", "ab/", "ab/1", "b/x", "c/", "nothing"):
            for start_after in ("", "a/", "a/b", "aa", "ab/1", "b", "b/w", "c/a b", "zz"):
                wanted = sorted(key for key in keys if key.startswith(prefix) and key > start_after)
                got = await keys_listed(store, prefix, start_after)
                assert got == wanted, (
                    f"prefix={prefix!r} start_after={start_after!r}: {got} instead of {wanted}"
                )
        async for info in store.list():
            assert info.size == len(info.key), f"wrong size listed: key={info.key}"
            assert bytes(await store.get(info.key)) == info.key.encode()
        alike = [f"{'long-' * 14}{number}" for number in range(4)]  # in all but the last character
        for key in alike:
            await store.put(key, [key.encode()])
        for place, key in enumerate(alike):
            got = await keys_listed(store, "long", key)
            assert got == alike[place + 1 :], f"start_after={key!r}: {got} instead of {alike[place + 1 :]}"
            assert bytes(await store.get(key)) == key.encode(), "an object whose key begins alike"


async def test_listing_sees_completed_puts_at_once(env: Env) -> None:
    """Sees every object whose put completed before the call (no listing cache)."""
    async with env.open() as store, env.open() as second:
        for number in range(10):
            await store.put(f"dir/{number}", [b"x"])
            assert await keys_listed(store, "dir/") == [f"dir/{n}" for n in range(number + 1)], (
                "a stale listing"
            )
        await store.delete(["dir/3"])
        assert "dir/3" not in await keys_listed(store, "dir/"), "a deleted object is listed"
        if store.capabilities.put_if_absent:
            await store.put_if_absent("dir/new", [b"x"])
            assert "dir/new" in await keys_listed(store), "a created object isn't listed"
        if store.location == second.location and store.capabilities.durable:
            assert await keys_listed(second) == await keys_listed(store), "another opener's listing is stale"


@clause(claims="durable")
async def test_objects_outlive_the_opener(env: Env) -> None:
    """Objects outlive the process that wrote them."""
    async with Child(env, "overwrite", key="a/b", owner=1, sizes=[100, 3000], shares=[0.0, 0.0]) as child:
        await child.finish()
    async with env.open() as store:
        assert check_body(await store.get("a/b")).sequence == 1
        assert await keys_listed(store) == ["a/b"]


@clause(claims="put_if_absent")
async def test_put_if_absent_creates_once(env: Env) -> None:
    """Like ``put``, but only if there is no such object. AlreadyExistsError if somebody else's object is there."""
    async with env.open() as store:
        token = await store.put_if_absent("key", [b"fir", b"st"])
        assert (await store.head("key")).token == token
        with raises(AlreadyExistsError):
            await store.put_if_absent("key", [b"second"])
        assert bytes(await store.get("key")) == b"first", "the loser's bytes are in the object"
        await store.delete(["key"])
        await store.put_if_absent("key", [b"third"])
        await store.put("plain", [b""])
        with raises(AlreadyExistsError):
            await store.put_if_absent("plain", [b"x"])


@clause(claims="put_if_absent")
async def test_put_if_absent_has_one_winner_among_tasks(env: Env) -> None:
    """Every method is safe to call from several tasks at once; exactly one creator wins, also of what was deleted."""
    async with env.open() as store:
        for number in range(10):
            key = f"race/{number}"
            winners: list[int] = []
            if number % 2:
                await store.put(key, [b"before"])
                await store.delete([key])

            async def create(owner: int, key: str = key, winners: list[int] = winners) -> None:
                try:
                    await store.put_if_absent(key, [make_body(owner, 0, 5000)])
                except AlreadyExistsError:
                    return
                winners.append(owner)

            await together([call(create, owner) for owner in range(8)])
            assert len(winners) == 1, f"{len(winners)} creators won: key={key}"
            assert check_body(await store.get(key)).owner == winners[0], "the object isn't the winner's"


@clause(claims="compare_and_swap")
async def test_swap_needs_the_current_token(env: Env) -> None:
    """Replace the object only if its token is still ``token``. ConflictError if it changed or vanished."""
    async with env.open() as store:
        first = await store.put("key", [b"1"])
        second = await store.compare_and_swap("key", [b"2"], first)
        assert second != first, "the token didn't change"
        for stale in (first, "nonsense"):
            with raises(ConflictError):
                await store.compare_and_swap("key", [b"x"], stale)
        with raises(ConflictError):
            await store.compare_and_swap("key", [b"2"], first)  # somebody else's, though it has these bytes
        with raises(ConflictError, InvalidRequestError):
            await store.compare_and_swap("key", [b"x"], "")  # nobody's
        assert bytes(await store.get("key")) == b"2", "a refused swap changed the object"
        assert (await store.head("key")).token == second
        third = await store.put("key", [b"3"])  # the same bytes might have the same token
        with raises(ConflictError):
            await store.compare_and_swap("key", [b"x"], second)
        await store.delete(["key"])
        with raises(ConflictError):
            await store.compare_and_swap("key", [b"x"], third)
        with raises(NotFoundError):
            await store.get("key")
        for body in (b"4", b"5", b"6"):  # after a deletion, too, other bytes have other tokens
            await store.put("key", [body])
            for gone in (first, second, third):
                with raises(ConflictError):
                    await store.compare_and_swap("key", [b"x"], gone)
        mine, others = (await store.head("key")).token, await store.put("another", [b"of another object"])
        if others != mine:  # a store may count the writes of each key
            with raises(ConflictError):
                await store.compare_and_swap("key", [b"x"], others)
            assert bytes(await store.get("key")) == b"6", "a swap for another object's token took effect"


@clause(claims="append")
async def test_append_needs_the_end_of_the_object(env: Env) -> None:
    """Behind the first ``offset`` bytes, which must be all of it: else ConflictError, and nothing is changed."""
    async with env.open() as store:
        with raises(ConflictError):
            await store.append("key", [b"x"], 1)
        with raises(NotFoundError):
            await store.head("key")
        expected, tokens = b"", []
        for body in (b"one", b"two" * 1000, b"three", bytes(range(256)) * 5000):
            half = len(body) // 2
            tokens.append(await _grow(store, "key", expected, [body[:half], memoryview(body)[half:]]))
            expected += body
            info = await store.head("key")
            assert (info.size, info.token) == (len(expected), tokens[-1]), "another size, or another token"
            assert bytes(await store.get("key")) == expected, "what was appended isn't there as it was"
            for elsewhere in (0, 1, len(expected) - 1, len(expected) + 1):
                with raises(ConflictError):
                    await store.append("key", [b"x"], elsewhere)
            assert bytes(await store.get("key")) == expected, "a refused append changed the object"
        has_none = not store.capabilities.compare_and_swap and set(tokens) == {""}
        assert has_none or len(set(tokens)) == len(tokens), "an append left the token as it was"
        assert bytes(await store.get("key", 3, 6)) == b"two"
        for body, offset in ((b"x", -1), (b"", len(expected))):
            with raises(InvalidRequestError):
                await store.append("key", [body], offset)
        await store.put("key", [b"short"])
        with raises(ConflictError):
            await store.append("key", [b"x"], len(expected))
        await store.append("key", [b"er"], 5)
        assert bytes(await store.get("key")) == b"shorter"
        await store.delete(["key"])
        with raises(ConflictError):
            await store.append("key", [b"x"], 7)
        await store.append("key", [b"anew"], 0)
        assert bytes(await store.get("key")) == b"anew"
    async with env.open() as store:
        await store.put("key", [b"anew"])
        await store.append("key", [b"!"], 4)
        assert bytes(await store.get("key")) == b"anew!"


async def _grow(store: Any, key: str, there: bytes, body: Sequence[Buffer]) -> str:
    """Append to the object that has the bytes ``there``; anew, if the store takes no more to this one."""
    try:
        token: str = await store.append(key, body, len(there))
    except InvalidRequestError:
        if not there:
            raise
        await store.put(key, [there])
        token = await store.append(key, body, len(there))
    return token


@clause(claims="append")
async def test_append_has_one_winner_among_tasks(env: Env) -> None:
    """Of several appends at one offset one takes effect."""
    async with env.open() as store:
        for number in range(5):
            key = f"grown/{number}"  # of one object a store may take few
            size = 3000 * (number % 2)
            if size:
                await store.append(key, [make_body(8, 0, size)], 0)
            won: list[int] = []

            async def append(owner: int, key: str = key, at: int = size, won: list[int] = won) -> None:
                try:
                    await store.append(key, [make_body(owner, 0, 3000)], at)
                except ConflictError:
                    return
                won.append(owner)

            await together([call(append, owner) for owner in range(8)])
            assert len(won) == 1, f"{len(won)} appends at one offset took effect: round={number}"
            body = await store.get(key, size)
            assert check_body(body).owner == won[0], "what is there isn't the winner's"


@clause(claims="compare_and_swap")
async def test_swap_loses_no_update_among_tasks(env: Env) -> None:
    """Every method is safe to call from several tasks at once; a swap that returns has replaced what was read."""
    async with env.open() as store:
        await store.put("count", [b"0"])

        async def add(_: int) -> None:
            for _ in range(5):
                while True:
                    token = (await store.head("count")).token
                    value = int(bytes(await store.get("count")))
                    try:
                        await store.compare_and_swap("count", [str(value + 1).encode()], token)
                    except ConflictError:
                        continue
                    break

        await together([call(add, owner) for owner in range(4)])
        assert bytes(await store.get("count")) == b"20", "updates were lost"


@clause(claims="multipart")
async def test_multipart_appears_whole(env: Env) -> None:
    """An object being written in parts; invisible until ``complete`` returns; parts go in call order."""
    parts = [env.random.randbytes(size) for size in (1, 100_000, 0, 6 * 2**20, 17)]
    async with env.open() as store:
        await store.put("old", [b"old"])
        for key in ("new", "old"):
            upload = await store.create_multipart(key)
            for part in parts:
                buffer = bytearray(part)
                middle = len(buffer) // 2
                halves = [memoryview(buffer)[:middle], memoryview(buffer)[middle:]]
                await upload.write_part(halves if key == "new" else (buffer,))
                buffer[:] = bytes(len(buffer))  # may be reused once this returns
            assert await keys_listed(store) == (["old"] if key == "new" else ["new", "old"]), (
                "visible too early"
            )
            if key == "old":
                assert bytes(await store.get("old")) == b"old", "replaced too early"
            await upload.complete()
            assert bytes(await store.get(key)) == b"".join(parts), "other bytes than were written"
        assert await keys_listed(store) == ["new", "old"]


@clause(claims="multipart")
async def test_aborted_multipart_leaves_nothing(env: Env) -> None:
    """Drop what was written. Never raises for an upload that is already gone."""
    async with env.open() as store:
        await store.put("old", [b"old"])
        for key in ("new", "old"):
            upload = await store.create_multipart(key)
            await upload.write_part([b"x" * 100_000])
            for _ in range(4):
                await upload.abort()
        assert await keys_listed(store) == ["old"], "an aborted upload is listed"
        assert bytes(await store.get("old")) == b"old"
        for kept in (b"kept", b"kept" * 500_000):
            finished = await store.create_multipart("new")
            await finished.write_part([kept])
            await finished.complete()
            for _ in range(2):
                await finished.abort()
                found = bytes(await store.get("new"))
                assert found == kept, f"abort after complete destroyed an object of {len(kept)} bytes"


@clause(refuses="put_if_absent")
async def test_unclaimed_put_if_absent_is_refused(env: Env) -> None:
    """InvalidRequestError if unclaimed."""
    async with env.open() as store:
        with raises(InvalidRequestError):
            await store.put_if_absent("key", [b"x"])
        assert await keys_listed(store) == []


@clause(refuses="ordered_listing")
async def test_unclaimed_start_of_a_listing_is_refused(env: Env) -> None:
    """Without ``ordered_listing`` they come in any order, and a ``start_after`` raises InvalidRequestError."""
    async with env.open() as store:
        for key in ("b", "a", "c"):
            await store.put(key, [b"x"])
        with raises(InvalidRequestError):
            await keys_listed(store, start_after="a")
        assert sorted(await keys_listed(store)) == ["a", "b", "c"]


@clause(refuses="compare_and_swap")
async def test_unclaimed_compare_and_swap_is_refused(env: Env) -> None:
    """InvalidRequestError if unclaimed."""
    async with env.open() as store:
        token = await store.put("key", [b"x"])
        with raises(InvalidRequestError):
            await store.compare_and_swap("key", [b"y"], token)
        assert bytes(await store.get("key")) == b"x"


@clause(refuses="append")
async def test_unclaimed_append_is_refused(env: Env) -> None:
    """InvalidRequestError if unclaimed, of a store that has the method."""
    async with env.open() as store:
        if not store.has_append:
            not_applicable("the store has no append, and claims none")
        await store.put("key", [b"x"])
        with raises(InvalidRequestError):
            await store.append("key", [b"y"], 1)
        assert bytes(await store.get("key")) == b"x"


@clause(refuses="multipart")
async def test_unclaimed_multipart_is_refused(env: Env) -> None:
    """Raises InvalidRequestError if unclaimed."""
    async with env.open() as store:
        with raises(InvalidRequestError):
            await store.create_multipart("key")


async def test_readers_see_old_or_new(env: Env) -> None:
    """Atomic: readers see the old bytes or the new ones, never a mixture."""
    async with env.open() as store:
        await store.put("key", [make_body(0, 0, 400_000)])
        done = anyio.Event()

        async def write() -> None:
            for sequence in range(1, 12):
                body = make_body(0, sequence, env.random.choice((1_000, 400_000, 900_000)))
                await store.put("key", [body[: len(body) // 3], body[len(body) // 3 :]])
            done.set()

        async def read() -> None:
            newest = 0
            while not done.is_set():
                sequence = check_body(await store.get("key")).sequence
                assert sequence >= newest, "an older object came back"
                newest = sequence

        await together([write, read, read])
        assert check_body(await store.get("key")).sequence == 11


async def test_cancelled_put_is_whole_or_nothing(env: Env) -> None:
    """A cancelled call may or may not have taken effect; what took effect is whole."""
    async with env.open() as store:
        for turns in range(12):
            key = f"cancelled/{turns % 3}"
            body = make_body(0, turns, 700_000)

            async def put(key: str = key, body: bytes = body) -> None:
                await store.put(
                    key, [body[start : start + 100_000] for start in range(0, len(body), 100_000)]
                )

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(put)
                for _ in range(turns):
                    await checkpoint()
                tasks.cancel_scope.cancel()
            for listed in await keys_listed(store):
                assert listed.startswith("cancelled/"), f"debris of a cancelled put is listed: key={listed}"
                check_body(await store.get(listed))
        await store.put("cancelled/0", [make_body(0, 99, 50)])
        await anyio.sleep(0.05)  # a write that a thread still has in hand must not come after a later put
        assert check_body(await store.get("cancelled/0")).sequence == 99, "a cancelled put undid a later one"


async def test_statistics_count(env: Env) -> None:
    """Counters since the store was opened."""
    async with env.open() as store:
        await store.put("a", [b"x" * 100])
        with raises(NotFoundError):
            await store.get("b")
        await store.put("b", [b"y" * 50])
        await store.get("a")
        await keys_listed(store)
        await store.delete(["a"])
        able = store.capabilities
        with raises(NotFoundError):
            await store.head("a")
        if able.put_if_absent:
            with raises(AlreadyExistsError):
                await store.put_if_absent("b", [b"z"])
        if able.compare_and_swap:
            with raises(ConflictError):
                await store.compare_and_swap("b", [b"z"], "nonsense")
        counters = store.statistics()
        assert counters.errors == 0, f"refusals, and an object that isn't there, are answers: {counters}"
        assert counters.puts >= 2
        assert counters.gets >= 1
        assert counters.lists >= 1
        assert counters.deletes >= 1
        assert counters.bytes_written >= 150
        assert counters.bytes_read >= 100
        if store.capabilities.multipart:
            upload = await store.create_multipart("parts")
            for _ in range(3):
                await upload.write_part([b"z" * 1000])
            await upload.complete()
            written = store.statistics().bytes_written - counters.bytes_written
            assert written >= 3000, f"of 3000 bytes in parts {written} are told as written"
        assert counters.consecutive_failures == 0, f"the last attempts have succeeded: {counters}"
        before = store.statistics().puts
        await store.put("d", [b"z"] * 40)
        puts = store.statistics().puts - before
        assert 1 <= puts < 10, f"an object of 40 buffers is written, told are {puts} writes"
        await store.put("c", [b"z" * 100_000])
        before = store.statistics().bytes_read
        await store.get("c", 10, 30)
        read = store.statistics().bytes_read - before
        assert 20 <= read < 50_000, f"20 bytes of 100,000 were read, told are {read}"


# --- 2: races between processes


@clause(level=2, claims="put_if_absent")
async def test_put_if_absent_has_one_winner_among_processes(env: Env) -> None:
    """``put_if_absent`` is atomic over every process that uses the store: exactly one creator wins."""
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(env.open())
        _shared(store)
        children = [
            await stack.enter_async_context(Child(env, "create_race", owner=owner))
            for owner in range(_PROCESSES)
        ]
        for child in children:
            assert await child.next() == "ready", "a child process failed to open the store"
        race = Race(children)
        for number in range(48 * env.rounds):
            turn, kind = divmod(number, 4)
            key = f"race/{turn}"  # a new one, one that was there, twice, and one that somebody puts
            putter = turn % _PROCESSES if kind == 3 else None
            order = {"key": key, "at": time.monotonic() + 0.002, "putter": putter}
            # in two turns of three somebody halts in the middle, and it isn't who puts
            halting = (turn + 1) % _PROCESSES if turn % 3 else None
            won = await race.answers(order, halting, share_of(turn))
            owner = check_body(await store.get(key)).owner
            if putter is None:
                assert won.count(True) == 1, f"{won.count(True)} of {_PROCESSES} creators won: key={key}"
                assert owner == won.index(True), "the object isn't the winner's"
            else:
                assert won.count(True) <= 2, f"{won.count(True) - 1} creators won beside a put: key={key}"
                assert owner == putter, f"a creator replaced what was put: {won=} {owner=} {putter=}"
            await store.delete([key])


@clause(level=2, claims="append")
async def test_append_loses_nothing_among_processes(env: Env) -> None:
    """``append`` is atomic over every process that uses the store: each that returned is there, once and whole."""
    times, halts = 10 * env.rounds, 12 * env.rounds
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(env.open())
        _shared(store)
        children = [
            await stack.enter_async_context(Child(env, "append_in_turn", key="grown", owner=owner))
            for owner in range(_PROCESSES)
        ]
        for child in children:
            assert await child.next() == "ready", "a child process failed to open the store"
        race = Race(children)
        made: list[int | None] = await race.answers({"times": times})
        for number in range(halts):
            made += await race.answers({"times": 1}, number % _PROCESSES, share_of(number))
        assert all(made), "a child process failed to append"
        times += halts
        grown = [bytes(await store.get(f"grown/{number + 1}")) for number in range(max(filter(None, made)))]
        found = b"".join(grown).decode().splitlines()
        wanted = [f"{owner} {number}" for owner in range(_PROCESSES) for number in range(times)]
        assert sorted(found) == sorted(wanted), "appends were lost, or are there twice"
        for owner in range(_PROCESSES):
            own = [line for line in found if line.startswith(f"{owner} ")]
            assert own == wanted[owner * times : (owner + 1) * times], "appends are in another order"


@clause(level=2, claims="compare_and_swap")
async def test_swap_loses_no_update_among_processes(env: Env) -> None:
    """``compare_and_swap`` is atomic over every process that uses the store: it loses no other swap, and no put."""
    times, halts = 10 * env.rounds, 12 * env.rounds
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(env.open())
        _shared(store)
        await store.put("count", [b"0"])
        await store.put("beside", [b""])
        job = {"key": "count", "beside": "beside"}
        children = [
            await stack.enter_async_context(Child(env, "count_with_swap", **job)) for _ in range(_PROCESSES)
        ]
        for child in children:
            assert await child.next() == "ready", "a child process failed to open the store"
        race = Race(children)
        told = [
            *await race.answers({"times": times}),
            *[
                each
                for n in range(halts)
                for each in await race.answers({"times": 1}, n % _PROCESSES, share_of(n))
            ],
        ]
        tokens = [token for each in told for token in each]
        count = (times + halts) * _PROCESSES
        assert int(bytes(await store.get("count"))) == count, "updates were lost"
        assert len(set(tokens)) == count, f"other bytes have the same token: {sorted(tokens)[:9]}"
        for child in children:
            await child.tell({"times": 0})
        for number in range(times):
            for value in (b"%d." % number, b"%d:" % number):  # the second one beside swaps of the first
                await store.put("beside", [value])
                for look in range(20):
                    found = bytes(await store.get("beside"))
                    assert found.rstrip(b"+") == value, f"an older swap has undone a put: {found!r}"
                    if look >= 3 and b"+" in found:
                        break  # others are at it
                    await anyio.sleep(0.001)
            await store.delete(["beside"])
            for _ in range(_PROCESSES):  # whatever was on its way
                await anyio.sleep(0.002)
                with raises(NotFoundError):
                    await store.get("beside")
        await store.put("beside", [b"end"])
        for child in children:
            await child.finish()


@clause(level=2)
async def test_readers_of_other_processes_see_old_or_new(env: Env) -> None:
    """Atomic: readers see the old bytes or the new ones, never a mixture."""
    sizes = [env.random.choice((300, 80_000, 1_500_000)) for _ in range(40 * env.rounds)]
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(env.open())
        _shared(store)
        await store.put("key", [make_body(7, 0, 50)])
        shares = [share_of(number) if number % 2 else 0.0 for number in range(len(sizes))]
        job = {"key": "key", "owner": 7, "sizes": sizes, "shares": shares}
        child = await stack.enter_async_context(Child(env, "overwrite", **job))
        assert await child.next() == "ready", "the child process failed to open the store"
        acked, ended = -1, False

        async def follow() -> None:
            nonlocal acked, ended
            while (line := await child.next()) is not None:
                if line == HALTED:
                    async with child.asleep():
                        await look()
                else:
                    acked = line
            ended = True

        async def look() -> None:
            at_least = acked
            sequence = check_body(await store.get("key")).sequence
            assert sequence >= at_least, f"older than what was acknowledged: {sequence} < {at_least}"

        async def read() -> None:
            while not ended:
                await look()

        await together([follow, read])
        assert acked == len(sizes) - 1, "the child process failed"


# --- 3: crashes


@clause(level=3, claims="durable")
async def test_acknowledged_objects_survive_a_kill(env: Env) -> None:
    """Durable on the claimed domain when it returns. Atomic, also over a crash."""
    keys = [f"crash/{number}" for number in range(4)]
    acked: dict[str, int] = {}
    async with env.open() as store:
        _shared(store)
    for owner in range(1, 8 * env.rounds + 1):
        order = {"owner": owner, "keys": keys, "seed": env.random.randrange(2**32)}
        moment = MOMENTS[owner % len(MOMENTS)]
        for key, sequence in await killed(env, "put_until_killed", moment, 25, **order):
            acked[key] = owner * 1_000_000 + sequence
        async with env.open() as store:
            listed = await keys_listed(store)
            assert set(listed) <= set(keys), f"debris of a crash is listed: {sorted(set(listed) - set(keys))}"
            for key, last in acked.items():
                label = check_body(await store.get(key))
                found = label.owner * 1_000_000 + label.sequence
                assert found >= last, f"an acknowledged put is lost: key={key} owner={owner}"
