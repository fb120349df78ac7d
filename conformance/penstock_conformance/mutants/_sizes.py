"""Plugins that are as they should be, and tell other sizes beforehand: each is a plugin of its own."""

from __future__ import annotations

__all__ = ()

from dataclasses import replace
from typing import Any, cast

from penstock.hookspecs import hookimpl
from penstock.spi.kinds import REGISTER
from penstock.spi.plugin import PluginSizes, PluginSpec, SettingSize
from penstock_conformance.mutants._mutant import SUMMARY, mutant
from penstock_conformance.reference._block_cache import BlockCacheSettings
from penstock_conformance.reference._block_cache import penstock_register_block_cache as _block_cache
from penstock_conformance.reference._metadata_log import penstock_register_metadata_log as _metadata_log

_CLAUSE = "sizes_are_told_before_as_they_are"


def _registered(defect: str, spec: PluginSpec[Any, Any], sizes: PluginSizes) -> None:
    """Register the plugin of ``spec``, which tells these sizes."""
    name, hook = f"mutant_{defect}", REGISTER + spec.kind
    mutant(spec.kind, defect, _CLAUSE, plugin=name)(type(defect, (), {}))
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
