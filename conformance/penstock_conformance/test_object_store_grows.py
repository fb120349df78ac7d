"""Clauses of ``penstock.spi.object_store`` about appends: whole, told as any other write, and never too late."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import ConflictError, NotFoundError
from penstock.spi.plugin import Buffer
from penstock_conformance._clause import clause, not_applicable
from penstock_conformance._env import Env, raises, together
from penstock_conformance._faults import error_of
from penstock_conformance._store_clock import ticked

KIND = "object_store"

_FIRST = b"first" * 60_000
_MORE = b"more--" * 120_000
#: What is written behind the caller's back is there by then.
_LATER_S = 0.03


def _check_whole(found: Buffer, what: str) -> None:
    size = len(found)
    assert size in (len(_FIRST), len(_FIRST) + len(_MORE)), (
        f"{what} there is a part of an append: {size} bytes"
    )
    assert bytes(found) == (_FIRST + _MORE)[:size], f"{what} there are other bytes than were written"


@clause(claims="append")
async def test_appends_are_whole_or_not_at_all(env: Env) -> None:
    """Atomic as ``put`` is: readers see all of an append or nothing, also of one that is cancelled."""
    pieces = [_MORE[at : at + 70_000] for at in range(0, len(_MORE), 70_000)]
    async with env.open() as store:
        for turns in (None, 0, 1, 2, 3, 5, 8, 12):
            key = f"grows/{turns}"
            await store.put(key, [_FIRST])
            done = anyio.Event()

            async def grow(key: str = key, turns: int | None = turns, done: anyio.Event = done) -> None:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(store.append, key, pieces, len(_FIRST))
                    if turns is not None:
                        for _ in range(turns):
                            await checkpoint()
                        tasks.cancel_scope.cancel()
                done.set()

            async def read(key: str = key, turns: int | None = turns, done: anyio.Event = done) -> None:
                while not done.is_set():
                    _check_whole(await store.get(key), f"beside an append, cancelled after {turns} turns,")

            await together([grow, read])
            found = await store.get(key)
            _check_whole(found, f"behind an append, cancelled after {turns} turns,")
            assert turns is not None or len(found) > len(_FIRST), "an append that returned has no effect"


@clause(claims="append")
async def test_appends_are_told_as_any_other_write(env: Env) -> None:
    """``body`` behind the first ``offset`` bytes, which must be all of it: of any sequence of buffers, which are the
    caller's again, and told by head, listing, token, time and statistics."""
    bodies: list[list[Buffer]] = [
        [b"one"],
        [b"%03d" % number for number in range(2500)],
        [b"", b"x" * 700_000, b""],
    ]
    async with env.open() as store, env.open() as other:
        for number, body in enumerate(bodies):
            key = f"told/{number}"
            expected = b"before"[: 6 * number]  # first to an object without bytes
            old = await store.put(key, [expected])
            was, held = await store.head(key), await store.get(key)
            has_ticked = await ticked(store, was.modified_ms)
            buffer = bytearray(b"".join(body))
            view, cuts = memoryview(buffer), [0]
            for part in body:
                cuts.append(cuts[-1] + len(part))
            before = store.statistics()
            token = await store.append(
                key, [view[start:end] for start, end in itertools.pairwise(cuts)], len(expected)
            )
            assert bytes(held) == expected, "what was read before has changed with an append"
            expected += bytes(buffer)
            buffer[:] = bytes(len(buffer))
            await anyio.sleep(_LATER_S)
            for opener in (store, other):
                assert bytes(await opener.get(key)) == expected, f"append {number} isn't there as it was"
                info = await opener.head(key)
                assert (info.size, info.token) == (len(expected), token), (
                    f"another head: {info} token={token}"
                )
                listed = [each async for each in opener.list(key)]
                assert [each.size for each in listed] == [len(expected)], (
                    f"listed with another size: {listed}"
                )
                assert listed[0].token in ("", token), f"listed with another token: {listed} token={token}"
                assert not has_ticked or was.modified_ms < info.modified_ms, (
                    f"the time is that of the put: {info} {was}"
                )
            told = store.statistics()
            assert told.puts > before.puts, f"an append is no write: {before} {told}"
            written = told.bytes_written - before.bytes_written
            assert written >= len(buffer), f"{len(buffer)} bytes were appended, told are {written}"
            error = await error_of(store.append(key, [b"what nobody is told"], 1))
            assert isinstance(error, ConflictError), f"an append in the midst: {error!r}"
            assert "what nobody is told" not in f"{error}", (
                "the error of an append tells what is in an object"
            )
            assert store.statistics().errors == told.errors, "that the object ends elsewhere is an answer"
            await _check_swaps(store, key, old, token)


async def _check_swaps(store: Any, key: str, old: str, token: str) -> None:
    if store.capabilities.compare_and_swap:
        with raises(ConflictError):
            await store.compare_and_swap(key, [b"too late"], old)
        await store.compare_and_swap(key, [b"swapped"], token)
        assert bytes(await store.get(key)) == b"swapped", "the token of an append is none to swap with"


@clause(claims="append")
async def test_append_minds_what_other_openers_did(env: Env) -> None:
    """``offset`` must be all of the object, whoever made it what it is: another opener may have appended to it, put
    another one, or deleted it."""
    async with env.open() as store, env.open() as other:
        if store.location != other.location or not store.capabilities.durable:
            not_applicable("each opener has a place of its own")
        meanwhile: dict[str, tuple[Callable[[str], Awaitable[object]], bytes | None]] = {
            "appended": (lambda key: other.append(key, [b"+"], 5), b"first+"),
            "put a longer one": (lambda key: other.put(key, [b"longer"]), b"longer"),
            "put a shorter one": (lambda key: other.put(key, [b"four"]), b"four"),
            "put one as long": (lambda key: other.put(key, [b"other"]), b"other"),
            "deleted it": (lambda key: other.delete([key]), None),
        }
        for what, (change, there) in meanwhile.items():
            for looks in (False, True):
                key = f"meanwhile/{what.replace(' ', '-')}/{looks}"
                await store.append(key, [b"first"], 0)
                if looks:
                    assert (await store.head(key)).size == 5
                await change(key)
                wanted = there
                if there is None or len(there) != 5:
                    error = await error_of(store.append(key, [b"late"], 5))
                    assert isinstance(error, ConflictError), f"another has {what}, and an append: {error!r}"
                else:
                    await store.append(key, [b"late"], 5)
                    wanted = there + b"late"
                if wanted is None:
                    with raises(NotFoundError):
                        await store.get(key)
                else:
                    found = bytes(await store.get(key))
                    assert found == wanted, f"another has {what}, and after an append there is {found!r}"
