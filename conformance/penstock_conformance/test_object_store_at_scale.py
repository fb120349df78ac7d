"""Clauses of ``penstock.spi.object_store``: many keys, large objects, company, reopening, a disk that is full."""

from __future__ import annotations

import string
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    PenstockError,
    UnavailableError,
)
from penstock_conformance._body import check_body, make_body
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, call, raises, together
from penstock_conformance._faults import error_of
from penstock_conformance._growth import counts
from penstock_conformance._leaks import leaves_nothing
from penstock_conformance._listings import check_listings_beside_each_other, in_order, keys_listed
from penstock_conformance._medium import disk_with_room_for, local_folder, no_descriptors_left, unsynced_bytes

KIND = "object_store"

#: Beyond the 1,000 keys that the answers of most stores, and their bulk deletions, stop at.
_MANY = 1003
_MIB = 2**20
#: Beyond the size at which stores and libraries begin to write in parts, and not a multiple of anything.
_LARGE = 8 * _MIB + 4099


async def _put_all(store: Any, keys: Sequence[str], writers: int = 16) -> None:
    async def put(first: int) -> None:
        for key in keys[first::writers]:
            await store.put(key, [key.encode()])

    await together([call(put, first) for first in range(writers)])


def _check_keys(got: Sequence[str], wanted: Sequence[str], what: str) -> None:
    """The same keys in the same order; names what is missing, too many, or where the order breaks."""
    missing, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
    assert not missing, (
        f"{what}: {len(missing)} of {len(wanted)} keys are missing, the first is {missing[0]!r}"
    )
    assert not extra, f"{what}: keys that shouldn't be there, the first is {extra[0]!r}"
    assert len(got) == len(wanted), f"{what}: {len(got) - len(wanted)} keys are listed twice"
    assert list(got) == list(wanted), f"{what}: not in ascending order"


async def test_thousands_of_keys_are_listed_and_deleted(env: Env) -> None:
    """Objects whose key starts with ``prefix`` and is greater than ``start_after``, by thousands."""
    # Numbers without leading zeros: their order as texts isn't that in which they are written.
    keys = [f"many/{number}" for number in range(_MANY)]
    wanted = sorted(keys)
    async with env.open() as store:
        await _put_all(store, [*keys, "manx", "many0", "others/1"])
        _check_keys(await keys_listed(store, "many/"), wanted, "a listing of many keys")
        for place in (0, 998, 999, 1000, _MANY - 2, _MANY - 1) if store.capabilities.ordered_listing else ():
            got = await keys_listed(store, "many/", wanted[place])
            _check_keys(got, wanted[place + 1 :], f"a listing after key {place + 1} of many")
        await check_listings_beside_each_other(store, "many/", wanted)
        sizes = {info.key: info.size async for info in store.list("many/")}
        wrong = [key for key in wanted if sizes[key] != len(key)]
        assert not wrong, f"a wrong size is listed: key={wrong[0]}"
        # An object that is deleted once it was listed moves no other one out of the listing.
        seen: list[str] = []
        gone: list[str] = []
        async for info in store.list("many/"):
            seen.append(info.key)
            if len(seen) % 100 == 0:
                gone += seen[-100:-50]
                await store.delete(gone[-50:])
        _check_keys(in_order(store, seen), wanted, "a listing whose objects are deleted behind it")
        await store.delete([*gone, "never/was", *(key for key in keys if key not in gone)])
        left = await keys_listed(store)
        assert left == ["manx", "many0", "others/1"], (
            f"after deleting {_MANY} keys there are {len(left)}: {left[:3]}"
        )


async def test_deletion_takes_exactly_what_was_named(env: Env) -> None:
    """Delete the objects; those that don't exist are fine, wherever they stand; nothing else goes."""
    keys = [f"d/{number:02}" for number in range(12)]
    async with env.open() as store:
        await _put_all(store, [*keys, "d/0", "d/01x", "d/01/x" if _is_flat(store) else "d/01-x"])
        await store.delete(
            ["d/absent", keys[1], "d/09x", keys[2], keys[2], "absent/0", "d", keys[11], "d/"[:-1]]
        )
        gone = {keys[1], keys[2], keys[11]}
        left = await keys_listed(store, "d/")
        assert set(keys) - set(left) == gone, f"left or gone too much: {sorted(left)}"
        assert {"d/0", "d/01x"} <= set(left), "a key was deleted because another one is its beginning"
        for key in gone:
            with raises(NotFoundError):
                await store.get(key)
        assert bytes(await store.get(keys[3])) == keys[3].encode(), "the bytes of a neighbour changed"


def _is_flat(store: Any) -> bool:
    """Whether a key may be the beginning of another one's path; file trees can't."""
    return not str(store.location).startswith(("file:", "/"))


def _strange_keys() -> list[str]:
    """Printable ASCII without a leading slash, and what escapes, patterns and file systems make of it."""
    signs = [sign for sign in string.punctuation + " " if sign != "/"]
    return [
        *(f"odd/a{sign}b" for sign in signs),
        *(f"odd/{sign}" + "x" for sign in signs if sign != "."),
        *("odd/ab", "odd/AB", "odd/a%2Fb", "odd/a%252Fb", "odd/a%20b", "odd/a%41b", "odd/aAb", "odd/a/b"),
        *(
            "odd/.hidden",
            "odd/x.tmp",
            "odd/x.part",
            "odd/x~",
            "odd/[ab]",
            "odd/a*",
            "odd/**",
            "odd/a?",
            "odd/{a,b}",
        ),
        *("odd/a=1&b=2", "odd/a;v=1", "odd/..x", "odd/x..", "odd/x ", "odd/-rf", "odd/" + "k" * 120),
    ]


async def test_every_printable_key_is_its_own(env: Env) -> None:
    """Keys are ``/``-separated printable ASCII without a leading slash: each names one object."""
    keys = sorted(set(_strange_keys()))
    async with env.open() as store:
        await _put_all(store, keys, writers=4)
        for key in keys:
            assert bytes(await store.get(key)) == key.encode(), f"the bytes of another object: key={key!r}"
            info = await store.head(key)
            assert (info.key, info.size) == (key, len(key)), f"another object's head: key={key!r} got={info}"
        _check_keys(await keys_listed(store, "odd/"), keys, "keys of all characters")
        for prefix in (
            "odd/a*",
            "odd/[",
            "odd/a%2",
            "odd/a?",
            "odd/.",
            "odd/a ",
            "odd/a_",
            "odd/_",
            "odd/a%",
            "odd/a^",
            "odd/aA",
            "odd/AB",
        ):
            wanted = [key for key in keys if key.startswith(prefix)]
            _check_keys(await keys_listed(store, prefix), wanted, f"keys that begin with {prefix!r}")
        patterns = ["odd/a*", "odd/**", "odd/[ab]", "odd/a?", "odd/{a,b}", "odd/a%2Fb", "odd/.hidden"]
        await store.delete(patterns)
        left = [key for key in keys if key not in patterns]
        _check_keys(await keys_listed(store, "odd/"), left, "keys after some were deleted")


def _large_body(env: Env, size: int = _LARGE) -> bytes:
    """Every place of it looks different, so that a piece that is twice there, or elsewhere, is noticed."""
    return env.random.randbytes(size)


def _difference(got: bytes, wanted: bytes) -> str:
    if len(got) != len(wanted):
        return f"{len(got)} bytes instead of {len(wanted)}"
    place = next(
        (
            number
            for number in range(0, len(got), 4096)
            if got[number : number + 4096] != wanted[number : number + 4096]
        ),
        -1,
    )
    return f"other bytes in the 4 KiB from {place} on"


def _check_bytes(got: Any, wanted: bytes, what: str) -> None:
    raw = bytes(got)
    if raw != wanted:  # an assertion would show both, at length
        raise AssertionError(f"{what}: {_difference(raw, wanted)}")


async def test_large_objects_come_back_whole(env: Env) -> None:
    """Write the object as the concatenation of ``body``, also beyond 8 MiB, in few buffers or in many."""
    data = _large_body(env)
    cuts = sorted(env.random.sample(range(len(data)), 40))
    many = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    bodies: list[Sequence[Any]] = [[data], many, [memoryview(data)[: 4 * _MIB], bytearray(data[4 * _MIB :])]]
    async with env.open() as store:
        for body in bodies:
            await store.put("large", body)
            assert (await store.head("large")).size == len(data), "the size of a large object is wrong"
            _check_bytes(await store.get("large"), data, f"a large object of {len(body)} buffers")
        listed = [info.size async for info in store.list("large")]
        assert listed == [len(data)], f"the size of a large object is listed wrong: {listed}"
        await store.put("large", [b"small"])
        _check_bytes(await store.get("large"), b"small", "a small object in the place of a large one")


@clause(claims="multipart")
async def test_abort_of_what_has_ended_changes_nothing(env: Env) -> None:
    """Never raises for an upload that is already gone, and leaves what it completed."""
    async with env.open() as store:
        await store.put("key", [b"older"])
        given_up = await store.create_multipart("key")
        await given_up.write_part([b"given up"])
        for times in range(3):
            error = await error_of(given_up.abort())
            assert error is None, f"abort number {times + 1} raised {error!r}"
            assert bytes(await store.get("key")) == b"older", "an upload that was aborted took what was there"
        for newer in (b"", b"newer"):
            upload = await store.create_multipart("key")
            await upload.write_part([b"whole"])
            await upload.complete()
            if newer:
                await store.put("key", [newer])
            error = await error_of(upload.abort())
            assert error is None, f"abort of a completed upload raised {error!r}"
            error = await error_of(given_up.abort())
            assert error is None, f"a late abort raised {error!r}"
            found = bytes(await store.get("key"))
            assert found == (newer or b"whole"), f"an abort came after the end, and {found!r} is there"


async def test_bodies_of_round_sizes_come_back_whole(env: Env) -> None:
    """The concatenation of ``body``, also where it ends with what others write at a time."""
    piece = env.random.randbytes(2**20)
    async with env.open() as store:
        for size in (2**12, 2**16, 2**18, 2**20, 5 * 2**20, 2**23, 2**24):
            whole, rest = divmod(size, len(piece))
            body = [number.to_bytes(4, "big") + piece[4:] for number in range(whole)] + [piece[:rest]]
            wanted = b"".join(body)
            for way, write in _ways_of_writing(store):
                key = f"round/{size}/{way}"
                await write(key, body)
                told = (await store.head(key)).size
                assert told == size, f"{way}: an object of {size} bytes is told to have {told}"
                found = bytes(await store.get(key))
                if found != wanted:  # an assertion would show both
                    raise AssertionError(f"{way}, {size} bytes: {_difference(found, wanted)}")
            await store.delete([f"round/{size}/{way}" for way, _ in _ways_of_writing(store)])


def _ways_of_writing(store: Any) -> list[tuple[str, Callable[[str, list[bytes]], Awaitable[object]]]]:
    async def in_parts(key: str, body: list[bytes]) -> None:
        upload = await store.create_multipart(key)
        for at in range(0, len(body), 8):
            await upload.write_part(body[at : at + 8])
        await upload.complete()

    async def in_two_appends(key: str, body: list[bytes]) -> None:
        half, size = (len(body) + 1) // 2, 0
        for some in (body[:half], body[half:]):
            if any(some):  # nothing is no append
                await store.append(key, some, size)
                size += sum(map(len, some))

    ways = [("put", store.put)]
    if store.capabilities.put_if_absent:
        ways.append(("put_if_absent", store.put_if_absent))
    if store.capabilities.multipart:
        ways.append(("parts", in_parts))
    if store.capabilities.append:
        ways.append(("append", in_two_appends))
    return ways


async def test_ranges_lie_right_in_large_objects(env: Env) -> None:
    """The bytes [start, end) of the object, also far inside, over many MiB, and to its end."""
    data = _large_body(env)
    size = len(data)
    places = [
        0,
        1,
        _MIB - 1,
        _MIB,
        _MIB + 1,
        4 * _MIB,
        4 * _MIB + 1,
        8 * _MIB - 1,
        8 * _MIB,
        8 * _MIB + 1,
        size - 1,
        size,
    ]
    async with env.open() as store:
        await store.put("large", [data])
        for start in places:
            for end in (start, start + 1, start + 4097, start + _MIB + 1, size - 1, size, size + 5, None):
                if end is None or end >= start:
                    got = await store.get("large", start, end)
                    _check_bytes(got, data[start:end], f"the range [{start}, {end})")
        for start, end in ((size + 1, None), (size + 1, size + 5), (8 * _MIB + 1, 8 * _MIB)):
            with raises(InvalidRequestError):
                await store.get("large", start, end)


@clause(claims="put_if_absent")
async def test_large_put_if_absent_creates_once(env: Env) -> None:
    """Only if there is no such object, whatever the size: exactly one creator wins, and its bytes stay."""
    bodies = [_large_body(env) for _ in range(2)]
    async with env.open() as store:
        await store.put_if_absent("large", [bodies[0]])
        with raises(AlreadyExistsError):
            await store.put_if_absent("large", [bodies[1]])
        _check_bytes(await store.get("large"), bodies[0], "a large object that another creator met")
        with raises(AlreadyExistsError):
            await store.put_if_absent("large", [b"small"])
        winners: list[int] = []

        async def create(owner: int) -> None:
            try:
                await store.put_if_absent("race", [bodies[owner]])
            except AlreadyExistsError:
                return
            winners.append(owner)

        await together([call(create, owner) for owner in range(2)])
        assert len(winners) == 1, f"{len(winners)} of two creators of a large object won"
        _check_bytes(await store.get("race"), bodies[winners[0]], "the winner's large object")


@clause(claims="put_if_absent")
async def test_put_if_absent_minds_empty_and_deleted_objects(env: Env) -> None:
    """Only if there is no such object: an empty one is there, a deleted one isn't, whoever deleted it."""
    async with env.open() as store, env.open() as second:
        is_shared = store.location == second.location and store.capabilities.durable
        await store.put_if_absent("key", [])
        with raises(AlreadyExistsError):
            await store.put_if_absent("key", [b"x"])
        assert bytes(await store.get("key")) == b"", "an empty object was taken for none"
        for number in range(20):
            await (second if is_shared and number % 3 else store).delete(["key"])
            body = b"%d" % number if number % 4 else b""  # an empty one may come where one was
            await store.put_if_absent("key", [body])
            assert bytes(await store.get("key")) == body, "an older object came back"
            with raises(AlreadyExistsError):
                await store.put_if_absent("key", [body, b"x"])


@clause(claims="compare_and_swap")
async def test_token_changes_with_any_byte(env: Env) -> None:
    """Replace the object only if it didn't change: where in it, and whether its size did, makes no difference."""
    async with env.open() as store:
        for size, place in ((200_000, 0), (200_000, 100_000), (200_000, 199_999), (2**21 + 9, 2**21 + 8)):
            body = bytearray(size)
            first = await store.put("key", [bytes(body)])
            body[place] = 1
            second = await store.put("key", [bytes(body)])
            assert second != first, f"the token is that of other bytes: size={size} differs_at={place}"
            with raises(ConflictError):
                await store.compare_and_swap("key", [b"x"], first)


async def test_empty_objects_are_listed_like_others(env: Env) -> None:
    """*Every* object whose put completed before: none is left out because it has no bytes, whatever is asked."""
    keys = [f"{folder}{number}" for folder in ("", "e/", "e/f/") for number in range(3)]
    async with env.open() as store:
        for number, key in enumerate(keys):
            await store.put(key, [b"x"] if number % 3 == 1 else [])
        for prefix in ("", "e/", "e/f/", "e/f/0"):
            wanted = sorted(key for key in keys if key.startswith(prefix))
            _check_keys(
                await keys_listed(store, prefix),
                wanted,
                f"keys with empty objects that begin with {prefix!r}",
            )
        assert (await store.head("e/0")).size == 0, "an empty object isn't empty"


@clause(claims="multipart")
async def test_thousands_of_small_parts_are_one_object(env: Env) -> None:
    """Parts of any size cost no more than their bytes, for who claims ``small_parts``: also thousands of them."""
    async with env.open() as store:
        if not store.capabilities.small_parts:
            not_applicable("the store doesn't claim small_parts")
        upload = await store.create_multipart("thousands")
        parts = [b"%06d;" % number for number in range(2500)]
        for part in parts:
            await upload.write_part([part])
        await upload.complete()
        _check_bytes(await store.get("thousands"), b"".join(parts), "an object of 2500 parts")


@clause(claims="multipart")
async def test_many_parts_go_in_call_order(env: Env) -> None:
    """Parts go in call order, also when there are hundreds of them, of all sizes."""
    parts = [make_body(0, number, env.random.choice((40, 700, 9000))) for number in range(211)]
    parts[150], parts[200] = _large_body(env), make_body(0, 200, 9000)
    async with env.open() as store:
        upload = await store.create_multipart("parts")
        for number, part in enumerate(parts):
            cut = (
                3 if number == 200 else len(part)
            )  # thousands of buffers, more than a system call takes at once
            await upload.write_part([part[start : start + cut] for start in range(0, len(part), cut)])
        await upload.complete()
        _check_bytes(await store.get("parts"), b"".join(parts), "an object of 211 parts")


@clause(claims="multipart")
async def test_uploads_of_one_key_do_not_mix(env: Env) -> None:
    """An object being written in parts: two uploads under way, of one key or of two, are two."""
    async with env.open() as store:
        uploads = [await store.create_multipart(key) for key in ("same", "same", "other", "same")]
        for number in range(5):
            for owner, upload in enumerate(uploads):
                await upload.write_part([b"%d" % owner * (1000 + number)])
        await uploads[3].abort()
        await uploads[1].complete()
        _check_bytes(await store.get("same"), b"1" * 5010, "the upload that was completed first")
        await uploads[2].abort()
        await uploads[0].complete()
        _check_bytes(await store.get("same"), b"0" * 5010, "the upload that was completed last")
        assert await keys_listed(store) == ["same"], "an upload that was aborted is listed"


async def test_overwritten_objects_are_read_anew(env: Env) -> None:
    """Readers see the new bytes once a put returned: of the same size, by another opener, after a deletion too."""
    async with env.open() as first, env.open() as second:
        shared = first.location == second.location and first.capabilities.durable
        for number in range(8):
            size = 5000 if number < 5 else 2 * _MIB + number
            body = bytes([65 + number]) * size
            writer = second if shared and number % 2 else first
            token = await writer.put("key", [body])
            for reader in (first, second) if shared else (first,):
                _check_bytes(await reader.get("key"), body, "an object that was replaced by one of its size")
                _check_bytes(
                    await reader.get("key", 100, 200), body[100:200], "a range of an object that was replaced"
                )
                for _ in range(4):  # however often it was asked before
                    info = await reader.head("key")
                    assert (info.size, info.token) == (size, token), f"a stale head: {info} token={token}"
            if number == 3:
                await writer.delete(["key"])
                for reader in (first, second) if shared else (first,):
                    with raises(NotFoundError):
                        await reader.get("key", 0, 10)
                    with raises(NotFoundError):
                        await reader.head("key")


@clause(claims="compare_and_swap")
async def test_tokens_outlive_the_opener(env: Env) -> None:
    """Replace the object only if its token is still ``token``: the token is the object's, not the opener's."""
    async with env.open() as store:
        token = await store.put("key", [b"1"])
    async with env.open() as store:
        assert (await store.head("key")).token == token, "opening the store changed a token"
        newer = await store.compare_and_swap("key", [b"2"], token)
        with raises(ConflictError):
            await store.compare_and_swap("key", [b"3"], token)
    async with env.open() as store:
        await store.compare_and_swap("key", [b"4"], newer)
        assert bytes(await store.get("key")) == b"4", "a swap that returned has no effect"


@clause(claims="durable")
async def test_third_opener_finds_everything(env: Env) -> None:
    """Objects outlive the opener that wrote them, and the next, and what it left unfinished never appears."""
    wanted: dict[str, bytes] = {}
    for opening in range(4):
        async with env.open() as store:
            assert await keys_listed(store) == sorted(wanted), f"other keys at opening {opening + 1}"
            for key, body in wanted.items():
                _check_bytes(await store.get(key), body, f"an object at opening {opening + 1}")
            for number in range(4):
                key = f"opening/{opening}-{number}"
                wanted[key] = make_body(opening, number, 2000)
                await store.put(key, [wanted[key]])
            if opening:
                gone = f"opening/{opening - 1}-0"
                await store.delete([gone])
                del wanted[gone]
            if store.capabilities.multipart:
                await (await store.create_multipart(f"unfinished/{opening}")).write_part([b"x" * 1000])


async def test_many_tasks_work_beside_each_other(env: Env) -> None:
    """Every method is safe to call from several tasks at once: each gets its own bytes."""
    async with env.open() as store:
        await store.put("shared", [make_body(99, 0, 6000)])

        async def work(owner: int) -> None:
            for sequence in range(6):
                key = f"task/{owner}" if sequence % 2 else f"task/{owner}/same-name"
                key = key.replace("/same", "-same")
                body = make_body(owner, sequence, 3000 + 100 * owner)
                await store.put(key, [body[:1000], body[1000:]])
                got = await store.get(key)
                assert check_body(got) == (owner, sequence), "the object of another task came back"
                # The same range of different keys, at the same time.
                _check_bytes(await store.get(key, 500, 2500), body[500:2500], "a range read beside others")
                assert check_body(await store.get("shared")).owner == 99, (
                    "the object of another task came back"
                )
                assert (await store.head(key)).size == len(body), "the size of another task's object"
                assert key in await keys_listed(store, "task/"), "a listing beside others misses an object"

        await together([call(work, owner) for owner in range(24)])

        async def read(owner: int) -> None:
            key, body = f"task/{owner}", make_body(owner, 5, 3000 + 100 * owner)
            _check_bytes(
                await store.get(key, 500, 2500), body[500:2500], "a range read beside the same of others"
            )

        for _ in range(3):
            await together([call(read, owner) for owner in range(24)])


async def test_cancelled_calls_harm_no_others(env: Env) -> None:
    """A cancelled call may or may not have taken effect; what others read is whole, and the store goes on."""
    async with env.open() as store:
        body = make_body(1, 0, 200_000)
        await store.put("key", [body])
        for turns in range(8):
            async with anyio.create_task_group() as tasks:
                for cancelled in (store.get, store.head):
                    tasks.start_soon(cancelled, "key")
                tasks.start_soon(keys_listed, store)
                for _ in range(turns):
                    await checkpoint()
                tasks.cancel_scope.cancel()
            _check_bytes(await store.get("key"), body, "an object after a cancelled read of it")
        assert await keys_listed(store) == ["key"]


async def test_what_is_asked_at_once_is_each_for_itself(env: Env) -> None:
    """Every method is safe to call from several tasks at once: who asks like another is told what he asked for,
    is hurt by nobody who gives up, and hears of all that was completed before."""
    body = make_body(1, 0, 6000)
    async with env.open() as store:
        await store.put("key", [body])

        async def check_range(start: int, end: int | None) -> None:
            found = await store.get("key", start, end)
            _check_bytes(found, body[start:end], f"the range [{start}, {end}) beside others of the object")

        await together([partial(check_range, start, end) for start in (0, 100) for end in (150, 5000, None)])
        for turns in range(6):
            async with anyio.create_task_group() as tasks:
                gone = anyio.CancelScope()

                async def give_up(gone: anyio.CancelScope = gone) -> None:
                    with gone:
                        await store.get("key", 100, 5000)

                tasks.start_soon(give_up)
                for _ in range(3):
                    tasks.start_soon(check_range, 100, 5000)
                for _ in range(turns):
                    await checkpoint()
                gone.cancel()
        for turns in range(9):
            key, newer = f"new/{turns}", make_body(1, turns + 1, 6000 + turns)
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(store.get, "key")
                    tasks.start_soon(store.head, "key")
                    tasks.start_soon(keys_listed, store, "new/")
                for _ in range(turns):
                    await checkpoint()
                await store.put("key", [newer])
                _check_bytes(await store.get("key"), newer, "an object that was put while others read it")
            async with anyio.create_task_group() as tasks:
                for _ in range(2):
                    tasks.start_soon(keys_listed, store, "new/")
                for _ in range(turns):
                    await checkpoint()
                await store.put(key, [b"x"])
                assert key in await keys_listed(store, "new/"), (
                    "an object that was put while others list is missing"
                )
        await together([partial(store.delete, ["key", "new/0", "new/1"]) for _ in range(4)])
        assert await keys_listed(store) == [f"new/{number}" for number in range(2, 9)]


async def test_reading_and_writing_leaves_nothing_behind(env: Env) -> None:
    """Leaving the context ends what was opened: no descriptor, task, thread or object of it stays."""

    async def use(store: Any) -> None:
        for number in range(5):
            await store.put(f"key/{number}", [b"x" * 1000])
            await store.get(f"key/{number}")
        with raises(NotFoundError):
            await store.get("missing")
        await keys_listed(store)
        async for _ in store.list("key/"):
            break  # an iterator that is left half-way
        await store.delete([f"key/{number}" for number in range(5)])

    await leaves_nothing(env, use)


# --- 3: crashes


@clause(level=3, claims="durable")
async def test_completed_puts_are_on_the_disk(env: Env) -> None:
    """Durable on the claimed domain when it returns: nothing that was acknowledged waits to be written."""
    async with env.open() as store:
        folder = local_folder(store)
        for number, size in enumerate((3000, 200_000, 2 * _MIB)):
            await store.put(f"synced/{number}", [make_body(0, number, size)])
            _check_synced(folder, "put")
            if store.capabilities.put_if_absent:
                await store.put_if_absent(f"created/{number}", [make_body(0, number, size)])
                _check_synced(folder, "put_if_absent")
            if store.capabilities.multipart:
                upload = await store.create_multipart(f"parts/{number}")
                await upload.write_part([make_body(0, number, size)])
                await upload.write_part([make_body(1, number, size)])
                await upload.complete()
                _check_synced(folder, "an upload in parts")
            if store.capabilities.append:
                for size_there in (0, size):
                    await store.append(f"grown/{number}", [make_body(0, number, size)], size_there)
                    _check_synced(folder, f"an append behind {size_there} bytes")


def _check_synced(folder: Any, what: str) -> None:
    unsynced = unsynced_bytes(folder)
    assert unsynced == 0, f"{unsynced} bytes aren't on the disk when {what} returns"


# --- 4: faults of the medium


@clause(level=4)
async def test_full_disk_is_told_and_harms_nothing(env: Env) -> None:
    """UnavailableError when the store fails; readers see the old bytes or the new ones, also then."""
    old, body = make_body(0, 0, 5000), make_body(1, 0, 3 * _MIB)
    async with env.open() as store:
        local_folder(store)
        await store.put("there", [old])
        puts: dict[str, Any] = {"put": store.put}
        if store.capabilities.put_if_absent:
            puts["put_if_absent"] = store.put_if_absent
        if store.capabilities.multipart:
            puts["an upload in parts"] = lambda key, parts: _upload(store, key, parts)
        if store.capabilities.append:
            puts["append"] = partial(_grow, store, len(old))
        if store.capabilities.compare_and_swap:
            puts["compare_and_swap"] = partial(_swap, store, (await store.head("there")).token)
        keys = {"put_if_absent": ["new"], "compare_and_swap": ["there"]}
        before, *_ = await counts()
        for what, put in puts.items():
            for key in keys.get(what, ["there", "new"]):
                with disk_with_room_for(_MIB):
                    error = await error_of(put(key, [body[:_MIB], body[_MIB:]]))
                assert error is not None, f"{what} returned though the disk is full"
                assert isinstance(error, PenstockError), (
                    f"{what} on a full disk raised {error!r}, no PenstockError"
                )
            _check_bytes(await store.get("there"), old, f"what was there before {what} on a full disk")
            listed = await keys_listed(store)
            assert listed == ["there"], f"{what} on a full disk left an object: {listed}"
        left = (await counts())[0] - before
        assert left < len(puts), f"puts on a full disk left {left} descriptors open"
        for what, put in puts.items():
            key = "there" if what == "compare_and_swap" else "new"
            await put(key, [old])
            _check_bytes(await store.get(key), old, f"{what} where there is room again")
            await store.delete(["new"])
        await store.put("there", [body])
        _check_bytes(await store.get("there"), body, "an object that is put when there is room again")


async def _swap(store: Any, token: str, key: str, parts: Iterable[bytes]) -> None:
    await store.compare_and_swap(key, list(parts), token)


async def _grow(store: Any, size: int, key: str, parts: Iterable[bytes]) -> None:
    await store.append(key, list(parts), size if key == "there" else 0)


async def _upload(store: Any, key: str, parts: Iterable[bytes]) -> None:
    upload = await store.create_multipart(key)
    try:
        for part in parts:
            await upload.write_part([part])
        await upload.complete()
    except BaseException:
        await upload.abort()
        raise


@clause(level=4)
async def test_outage_is_not_emptiness(env: Env) -> None:
    """NotFoundError if there is no such object, and only then: when nothing can be opened, nothing is known, nor that
    an object is there, or another one. Statistics count the calls that failed, and tell when the outage is over."""
    async with env.open() as store:
        local_folder(store)
        there, new = b"told to nobody" * 70, [b"nor is this", b"or that"]
        await store.put("dir/key", [there])
        for key in ("dir/other", "dir/third"):
            await store.put(key, [b"nor what is there"])
        token = (await store.head("dir/other")).token
        with no_descriptors_left():
            asked = {
                "head": await error_of(store.head("dir/key")),
                "get": await error_of(store.get("dir/key")),
                "a ranged get": await error_of(store.get("dir/key", 10, 20)),
                "list": await error_of(keys_listed(store)),
                "put": await error_of(store.put("dir/key", new)),
            }
            if store.capabilities.put_if_absent:
                asked["put_if_absent"] = await error_of(store.put_if_absent("dir/new", new))
            if store.capabilities.compare_and_swap:
                asked["compare_and_swap"] = await error_of(store.compare_and_swap("dir/other", new, token))
            if store.capabilities.append:
                asked["append"] = await error_of(store.append("dir/key", new, len(there)))
                asked["append in the midst"] = await error_of(store.append("dir/other", new, 5))
            if store.capabilities.multipart:
                asked["an upload in parts"] = await error_of(_upload(store, "dir/new", new))
            not_deleted = await error_of(store.delete(["dir/other", "dir/third"]))
            failed = sum(isinstance(error, UnavailableError) for error in (*asked.values(), not_deleted))
            told = store.statistics()
        why = told.last_error
        assert told.errors >= failed, f"{failed} calls failed, told are {told.errors}"
        if isinstance(not_deleted, UnavailableError):
            assert told.consecutive_failures > 0, f"the last call failed: {told}"
            assert told.last_error, f"nothing says why calls failed: {told}"
        for what, text in {**asked, "delete": not_deleted, "statistics": why}.items():
            shown = [
                some
                for some in (there[:14], *new, b"nor what is there")
                if some.decode() in f"{text} {text!r}"
            ]
            assert not shown, f"{what} in an outage tells what is in an object: {shown[0]!r}"
            assert not any(secret in f"{text} {text!r}" for secret in env.secrets()), (
                f"{what} in an outage tells a secret"
            )
        for what, error in asked.items():
            if error is None and what == "put":
                not_applicable("the store opens nothing for a put")
            if error is not None:
                assert isinstance(error, PenstockError), f"{what} without descriptors raised {error!r}"
                assert not isinstance(error, NotFoundError), f"{what} took an outage for a missing object"
                assert not isinstance(error, AlreadyExistsError), f"{what} took an outage for an object"
                assert not isinstance(error, ConflictError), f"{what} took an outage for another object"
        if store.capabilities.put_if_absent:
            with raises(AlreadyExistsError):
                await store.put_if_absent("dir/key", [b"w"])
            told = store.statistics()
            assert told.consecutive_failures == 0, f"a refusal is an answer: {told}"
        unknown = {"dir/new"} | (
            {"dir/other", "dir/third"} if not_deleted else set()
        )  # what came of a call that failed
        assert set(await keys_listed(store)) - unknown == {"dir/key"}, "another listing after the outage"
        _check_bytes(await store.get("dir/key"), there, "an object after the outage")
        await store.put("dir/key", [b"z"])
        _check_bytes(await store.get("dir/key"), b"z", "an object that is put after the outage")
        told = store.statistics()
        assert told.consecutive_failures == 0, f"calls succeed again: {told}"
        assert told.last_error or not why, f"why calls failed is kept when they succeed again: {told}"
        answers: dict[str, Callable[[], Awaitable[object]]] = {
            "a put that works": lambda: store.put("dir/key", [b"z"]),
            "that there is no such object": lambda: error_of(store.head("dir/missing")),
            "a get that works": lambda: store.get("dir/key"),
        }
        for what, answer in answers.items():
            with no_descriptors_left():
                await error_of(store.get("dir/key"))
            await answer()
            told = store.statistics()
            assert told.consecutive_failures == 0, f"{what} is an answer: {told}"


@clause(level=4)
async def test_listing_without_descriptors_is_no_empty_listing(env: Env) -> None:
    """Sees every object whose put completed before the call, or raises: never fewer of them."""
    async with env.open() as store:
        local_folder(store)
        keys = [f"dir{number}/key" for number in range(5)]
        await _put_all(store, keys, writers=1)
        with no_descriptors_left():
            listed: list[str] = []

            async def look() -> None:
                listed.extend(await keys_listed(store))

            error = await error_of(look())
        if error is None:
            _check_keys(listed, keys, "a listing during an outage")
