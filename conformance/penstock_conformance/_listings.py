"""Listings of an object store beside each other, and of a directory."""

from __future__ import annotations

__all__ = (
    "check_keys_are_told",
    "check_listings_beside_each_other",
    "files_below",
    "in_order",
    "keys_listed",
)

import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from penstock.spi.object_store import RESERVED_PREFIXES, ObjectStore
from penstock.spi.settings import plugin_tables
from penstock_conformance._clause import not_applicable
from penstock_conformance._env import Env


async def check_keys_are_told(env: Env, store: ObjectStore) -> None:
    """All keys that are there now begin as the plugin's spec tells."""
    keys = [info.key async for info in store.list()]
    spec = env.spec()
    settings = env.target.checked_settings(spec, env.data_dir)
    if not keys or any(plugin_tables(settings)):
        not_applicable("the plugin keeps nothing in the object store, or has others keep it")
    told = tuple(spec.key_prefixes(settings))
    for kernels in RESERVED_PREFIXES:
        mixed = [prefix for prefix in told if prefix.startswith(kernels) or kernels.startswith(prefix)]
        assert not mixed, f"no broker takes a plugin whose keys are among its own: {mixed[0]!r} {kernels!r}"
    strange = [key for key in keys if not key.startswith(told)]
    assert not strange, f"{len(strange)} of {len(keys)} keys begin otherwise than told: {strange[0]} {told}"


async def keys_listed(store: Any, prefix: str = "", start_after: str = "") -> list[str]:
    """The keys of a listing; sorted, where the store lists in any order."""
    return in_order(store, [info.key async for info in store.list(prefix, start_after)])


def in_order(store: Any, keys: Sequence[str]) -> list[str]:
    """Keys as they were listed; sorted, where the store lists in any order."""
    return list(keys) if store.capabilities.ordered_listing else sorted(keys)


async def check_listings_beside_each_other(store: Any, prefix: str, keys: Sequence[str]) -> None:
    """Two listings that go in step, and one after each of them was left half-way."""
    first: AsyncIterator[Any] = store.list(prefix)
    second: AsyncIterator[Any] = store.list(prefix)
    seen: tuple[list[str], list[str]] = ([], [])
    for _ in keys:
        for found, listing in zip(seen, (first, second), strict=True):
            info = await anext(listing, None)
            found.append("nothing" if info is None else info.key)
    for found in seen:
        assert in_order(store, found) == list(keys), (
            f"one of two listings beside each other is another one: {found[:20]}"
        )
    for left in (1, 15):
        async for _ in store.list(prefix):
            left -= 1
            if not left:
                break
        whole = await keys_listed(store, prefix)
        assert whole == list(keys), f"a listing after one that was left half-way has {len(whole)} keys"


def files_below(folder: Path) -> dict[str, str]:
    """What is there, and a digest of what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }
