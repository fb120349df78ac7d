"""Clauses of ``penstock.spi.object_store`` about continuity: what a long use leaves."""

from __future__ import annotations

from contextlib import suppress

from penstock.errors import NotFoundError
from penstock_conformance._body import make_body
from penstock_conformance._clause import clause
from penstock_conformance._env import Env
from penstock_conformance._growth import grows_nothing

KIND = "object_store"


@clause(level=5)
async def test_long_use_grows_nothing(env: Env) -> None:
    """Hundreds of puts, reads, listings that are left early, misses and deletions: nothing stays of any of them."""
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
            await store.delete([key])

        await grows_nothing(cycle)
