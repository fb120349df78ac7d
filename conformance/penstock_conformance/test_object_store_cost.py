"""Clauses of ``penstock.spi.object_store`` about continuity: what a long use leaves."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from penstock.errors import AlreadyExistsError, ConflictError, NotFoundError
from penstock_conformance._body import make_body
from penstock_conformance._clause import clause
from penstock_conformance._env import Env, raises
from penstock_conformance._growth import grows_nothing

KIND = "object_store"

#: What a store may keep of names, of which it knows thousands: more is an object's bytes.
_KEYS_BYTES = 1000


async def _look(store: Any) -> None:
    with suppress(NotFoundError):
        await store.get("given-up")


@clause(level=5)
async def test_long_use_grows_nothing(env: Env) -> None:
    """Of puts, reads, listings left early, misses, refusals, aborts, deletions and calls given up, nothing stays."""
    async with env.open() as store:

        async def cycle(number: int) -> None:
            key = f"object-{number}"
            await store.put(key, [make_body(1, number, 500)])
            await store.head(key)
            await store.get(key, 10, 20)
            assert len(await store.get(key)) == 500
            listing = store.list("")
            await anext(listing)
            await listing.aclose()
            with suppress(NotFoundError):
                await store.get(f"missing-{number}")
            if store.capabilities.put_if_absent:
                with raises(AlreadyExistsError):
                    await store.put_if_absent(key, [b"another"])
            if store.capabilities.compare_and_swap:
                await store.compare_and_swap(key, [make_body(2, number, 600)], (await store.head(key)).token)
                with raises(ConflictError):
                    await store.compare_and_swap(key, [b"another"], "nonsense")
            if store.capabilities.multipart:
                upload = await store.create_multipart(key)
                await upload.write_part([b"given up"])
                await upload.abort()
                upload = await store.create_multipart(key)
                for _ in range(2):
                    await upload.write_part([make_body(3, number, 700)])
                await upload.complete()
            await store.delete([key])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(store.put, "given-up", [b"given up"])
                tasks.start_soon(_look, store)
                for _ in range(number % 4):
                    await checkpoint()
                tasks.cancel_scope.cancel()

        def files() -> int:
            return sum(path.is_file() for path in env.data_dir.rglob("*"))

        await grows_nothing(cycle, files, _KEYS_BYTES)
