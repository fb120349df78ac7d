"""Plugins that are as they should be, and tell something else of themselves beforehand: each is one of its own."""

from __future__ import annotations

__all__ = ()

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, cast

from penstock.hookspecs import hookimpl
from penstock.spi.kinds import REGISTER
from penstock.spi.plugin import PluginSizes, PluginSpec, Services, SettingSize
from penstock_conformance.mutants._mutant import SUMMARY, mutant
from penstock_conformance.reference._block_cache import BlockCacheSettings
from penstock_conformance.reference._block_cache import penstock_register_block_cache as _block_cache
from penstock_conformance.reference._metadata_log import penstock_register_metadata_log as _metadata_log
from penstock_conformance.reference._wal import penstock_register_wal as _wal

_CLAUSE = "sizes_are_told_before_as_they_are"


def _registered(
    defect: str, spec: PluginSpec[Any, Any], sizes: PluginSizes, caught_by: str = _CLAUSE
) -> None:
    """Register the plugin of ``spec``, which tells these sizes."""
    name, hook = f"mutant_{defect}", REGISTER + spec.kind
    mutant(spec.kind, defect, caught_by, plugin=name)(type(defect, (), {}))
    wrong = replace(spec, name=name, summary=SUMMARY, sizes=lambda _: sizes)

    @hookimpl(specname=hook)
    def register() -> PluginSpec[Any, Any]:
        return wrong

    globals()[f"{hook}_{defect}"] = register


_registered("tells_a_small_cache", _block_cache(), PluginSizes(capacity=SettingSize(2**20, "limit")))
_registered(
    "tells_of_a_setting_of_others", _block_cache(), PluginSizes(capacity=SettingSize(4 * 2**20, "capacity"))
)
_registered(
    "tells_of_entries_without_end",
    replace(
        cast("PluginSpec[Any, Any]", _metadata_log()), settings=BlockCacheSettings
    ),  # which has a name to tell
    PluginSizes(entry=SettingSize(2**40, "limit")),
)


def _charging(spec: PluginSpec[Any, Any], size: int, *, gives_back: bool) -> PluginSpec[Any, Any]:
    """The plugin of ``spec``, which has so many bytes beside what it does."""

    @asynccontextmanager
    async def opened(settings: Any, services: Services) -> AsyncIterator[Any]:
        assert services.allocator is not None, "the suite serves logs with an allocator"
        charge = services.allocator.charge_nowait(size, "wal")
        async with spec.open(settings, services) as log:
            yield log
        if gives_back:
            charge.release()

    return replace(spec, open=cast("Callable[[Any, Services], AbstractAsyncContextManager[Any]]", opened))


_registered("tells_of_memory_that_it_has_not", _wal(), PluginSizes(memory=SettingSize(2**20, "capacity")))
_registered(
    "has_more_memory_than_it_tells",
    _charging(_wal(), 2**20 + 4096, gives_back=True),
    PluginSizes(memory=SettingSize(2**20, "capacity")),
)
_registered(
    "keeps_its_memory_at_its_end",
    _charging(_wal(), 2**20, gives_back=False),
    PluginSizes(),
    "opening_leaves_nothing_behind",
)
_registered(
    "would_have_all_keys",
    replace(cast("PluginSpec[Any, Any]", _metadata_log()), key_prefixes=lambda _: ("",)),
    PluginSizes(),
    "keys_begin_as_the_spec_tells",
)
_registered(
    "needs_what_no_store_has",
    replace(
        cast("PluginSpec[Any, Any]", _metadata_log()),
        requires=frozenset({"put_if_absent", "ordered_listing", "transactions"}),
    ),
    PluginSizes(),
    "needs_of_the_store_are_told",
)
