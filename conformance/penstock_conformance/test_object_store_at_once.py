"""Clauses of ``penstock.spi.object_store`` about calls that meet on one key, in one folder, or in two places."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, ConflictError, NotFoundError
from penstock_conformance._body import make_body
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, raises, together
from penstock_conformance._jobs import WRITES, write
from penstock_conformance._listings import files_below, keys_listed
from penstock_conformance._private import each_access, without_umask

KIND = "object_store"

_TURNS = 4
#: Listings at once, if as many requests are promised to be on their way without waiting for each other.
_LISTINGS = 70


def _ways(store: Any) -> Sequence[str]:
    return [way for way in WRITES if way == "put" or getattr(store.capabilities, way)]


async def _later(turns: int, call: Callable[[], Awaitable[None]]) -> None:
    for _ in range(turns):
        await checkpoint()
    await call()


# --- one key


@clause(claims="compare_and_swap")
async def test_each_writer_is_told_the_token_of_its_own_bytes(env: Env) -> None:
    """``put`` returns the token of *the object* that it wrote: a swap with it replaces no bytes of another writer."""
    async with env.open() as store:
        for turns in range(_TURNS):
            for first in ("put", "compare_and_swap", "put_if_absent"):
                if first == "put_if_absent" and not store.capabilities.put_if_absent:
                    continue
                key = f"{first}/{turns}"
                told: dict[str, bytes] = {}
                before = "" if first == "put_if_absent" else await store.put(key, [b"before"])

                async def begin(first: str = first, key: str = key, before: str = before) -> None:
                    body = make_body(1, 0, 300)
                    try:
                        if first == "put":
                            token = await store.put(key, [body])
                        elif first == "put_if_absent":
                            token = await store.put_if_absent(key, [body])
                        else:
                            token = await store.compare_and_swap(key, [body], before)
                    except (AlreadyExistsError, ConflictError):
                        return
                    note(token, body)

                async def put(owner: int, key: str = key) -> None:
                    body = make_body(owner, 0, 300 + owner)
                    note(await store.put(key, [body]), body)

                def note(token: str, body: bytes, told: dict[str, bytes] = told) -> None:
                    assert told.setdefault(token, body) == body, (
                        "two writers of other bytes were told one token"
                    )

                await together([begin, *(partial(_later, turns, partial(put, owner)) for owner in (2, 3))])
                info, found = await store.head(key), bytes(await store.get(key))
                assert told.get(info.token) == found, (
                    "a token is told of other bytes than it was returned for"
                )
                for token in told.keys() - {info.token}:
                    with raises(ConflictError):
                        await store.compare_and_swap(key, [b"over another's"], token)


async def test_what_is_told_of_an_object_is_of_one_version(env: Env) -> None:
    """Size and token of one object: also while it is replaced by larger and smaller ones."""
    async with env.open() as store:
        sizes: dict[str, int] = {}
        told: list[Any] = []

        async def replace() -> None:
            for size in (10, 4000, 1, 700, 9000, 33):
                sizes[await store.put("key", [make_body(0, size, size)[:size].ljust(size, b"x")])] = size
                await checkpoint()

        async def look() -> None:
            for _ in range(12):
                told.append(await store.head("key"))
                told.extend([info async for info in store.list("key")])

        sizes[await store.put("key", [b"12345"])] = 5
        await together([replace, look, look])
        if len(sizes) > 1:  # the store has tokens
            for info in told:
                assert not info.token or sizes.get(info.token) == info.size, (
                    f"a size of {info.size} bytes is told with the token of {sizes.get(info.token)}"
                )


@clause(claims="multipart")
async def test_upload_under_way_is_nothing_yet(env: Env) -> None:
    """Invisible until ``complete`` returns: others create the object meanwhile, or delete it; then it is replaced."""
    async with env.open() as store:
        for number, (aborts, deletes) in enumerate(
            ((False, False), (True, False), (False, True), (True, True))
        ):
            key = f"upload/{number}"
            upload = await store.create_multipart(key)
            await upload.write_part([b"part"])
            with raises(NotFoundError):
                await store.head(key)
            assert await keys_listed(store, key) == [], "an upload that isn't complete is listed"
            if store.capabilities.put_if_absent:
                await store.put_if_absent(key, [b"created meanwhile"])
                with raises(AlreadyExistsError):
                    await store.put_if_absent(key, [b"again"])
            else:
                await store.put(key, [b"created meanwhile"])
            await upload.write_part([b"-part"])
            assert bytes(await store.get(key)) == b"created meanwhile"
            if deletes:
                await store.delete([key])
                assert await keys_listed(store, key) == [], "what is deleted is listed beside an upload"
            await upload.write_part([b"-part"])
            await (upload.abort() if aborts else upload.complete())
            if aborts and deletes:
                with raises(NotFoundError):
                    await store.head(key)
                continue
            wanted = b"created meanwhile" if aborts else b"part-part-part"
            assert bytes(await store.get(key)) == wanted, (
                "what was there when the upload ended is another object"
            )


@clause(claims="put_if_absent")
async def test_others_object_is_no_ones_own_because_it_begins_alike(env: Env) -> None:
    """Reads the object back *and compares*: all of it, or somebody else's object is taken for one's own."""
    async with env.open() as store:
        for size in (40, 5000, 300_000):
            body = bytearray(make_body(1, 0, size))
            await store.put_if_absent(f"alike/{size}", [body])
            for place in (size // 2, size - 1):
                other = bytearray(body)
                other[place] ^= 1
                with raises(AlreadyExistsError):
                    await store.put_if_absent(f"alike/{size}", [other])
            assert bytes(await store.get(f"alike/{size}")) == body, "the bytes of its creator are gone"


# --- listings


async def test_listing_begins_with_what_another_opener_has_put_by_then(env: Env) -> None:
    """Sees every object whose put completed before the call (no listing cache): also who has listed just now."""
    async with env.open() as store, env.open() as second:
        if store.location != second.location or not store.capabilities.durable:
            not_applicable("each opener has a place of its own")
        for number in range(5):
            key = f"seen/{number}"
            with raises(NotFoundError):
                await second.head(key)
            assert key not in await keys_listed(second, "seen/")
            await store.put(key, [b"x" * number])
            assert key in await keys_listed(second, "seen/"), "another opener's object isn't listed"
            assert (await second.head(key)).size == number
            await store.put(key, [b"larger" * 3])
            infos = [info.size async for info in second.list(key)]
            assert infos == [18], f"another opener's listing is of an older object: {infos}"


async def test_objects_that_are_replaced_while_they_are_listed_are_listed(env: Env) -> None:
    """Sees *every* object whose put completed before the call, also one that is written again meanwhile."""
    keys = [f"again/{number:03}" for number in range(40)]
    async with env.open() as store:
        for key in keys:
            await store.put(key, [b"x"])
        found: list[str] = []
        async for info in store.list("again/"):
            found.append(info.key)
            if len(found) in (1, 20):
                for key in keys[::3]:
                    await store.put(key, [b"another"])
        # in any order: one that is written again may come where it was, and once more where it is now
        told = found if store.capabilities.ordered_listing else set(found)
        assert sorted(told) == keys, f"{len(found)} of {len(keys)} objects were listed as some were replaced"


async def test_listings_that_are_left_half_way_keep_nobody_out(env: Env) -> None:
    """Every method is safe to call from several tasks at once: also inside of as many listings as may be on their
    way, but for one, without a request waiting in the store's client."""
    keys = [f"half/{number}" for number in range(3)]
    async with env.open() as store:
        for key in keys:
            await store.put(key, [b"x"])
        listings = [store.list("half/") for _ in range(min(_LISTINGS, store.capabilities.requests_max - 1))]
        for listing in listings:
            await anext(listing)
        await store.put("half/new", [b"y"])
        await store.delete([keys[2]])
        assert await keys_listed(store, "half/") == [*keys[:2], "half/new"]
        for listing in listings:
            await listing.aclose()


# --- one folder, two places


async def test_folder_that_others_empty_takes_what_is_put(env: Env) -> None:
    """Every method is safe to call from several tasks at once: a put beside the deletion of its only neighbour."""
    async with env.open() as store:
        for way in _ways(store):
            for turns in range(_TURNS):
                folder = f"{way}/{turns}"
                await store.put(f"{folder}/old", [b"x"])
                if way == "compare_and_swap":
                    await store.put(f"{folder}/new", [b"before"])

                async def put(way: str = way, folder: str = folder) -> None:
                    await write(store, way, f"{folder}/new", [b"new"])

                gone = [f"{folder}/old", f"{folder}/absent"]
                await together([put, partial(_later, turns, partial(store.delete, gone))])
                assert bytes(await store.get(f"{folder}/new")) == b"new"
                assert await keys_listed(store, f"{folder}/") == [f"{folder}/new"]


async def test_places_know_nothing_of_each_other(env: Env) -> None:
    """Two stores of one process, with the same keys: each tells of its own objects."""
    other = env.elsewhere()
    other.scope = env.scope
    async with env.open() as store, other.open() as another:
        if store.location == another.location:
            not_applicable("the settings name one place for all")
        for number in range(3):
            bodies = [b"here-%d" % number, b"else-%d" % number]
            for place, body in zip((store, another), bodies, strict=True):
                await place.put("key", [body])
                await place.put(f"only/{body[:4].decode()}", [body])
            for place, body in zip((store, another), bodies, strict=True):
                assert bytes(await place.get("key")) == body, "the bytes of another place"
                assert await keys_listed(place, "only/") == [f"only/{body[:4].decode()}"]
        await store.delete(["key"])
        assert bytes(await another.get("key")) == b"else-2"
        with raises(NotFoundError):
            await store.get("key")


async def test_who_only_looks_makes_nothing(env: Env) -> None:
    """``read_only``: open without making or changing anything, where objects are and where nothing is."""
    empty = env.elsewhere("empty")
    async with empty.open(read_only=True) as store:
        with raises(NotFoundError):
            await store.get("missing")
        assert await keys_listed(store) == []
    assert files_below(empty.data_dir) == {}, (
        f"who only looks has made {sorted(files_below(empty.data_dir))[:3]}"
    )
    async with env.open() as writer:
        await writer.put("folder/key", [b"body"])
        capabilities = writer.capabilities
        upload = await writer.create_multipart("folder/upload") if capabilities.multipart else None
        if upload is not None:
            await upload.write_part([b"part" * 1000])
        before = files_below(env.data_dir)
        async with env.open(read_only=True) as store:
            if capabilities.durable:
                assert bytes(await store.get("folder/key")) == b"body"
                assert (await store.head("folder/key")).size == 4
                assert await keys_listed(store) == ["folder/key"]
        assert files_below(env.data_dir) == before, "who only looks has changed what is there"
        if upload is not None:
            await upload.complete()
            assert bytes(await writer.get("folder/upload")) == b"part" * 1000, "somebody looked at an upload"


async def test_files_are_for_nobody_else(env: Env) -> None:
    """``access`` are the modes of local directories and files that hold data, whatever the umask says."""
    for place, access in each_access(env):
        with without_umask(place, access) as check_modes:
            async with place.open(access=access) as store:
                await store.put("folder/key", [b"body"])
                if store.capabilities.put_if_absent:
                    await store.put_if_absent("folder/once", [b"body"])
                if store.capabilities.append:
                    for size in (0, 4):
                        await store.append("folder/grown", [b"body"], size)
                if store.capabilities.multipart:
                    for key in ("folder/parts", "folder/begun"):
                        upload = await store.create_multipart(key)
                        await upload.write_part([b"part" * 1000])
                        if key == "folder/parts":
                            await upload.complete()
                check_modes()
