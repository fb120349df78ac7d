"""Plugins that open plugins: found, checked, told and opened as those that the configuration selects itself."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.config import ExplainedKey, explain, load_config
from penstock.errors import (
    CapabilityError,
    ConfigError,
    FencedError,
    InvariantError,
    PenstockError,
    PluginError,
)
from penstock.plugins import PluginOpener, PluginRegistry
from penstock.spi import Services
from penstock.spi.kinds import ALLOCATOR, OBJECT_STORE, WAL
from penstock.spi.wal import WalSpec, WriteAheadLog

MODULE = '''
"""A log that only opens others, and is the first of them."""
from contextlib import AsyncExitStack, asynccontextmanager

from penstock.hookspecs import hookimpl
from penstock.spi import PluginTable, Settings
from penstock.spi.wal import WalCapabilities, WalSpec


class Replica(PluginTable):
    kind = "wal"


class MirrorSettings(Settings):
    replicas: tuple[Replica, ...] = (Replica(plugin="wal_block"),)


@asynccontextmanager
async def open_mirror(settings, services):
    async with AsyncExitStack() as stack:
        opened = [
            await stack.enter_async_context(services.open_plugin(WalSpec, table, epoch=services.epoch + 6))
            for table in settings.replicas
        ]
        yield opened[0]


@hookimpl
def penstock_register_wal():
    return WalSpec(
        name="wal_mirror",
        summary="opens others",
        settings=MirrorSettings,
        capabilities=WalCapabilities(durability_domain="host"),
        open=open_mirror,
    )
'''
TWO = 'wal.replicas=[{plugin="wal_block", path="a.wal"}, {plugin="wal_s3", prefix="b/"}]'
OWN_STORE = 'wal.replicas=[{plugin="wal_s3", object_store={url="memory://other"}}]'


pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> PluginRegistry:
    directory = tmp_path_factory.mktemp("plugins")
    (directory / "nested_mirror.py").write_text(MODULE)
    return PluginRegistry(env={}, plugins_dirs=[directory])


def sets(*more: str) -> list[str]:
    return ["wal.plugin=wal_mirror", "object_store.url=memory://main", *more]


def refused(registry: PluginRegistry, *more: str, error: type[PenstockError] = ConfigError) -> str:
    with pytest.raises(error) as caught:
        registry.select_all(load_config(sets=sets(*more)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def explained(
    registry: PluginRegistry, key: str, *more: str, env: Mapping[str, str] | None = None
) -> list[ExplainedKey]:
    return explain(load_config(sets=sets(*more), env=env), registry, key)


@asynccontextmanager
async def opened(registry: PluginRegistry, data_dir: Path, *more: str) -> AsyncIterator[PluginOpener]:
    places = [text.replace("memory://", f"memory://{data_dir.name}-") for text in sets(*more)]
    selection = registry.select_all(load_config(sets=places))
    services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=data_dir, clock=time.monotonic)
    async with AsyncExitStack() as stack:
        plugins = PluginOpener(stack, selection, services)
        await plugins.open(ALLOCATOR)
        await plugins.open(OBJECT_STORE)
        await plugins.open(WAL)
        yield plugins


def values(rows: Sequence[ExplainedKey]) -> dict[str, tuple[str, str]]:
    return {row.key: (row.value, row.origin) for row in rows}


# -- the command line, the environment and the file --------------------------------------------------------------


def test_a_list_of_tables_is_given_in_one_go(registry: PluginRegistry) -> None:
    found = registry.select_all(load_config(sets=sets(TWO))).nested
    assert [(nested.key, nested.spec.name) for nested in found] == [
        ("wal.replicas[0]", "wal_block"),
        ("wal.replicas[1]", "wal_s3"),
    ]
    settings: Any = found[0].settings
    assert settings.path == "a.wal"


def test_a_list_of_tables_is_given_key_by_key(registry: PluginRegistry) -> None:
    env = {
        f"PENSTOCK__WAL__REPLICAS__{index}__PLUGIN": "wal_block"
        for index in (0, 1, 2, 10, 9, 3, 4, 5, 6, 7, 8)
    }
    rows = values(
        explained(registry, "wal", "wal.replicas.1.path=b", "wal.replicas[2].capacity=1MiB", env=env)
    )
    assert rows["wal.replicas[1].plugin"] == ("wal_block", "PENSTOCK__WAL__REPLICAS__1__PLUGIN")
    assert rows["wal.replicas[1].path"] == ("b", "--set wal.replicas.1.path")
    assert rows["wal.replicas[2].capacity"] == ("1MiB", "--set wal.replicas[2].capacity")
    assert rows["wal.replicas[10].path"] == ("wal/penstock.wal", "default")


def test_one_key_of_a_list_that_a_file_has_is_overridden(registry: PluginRegistry, tmp_path: Path) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text(
        '[wal]\nplugin = "wal_mirror"\n[[wal.replicas]]\nplugin = "wal_block"\npath = "a"\n'
        '[[wal.replicas]]\nplugin = "wal_s3"\n[wal.replicas.object_store]\nurl = "memory://z"\n'
    )
    config = load_config(path, sets=["wal.replicas.0.path=/x"])
    rows = values(explain(config, registry, "wal.replicas"))
    assert rows["wal.replicas[0].path"] == ("/x", "--set wal.replicas.0.path")
    assert rows["wal.replicas[0].plugin"] == ("wal_block", f"{path}:4")
    assert rows["wal.replicas[1].object_store.url"] == ("memory://z", f"{path}:9")
    assert rows["wal.replicas[1].object_store.plugin"] == ("object_store_fsspec", f"{path}:8")


def test_tables_of_an_inline_list_are_found_on_their_lines(registry: PluginRegistry, tmp_path: Path) -> None:
    path = tmp_path / "penstock.toml"
    path.write_text(
        '[wal]\nplugin = "wal_mirror"\nreplicas = [\n  { plugin = "wal_block", path = "a" },  # one\n'
        '  { plugin = "wal_block", path = 7 },\n]\n'
    )
    with pytest.raises(ConfigError) as caught:
        registry.select_all(load_config(path))
    assert str(caught.value) == f"{path}:5: wal.replicas[1].path must be a string: value=7"


def test_what_a_program_hands_in_is_not_changed() -> None:
    tables = [{"plugin": "wal_block"}]
    load_config(overrides={"wal": {"replicas": tables}, "wal.replicas.0.path": "a"})
    assert tables == [{"plugin": "wal_block"}]


def test_a_list_has_no_holes(registry: PluginRegistry) -> None:
    with pytest.raises(
        ConfigError, match=r"wal.replicas\[2\] isn't in the list wal.replicas, which has 1 entries"
    ):
        load_config(sets=sets("wal.replicas.0.path=a", "wal.replicas.2.path=b"))


# -- checks ------------------------------------------------------------------------------------------------------


def test_an_unknown_key_of_a_nested_plugin_is_named_with_its_path(registry: PluginRegistry) -> None:
    assert refused(registry, 'wal.replicas=[{plugin="wal_block", pth="a"}]') == (
        "--set wal.replicas: wal.replicas[0].pth is no configuration key, the nearest key is wal.replicas[0].path: "
        "value='a'"
    )


def test_an_unknown_nested_plugin_is_named_with_its_path(registry: PluginRegistry) -> None:
    sentence = refused(registry, 'wal.replicas=[{plugin="wal_blok"}]', error=PluginError)
    assert sentence.startswith("--set wal.replicas: wal.replicas[0]: no plugin of this kind has this name, ")


def test_a_table_without_a_plugin_is_refused(registry: PluginRegistry) -> None:
    sentence = refused(registry, "wal.replicas.0.path=a")
    assert sentence.startswith("wal.replicas[0].plugin is required and has no default")
    assert sentence.endswith("PENSTOCK__WAL__REPLICAS__0__PLUGIN")


def test_a_list_of_something_else_is_refused(registry: PluginRegistry) -> None:
    assert (
        refused(registry, "wal.replicas=7")
        == "--set wal.replicas: wal.replicas must be a list of tables: value=7"
    )
    assert "wal.replicas must be a list of tables" in refused(registry, "wal.replicas=[7]")


def test_a_nested_plugin_that_needs_more_of_a_store_is_refused_with_its_path(
    registry: PluginRegistry,
) -> None:
    store = registry.select("object_store", "object_store_fsspec")
    found = registry.select_all(load_config(sets=sets(TWO))).nested[1]
    narrowed = type(store.capabilities)(put_if_absent=False)
    with pytest.raises(CapabilityError, match=r"^the plugin at wal.replicas\[1\] needs an object store"):
        found.check_store(narrowed, "bucket://x")


def test_nested_plugins_that_share_the_store_keep_apart(registry: PluginRegistry) -> None:
    both = 'wal.replicas=[{plugin="wal_s3"}, {plugin="wal_s3"}]'
    assert "would keep its objects among those of the wal.replicas[0]" in refused(registry, both)
    own = 'wal.replicas=[{plugin="wal_s3"}, {plugin="wal_s3", object_store={url="memory://z"}}]'
    registry.select_all(load_config(sets=sets(own)))


def test_secrets_of_nested_plugins_are_masked(registry: PluginRegistry) -> None:
    table = '{url="s3://bucket", options={secret="hunter2", key="AK"}}'
    rows = values(explained(registry, "wal", f'wal.replicas=[{{plugin="wal_s3", object_store={table}}}]'))
    assert rows["wal.replicas[0].object_store.options.secret"] == ("***", "--set wal.replicas")
    assert rows["wal.replicas[0].object_store.url"] == ("s3://bucket", "--set wal.replicas")
    assert "hunter2" not in str(rows)
    bad = f'wal.replicas=[{{plugin="wal_s3", object_store={table}, password="hunter2"}}]'
    assert "hunter2" not in refused(registry, bad)
    assert "hunter2" not in refused(registry, 'wal.replicas={password="hunter2"}')


# -- opening -----------------------------------------------------------------------------------------------------


async def test_nested_plugins_are_opened_with_the_owners_services(
    registry: PluginRegistry, tmp_path: Path
) -> None:
    async with opened(registry, tmp_path, TWO) as plugins:
        wal: WriteAheadLog = plugins[WAL]
        assert [entry async for entry in wal.recover()] == []
        await wal.append([b"x"]).wait_durable()
        assert (tmp_path / "a.wal").exists()
    assert plugins.opened_by_plugins == {}


async def test_what_plugins_opened_is_told_under_its_key(registry: PluginRegistry, tmp_path: Path) -> None:
    async with opened(registry, tmp_path, TWO) as plugins:
        assert list(plugins.opened_by_plugins) == ["wal.replicas[0]", "wal.replicas[1]"]


async def test_a_nested_plugin_has_a_store_of_its_own(registry: PluginRegistry, tmp_path: Path) -> None:
    async with opened(registry, tmp_path, OWN_STORE) as plugins:
        assert list(plugins.opened_by_plugins) == ["wal.replicas[0].object_store", "wal.replicas[0]"]
        stores = [plugins[OBJECT_STORE], plugins.opened_by_plugins["wal.replicas[0].object_store"]]
        assert [[info.key async for info in store.list("")] != [] for store in stores] == [False, True]


async def test_a_nested_plugin_gets_the_epoch_that_its_owner_says(
    registry: PluginRegistry, tmp_path: Path
) -> None:
    async with opened(registry, tmp_path, OWN_STORE):
        pass
    with pytest.raises(FencedError, match="owner_epoch=7 epoch=7"):
        async with opened(registry, tmp_path, OWN_STORE):
            pass


async def test_the_error_of_an_opening_says_the_key(registry: PluginRegistry, tmp_path: Path) -> None:
    (tmp_path / "a.wal").mkdir()
    with pytest.raises(PenstockError, match=r"^wal.replicas\[0\]: "):
        async with opened(registry, tmp_path, TWO):
            pass


async def test_a_plugin_opens_no_kind_that_needs_what_is_not_there(
    registry: PluginRegistry, tmp_path: Path
) -> None:
    selection = registry.select_all(load_config(sets=sets(TWO)))
    services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=tmp_path, clock=time.monotonic)
    async with AsyncExitStack() as stack:
        plugins = PluginOpener(stack, selection, services)
        with pytest.raises(InvariantError, match="there is no allocator yet for a wal"):
            await plugins.open(WAL)


async def test_services_without_a_registry_open_nothing(tmp_path: Path) -> None:
    services = Services(node_id=1, epoch=1, cluster_id="c", data_dir=tmp_path, clock=time.monotonic)
    with pytest.raises(InvariantError, match="these services open no plugins"):
        services.open_plugin(WalSpec, {"plugin": "wal_block"})
