"""Plugin kinds: what must be there for each row of the table, and that plugins are opened by it."""

from __future__ import annotations

import importlib
import re
import typing
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import pytest

from penstock import hookspecs
from penstock.config import DEFAULT_PLUGINS
from penstock.plugins import PluginOpener, PluginRegistry, Selection
from penstock.spi.kinds import (
    ALLOCATOR,
    KINDS,
    LAKE_COMPACTOR,
    METADATA_LOG,
    OBJECT_STORE,
    PARTITIONER,
    SERVICES,
    WAL,
    Kind,
)
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import PluginSpec, S, Services
from penstock.spi.settings import Settings
from penstock.spi.traffic import Traffic

REPOSITORY = Path(__file__).parents[2]
ROWS = [pytest.param(kind, id=name) for name, kind in KINDS.items()]


@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_has_a_hook_that_returns_its_spec(kind: Kind[Any]) -> None:
    hints = typing.get_type_hints(getattr(hookspecs, kind.hook))
    assert typing.get_origin(hints["return"]) is kind.spec


def test_every_registering_hook_has_its_kind() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("penstock_register_")]
    assert sorted(hooks) == sorted(kind.hook for kind in KINDS.values())


@pytest.mark.parametrize("kind", ROWS)
def test_every_kind_has_clauses(kind: Kind[Any]) -> None:
    module = importlib.import_module(kind.clauses)
    assert kind.name == module.KIND
    assert [name for name in vars(module) if name.startswith("test_")]


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("package", ["reference", "mutants"])
def test_every_kind_has_a_module_of_the_suite_that_registers_it(package: str, kind: Kind[Any]) -> None:
    module = importlib.import_module(f"penstock_conformance.{package}._{kind.name}")
    found = getattr(importlib.import_module(f"penstock_conformance.{package}"), kind.hook)
    assert found is getattr(module, kind.hook)
    assert found.__module__ == module.__name__


@pytest.mark.parametrize("kind", ROWS)
def test_the_default_of_every_kind_is_in_the_tree(kind: Kind[Any]) -> None:
    registry = PluginRegistry()
    assert DEFAULT_PLUGINS[kind.name] == kind.default
    if kind.is_optional:
        return
    assert isinstance(registry.select(kind.name, kind.default), kind.spec)


@pytest.mark.parametrize("kind", ROWS)
def test_what_a_kind_needs_is_opened_before_it(kind: Kind[Any]) -> None:
    order = list(KINDS)
    assert all(order.index(needed.name) < order.index(kind.name) for needed in kind.needs)
    assert all(needed.opened_by == "broker" for needed in kind.needs)


@pytest.mark.parametrize("kind", ROWS)
def test_what_is_told_of_a_kind_is_in_its_contract(kind: Kind[Any]) -> None:
    assert hasattr(kind.contract, "statistics") or not kind.statistics
    assert getattr(importlib.import_module(kind.spec.__module__), kind.contract.__name__) is kind.contract
    module = kind.spec.__module__.removeprefix("penstock.spi.")
    assert kind.name == module or kind.name.startswith(f"{module}_")
    assert kind.meaning.endswith(".")


def test_places_are_told_of_what_keeps_data() -> None:
    assert [kind for kind in KINDS.values() if kind.has_place] == [
        OBJECT_STORE,
        METADATA_LOG,
        WAL,
        LAKE_COMPACTOR,
    ]


def _first_column(document: str, title: str) -> list[str]:
    """The names in the first column of the table whose head begins with ``title``."""
    text = (REPOSITORY / "docs" / document).read_text()
    table = text[text.index(title) :].partition("\n\n")[0]
    return re.findall(r"^\| `\[?(\w+)\]?` \|", table, re.MULTILINE)


def test_documents_have_a_row_for_every_kind() -> None:
    assert _first_column("configuration.md", "| section | default `plugin` |") == list(KINDS)
    assert sorted(_first_column("conformance.md", "| kind | what its clauses")) == sorted(KINDS)
    text = (REPOSITORY / "docs" / "writing-a-plugin.md").read_text()
    for kind in KINDS.values():
        words = kind.name.replace("_", " ").replace("wal", "WAL")
        contract = f"`{kind.spec.__module__}.{kind.contract.__name__}`"
        example = f"[{kind.default}](" if kind.default else ""
        assert f"| {words} | {contract} | {example}" in text


# -- opening -------------------------------------------------------------------------------------------------


class _Gate(Protocol):
    """The contract of a kind that isn't there yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _GateSpec(PluginSpec[S, _Gate]):
    kind: ClassVar[str] = "gate"


GATE = Kind(spec=_GateSpec, contract=_Gate, default="gate", meaning="Tries the table.", needs=(ALLOCATOR,))


class _Opened:
    """What the specs below were asked to do, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.services: dict[str, Services] = {}

    def selection(self) -> Selection:
        specs = {name: self._spec(kind) for name, kind in KINDS.items()}
        return Selection(specs=specs, settings={name: Settings() for name in KINDS})

    def _spec(self, kind: Kind[Any]) -> PluginSpec[Any, Any]:
        @asynccontextmanager
        async def opened(settings: Settings, services: Services) -> AsyncIterator[str]:
            self.calls.append(f"open {kind.name}")
            self.services[kind.name] = services
            yield f"the {kind.name}"
            self.calls.append(f"close {kind.name}")

        return kind.spec(name="x", summary="", settings=Settings, capabilities=None, open=opened)


def _services() -> Services:
    return Services(node_id=1, epoch=0, cluster_id="", data_dir=Path(), clock=lambda: 0.0)


@pytest.mark.anyio
async def test_a_broker_opens_by_the_table_and_closes_in_the_opposite_order() -> None:
    opened = _Opened()
    async with AsyncExitStack() as stack:
        opener = PluginOpener(stack, opened.selection(), _services())
        store = await opener.open_through(OBJECT_STORE)
        assert str(store) == "the object_store"
        assert opened.calls == ["open allocator", "open object_store"]
        await opener.open_rest()
        brokers = [name for name, kind in KINDS.items() if kind.opened_by == "broker"]
        assert opened.calls == [f"open {name}" for name in brokers]
        assert [kind.name for kind in opener.opened] == brokers
        async with opener.context(PARTITIONER) as partitioner:
            assert str(partitioner) == "the partitioner"
        del opened.calls[:]
    assert opened.calls == [f"close {name}" for name in reversed(brokers)]


@pytest.mark.anyio
async def test_each_plugin_gets_the_services_that_were_opened_before_it() -> None:
    opened = _Opened()
    async with AsyncExitStack() as stack:
        opener = PluginOpener(stack, opened.selection(), _services())
        await opener.open_through(OBJECT_STORE)
        opener.set(OBJECT_STORE, cast(ObjectStore, "a wrapper"))
        await opener.open_through(METADATA_LOG)
        opener.set_services(epoch=7)
        await opener.open_rest()
    assert SERVICES == ("allocator", "object_store")
    assert opened.services["allocator"].allocator is None
    assert str(opened.services["object_store"].allocator) == "the allocator"
    assert str(opened.services["metadata_log"].object_store) == "a wrapper"
    assert [opened.services[name].epoch for name in ("metadata_log", "wal")] == [0, 7]


@pytest.mark.anyio
async def test_a_new_row_is_opened_without_a_line_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "gate", GATE)
    opened = _Opened()
    async with AsyncExitStack() as stack:
        opener = PluginOpener(stack, opened.selection(), _services())
        await opener.open_rest()
        assert str(opener[GATE]) == "the gate"
        assert str(opened.services["gate"].allocator) == "the allocator"


def test_what_is_written_for_tables_goes_behind_all_others() -> None:
    """Requests of a kind take their turn at the object store as its class does (RFC 0032)."""
    assert LAKE_COMPACTOR.traffic is Traffic.LAKE
    assert {kind.name for kind in KINDS.values() if kind.traffic is Traffic.WAL} == {"metadata_log", "wal"}
