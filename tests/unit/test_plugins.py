"""Finding, checking and selecting plugins, and each hook's behaviour."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from penstock import plugins as plugins_module
from penstock.config import DEFAULT_PLUGINS, load_config
from penstock.errors import CapabilityError, ConfigError, PluginError
from penstock.plugins import (
    PluginRegistry,
    _discovery,
    check_combination,
    missing_dependency,
    validate_settings,
)
from penstock.spi import SPI_VERSION, PluginSpec, Services, Settings
from penstock.spi.events import (
    BrokerStarted,
    BrokerStopping,
    ObjectsDestroyed,
    PartitionClosed,
    PartitionOpened,
    RecoveryFinished,
    TopicCreated,
    TopicDeleted,
    UploadCommitted,
    WalDegraded,
    WalRestored,
)
from penstock.spi.kinds import KINDS
from penstock.spi.object_store import ObjectStoreCapabilities, ObjectStoreSpec

#: Capabilities of kinds that can't do without saying any.
CAPABILITIES = {"wal": "durability_domain='host'"}

Write = Callable[..., str]


def provider(kind: str, name: str, extra: str = "") -> str:
    """The source of a plugin of ``kind``."""
    spec = KINDS[kind].spec
    capabilities = f"{spec.__name__.removesuffix('Spec')}Capabilities({CAPABILITIES.get(kind, '')})"
    return f'''
"""A plugin made by a test."""
from penstock.hookspecs import hookimpl
from penstock.spi import Settings
from {spec.__module__} import *

class MySettings(Settings):
    """Nothing to set but this."""
    depth: int = 3

@hookimpl
def penstock_register_{kind}():
    return {spec.__name__}(name="{name}", summary="made by a test", settings=MySettings, capabilities={capabilities},
                  open=lambda settings, services: None, version="7", {extra})
'''


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module on the import path; forgets it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write_module(name: str, source: str, directory: str = ".") -> str:
        path = tmp_path / directory / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return name

    yield write_module
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


class FakeDistribution:
    """As much of a distribution as the registry looks at."""

    def __init__(self, name: str, version: str) -> None:
        self.name = name
        self.version = version


def install(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str, str]) -> None:
    """Have exactly these entry points: (name, module, distribution)."""
    found: dict[str, list[importlib.metadata.EntryPoint]] = {}
    for name, module, distribution in points:
        point = importlib.metadata.EntryPoint(name, module, plugins_module.ENTRY_POINT_GROUP)
        vars(point)["dist"] = FakeDistribution(distribution, "1.2")
        found.setdefault(distribution, []).append(point)
    monkeypatch.setattr(_discovery, "_in", lambda place, changed_ns: found)


# Discovery


def test_entry_points_are_listed_without_importing(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("lazy_one", write("lazy_one_module", "raise RuntimeError('imported')"), "lazy"))
    registry = PluginRegistry()
    assert "lazy_one_module" not in sys.modules
    assert list(registry.load_all()) == ["lazy_one"]


def _installed(place: Path, name: str, version: str, plugin: str) -> None:
    told = place / f"{name}-{version}.dist-info"
    told.mkdir(parents=True)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (told / "entry_points.txt").write_text(f"[penstock.plugins]\n{plugin} = {plugin}_module\n")


def test_what_is_installed_is_read_once_and_again_after_an_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    names = [*_discovery.entry_points()]
    read = _discovery._in.cache_info().misses
    assert [*_discovery.entry_points()] == names
    assert _discovery._in.cache_info().misses == read
    _installed(tmp_path, "late", "1.0", "late")
    assert set(_discovery.entry_points()) == {*names, "late"}
    assert _discovery._in.cache_info().misses == read + 1


def test_of_a_distribution_that_is_there_twice_the_first_on_the_path_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, version, name in (("older", "1.0", "Some.Plugins"), ("newer", "2.0", "some_plugins")):
        _installed(tmp_path / place, name, version, "one_of_some")
        monkeypatch.syspath_prepend(tmp_path / place)
    (found,) = _discovery.entry_points()["one_of_some"]
    assert _discovery.entry_point_origin(found) == "some_plugins 2.0"


def test_only_the_selected_plugin_is_imported(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        ("first", write("first_module", provider("wal", "first")), "one"),
        ("second", write("second_module", provider("wal", "second")), "two"),
    )
    spec = PluginRegistry().select("wal", "first")
    assert (spec.name, spec.kind) == ("first", "wal")
    assert "first_module" in sys.modules
    assert "second_module" not in sys.modules


def test_plugin_whose_entry_point_has_another_name_is_found(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, ("a_distribution", write("odd_module", provider("wal", "odd")), "odd"))
    assert PluginRegistry().select("wal", "odd").name == "odd"


def test_module_given_by_name_is_loaded(write: Write) -> None:
    registry = PluginRegistry(modules=[write("given_module", provider("wal", "given"))])
    assert registry.select("wal", "given").summary == "made by a test"


def test_unknown_module_is_refused() -> None:
    with pytest.raises(PluginError, match=r"no plugin and no module has this name.*name=nowhere_to_be_found"):
        PluginRegistry(modules=["nowhere_to_be_found"])


def test_plugins_directory_gives_modules_and_packages(write: Write, tmp_path: Path) -> None:
    write("dir_single", provider("wal", "dir_single"), "more")
    write("__init__", "from dir_package._spec import penstock_register_wal", "more/dir_package")
    write("_spec", provider("wal", "dir_package"), "more/dir_package")
    write("_ignored", "raise RuntimeError", "more")
    for _ in range(2):  # a second broker in the same process finds them too
        registry = PluginRegistry(plugins_dirs=[tmp_path / "more"])
        assert {info.name for info in registry.infos()} == {"dir_single", "dir_package"}
    origins = {info.name: info.origin for info in registry.infos()}
    assert origins["dir_single"] == str((tmp_path / "more" / "dir_single.py").resolve())


def test_plugins_directory_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"plugins directory not found"):
        PluginRegistry(plugins_dirs=[tmp_path / "nothing"])


def test_plugins_directory_does_not_shadow_modules(write: Write, tmp_path: Path) -> None:
    write("json", provider("wal", "json"), "more")
    with pytest.raises(PluginError, match=r"a module of this name is there already"):
        PluginRegistry(plugins_dirs=[tmp_path / "more"])


def test_a_plugins_directory_may_hold_modules_that_plugins_there_import(write: Write, tmp_path: Path) -> None:
    """A file that registers nothing is a helper: no plugin, and no error; whichever comes first by name."""
    write("aa_helper", "import zz_helper\nNAME = zz_helper.NAME", "more")
    write("_hidden_helper", "SUFFIX = 'helper'", "more")
    write("zz_helper", "from _hidden_helper import SUFFIX\nNAME = 'with_' + SUFFIX", "more")
    source = provider("wal", "with_helper").replace('name="with_helper"', "name=aa_helper.NAME")
    write("mm_plugin", "import aa_helper\n" + textwrap.dedent(source), "more")
    write("__init__", "from helped import mm_plugin_too", "more/helped")
    write("mm_plugin_too", "import aa_helper", "more/helped")
    for _ in range(2):
        registry = PluginRegistry(plugins_dirs=[tmp_path / "more"])
        assert [info.name for info in registry.infos()] == ["with_helper"]
        assert registry.load_all() == {}


def test_a_function_called_like_a_hook_and_not_marked_makes_no_helper(write: Write, tmp_path: Path) -> None:
    write("forgot_the_mark", "def penstock_register_wal():\n    pass", "more")
    with pytest.raises(PluginError, match=r"has no hook, mark its functions .*name=forgot_the_mark"):
        PluginRegistry(plugins_dirs=[tmp_path / "more"])


def test_a_helper_that_cant_be_imported_is_told_by_its_name(write: Write, tmp_path: Path) -> None:
    write("broken_helper", "1 / 0", "more")
    with pytest.raises(PluginError, match=r"can't be imported: name=broken_helper from .*division by zero"):
        PluginRegistry(plugins_dirs=[tmp_path / "more"])


def test_a_helper_does_not_shadow_modules_either(write: Write, tmp_path: Path) -> None:
    write("string", "LETTERS = 'mine'", "more")
    with pytest.raises(PluginError, match=r"there already, rename the file: name=string"):
        PluginRegistry(plugins_dirs=[tmp_path / "more"])


def test_environment_limits_what_is_loaded(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        ("first", write("first_module", provider("wal", "first")), "one"),
        ("second", write("second_module", provider("wal", "second")), "two"),
    )
    explicit = write("explicit_module", provider("wal", "explicit"))
    registry = PluginRegistry(env={"PENSTOCK_LOAD_PLUGINS": "second"}, modules=[explicit])
    registry.load(["first"])
    assert registry.load_all() == {}
    assert [info.name for info in registry.infos()] == ["explicit", "second"]
    with pytest.raises(
        PluginError, match=r"PENSTOCK_LOAD_PLUGINS leaves out a plugin that is selected.*name=first"
    ):
        registry.select("wal", "first")


def test_empty_limit_loads_only_what_is_given(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ("first", write("first_module", provider("wal", "first")), "one"))
    explicit = write("explicit_module", provider("wal", "explicit"))
    registry = PluginRegistry(env={"PENSTOCK_LOAD_PLUGINS": ""}, modules=[explicit, "first"])
    registry.load_all()
    assert [info.name for info in registry.infos()] == ["explicit", "first"]


# Refusals


def test_two_distributions_with_one_name_are_refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    module = write("same_module", provider("wal", "same"))
    install(monkeypatch, ("same", module, "left"), ("same", module, "right"))
    with pytest.raises(
        PluginError, match=r"two plugins have the same name.*name=same from left 1.2 and right 1.2"
    ):
        PluginRegistry().select("wal", "same")


def test_two_providers_of_one_name_are_refused(write: Write) -> None:
    one, two = write("one_module", provider("wal", "same")), write("two_module", provider("wal", "same"))
    with pytest.raises(
        PluginError,
        match=r"same name and kind.*name=same kind=wal from module one_module and module two_module",
    ):
        PluginRegistry(modules=[one, two])


def test_hook_imported_from_another_plugin_is_refused(write: Write) -> None:
    one = write("one_module", provider("wal", "one"))
    two = write("two_module", "from one_module import penstock_register_wal")
    with pytest.raises(PluginError, match=r"two plugins have the same name and kind.*name=one"):
        PluginRegistry(modules=[one, two])


def test_same_name_for_two_kinds_is_fine(write: Write) -> None:
    one, two = (
        write("one_module", provider("wal", "same")),
        write("two_module", provider("log_cache", "same")),
    )
    registry = PluginRegistry(modules=[one, two])
    assert [registry.select(kind, "same").kind for kind in ("wal", "log_cache")] == ["wal", "log_cache"]


@pytest.mark.parametrize(
    ("version", "advice"), [(SPI_VERSION + 1, "upgrade Penstock"), (0, "upgrade the plugin")]
)
def test_other_spi_version_is_refused(write: Write, version: int, advice: str) -> None:
    module = write("other_module", provider("wal", "other", f"spi_version={version}"))
    with pytest.raises(
        PluginError, match=f"SPI version {version} and this Penstock speaks 1 to {SPI_VERSION}, {advice}"
    ):
        PluginRegistry(modules=[module])


def test_plugin_of_the_version_before_is_taken(write: Write) -> None:
    module = write("older_module", provider("wal", "older", f"spi_version={SPI_VERSION - 1}"))
    assert PluginRegistry(modules=[module]).select("wal", "older").spi_version == SPI_VERSION - 1


@pytest.mark.parametrize(
    ("wal", "metadata", "refused"),
    [
        ("wal/", "metadata/", ""),
        ("a/wal/", "a/metadata/", ""),
        ("objects/", "metadata/", "the wal plugin wal_s3 would keep its objects among those of the broker"),
        ("objects/wal/", "metadata/", "wal='objects/wal/' broker='objects/'"),
        ("wal/", "objects/", "the metadata_log plugin metadata_object would keep"),
        ("metadata/", "metadata/", "among those of the metadata_log"),
        ("metadata/wal/", "metadata/", "wal='metadata/wal/' metadata_log='metadata/'"),
        ("m/", "m/etadata/", "choose another prefix for it: wal='m/' metadata_log='m/etadata/'"),
    ],
)
def test_plugins_do_not_keep_objects_among_others(wal: str, metadata: str, refused: str) -> None:
    config = load_config(
        sets=["wal.plugin=wal_s3", f"wal.prefix={wal}", f"metadata_log.prefix={metadata}"], env={}
    )
    with pytest.raises(ConfigError, match=refused) if refused else nullcontext():
        PluginRegistry().select_all(config)


def test_unknown_hook_is_refused_with_the_nearest(write: Write) -> None:
    module = write(
        "typo_module",
        """
        from penstock.hookspecs import hookimpl
        @hookimpl
        def penstock_on_topic_creatd(event): ...
        """,
    )
    with pytest.raises(
        PluginError, match=r"nearest hook is penstock_on_topic_created.*hook=penstock_on_topic_creatd"
    ):
        PluginRegistry(modules=[module])


def test_hook_with_an_unknown_argument_is_refused(write: Write) -> None:
    module = write(
        "argument_module",
        """
        from penstock.hookspecs import hookimpl
        @hookimpl
        def penstock_on_topic_created(event, topic): ...
        """,
    )
    with pytest.raises(PluginError, match=r"doesn't fit its specification: name=argument_module .*topic"):
        PluginRegistry(modules=[module])


def test_module_without_hooks_is_refused(write: Write) -> None:
    with pytest.raises(
        PluginError, match=r"has no hook, mark its functions with penstock.hookspecs.hookimpl"
    ):
        PluginRegistry(modules=[write("bare_module", "def penstock_register_wal(): ...")])


def test_wrong_spec_class_is_refused(write: Write) -> None:
    source = provider("wal", "wrong").replace("penstock_register_wal", "penstock_register_allocator")
    with pytest.raises(
        PluginError, match=r"must return the spec class of that kind: name=wrong .* got=WalSpec"
    ):
        PluginRegistry(modules=[write("wrong_module", source)])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("settings=MySettings", "settings=dict"), "subclass of penstock.spi.Settings"),
        (("odd_name", "Odd Name"), "lowercase"),
    ],
)
def test_malformed_spec_is_refused(write: Write, change: tuple[str, str], sentence: str) -> None:
    with pytest.raises(PluginError, match=sentence):
        PluginRegistry(modules=[write("odd_module", provider("wal", "odd_name").replace(*change))])


@pytest.mark.parametrize("claimed", [True, False])
def test_wal_with_half_an_identity_is_refused(write: Write, claimed: bool) -> None:
    source = provider("wal", "half", "" if claimed else "identify=print")
    if claimed:
        source = source.replace("domain='host'", "domain='host', identity=True")
    with pytest.raises(
        PluginError, match="identify if and only if it claims the capability identity: name=half"
    ):
        PluginRegistry(modules=[write("half_module", source)])


def test_entry_point_must_name_a_module(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    module = write("function_module", provider("wal", "function"))
    install(monkeypatch, ("function", f"{module}:penstock_register_wal", "odd"))
    with pytest.raises(PluginError, match=r"entry point must name a module, without a colon"):
        PluginRegistry().select("wal", "function")


def test_refused_plugin_leaves_nothing_behind(write: Write) -> None:
    registry = PluginRegistry()
    with pytest.raises(PluginError):
        registry.load([write("bad_module", provider("wal", "fine", "spi_version=99"))])
    registry.load([write("good_module", provider("wal", "fine"))])
    assert [info.origin for info in registry.infos()] == ["module good_module"]


def test_error_while_importing_names_the_plugin(write: Write) -> None:
    with pytest.raises(
        PluginError, match=r"can't be imported: name=broken_module .*reason=ZeroDivisionError"
    ):
        PluginRegistry(modules=[write("broken_module", "1 / 0")])


def test_missing_module_is_named(write: Write) -> None:
    with pytest.raises(
        PluginError, match=r"install the package that has the module not_there: .*module=not_there"
    ):
        PluginRegistry(modules=[write("needy_module", "import not_there.sub")])


@pytest.mark.parametrize(
    ("module", "extra"),
    [("s3fs", "s3"), ("gcsfs.core", "gcs"), ("adlfs", "azure"), ("pytest_timeout", "conformance")],
)
def test_missing_module_of_an_extra_says_what_to_install(module: str, extra: str) -> None:
    error = missing_dependency("object_store_fsspec", ModuleNotFoundError("no", name=module))
    assert f"pip install 'penstock[{extra}]'" in str(error)


# Selection


def test_unknown_name_is_refused_with_the_nearest(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        monkeypatch,
        ("wal_block", write("block_module", provider("wal", "wal_block")), "penstock"),
        ("broken", write("broken_module", "1 / 0"), "other"),
    )
    registry = PluginRegistry()
    with pytest.raises(
        PluginError, match=r"nearest is wal_block \(1 could not be loaded: broken\): kind=wal name=wal_blok"
    ):
        registry.select("wal", "wal_blok")
    with pytest.raises(PluginError, match=r"wal_block is a plugin of kind wal, choose from"):
        registry.select("allocator", "wal_block")
    with pytest.raises(PluginError, match=r"none is installed"):
        registry.select("allocator", "x")


def test_configuration_selects_every_kind_and_checks_its_settings(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = []
    named = {kind: name for kind, name in DEFAULT_PLUGINS.items() if name}
    for kind, name in named.items():
        source = provider(kind, name)
        if kind == "allocator":
            source = source.replace("depth: int = 3", "limit: int = 3")
        points.append((name, write(f"module_of_{kind}", source), "penstock"))
    points.append(
        ("watcher", write("watcher_module", OBSERVER_SOURCE.format(hook="penstock_on_topic_created")), "x")
    )
    install(monkeypatch, *points)
    registry = PluginRegistry()
    selection = registry.select_all(load_config(sets=["wal.depth=5", "plugins.load=watcher"]))
    assert selection.names == named
    assert list(selection.specs) == list(named)
    assert selection.settings["wal"].model_dump() == {"depth": 5}
    assert selection.settings["allocator"].model_dump() == {"limit": (512 - 160) * 2**20}
    assert "watcher" in {info.name for info in registry.infos()}
    with pytest.raises(
        ConfigError, match=r"^--set wal.dept: wal.dept is no configuration key, the nearest key is wal.depth"
    ):
        registry.select_all(load_config(sets=["wal.dept=5"]))


def _open(settings: Settings, services: Services) -> AbstractAsyncContextManager[Any]:
    raise NotImplementedError


def _store(requires: frozenset[str] = frozenset()) -> PluginSpec[Any, Any]:
    return ObjectStoreSpec(
        name="store",
        summary="",
        settings=Settings,
        capabilities=ObjectStoreCapabilities(),
        open=_open,
        requires=requires,
    )


def test_plugin_that_needs_what_the_store_lacks_is_refused() -> None:
    spec = _store(requires=frozenset({"put_if_absent"}))
    check_combination([spec], ObjectStoreCapabilities(put_if_absent=True))
    with pytest.raises(
        CapabilityError, match=r"store needs an object store with put_if_absent and store has it not"
    ):
        check_combination([spec], ObjectStoreCapabilities())


def test_requirement_that_is_no_capability_is_refused() -> None:
    with pytest.raises(PluginError, match=r"nearest is put_if_absent: name=store capability=put_if_absen"):
        check_combination([_store(requires=frozenset({"put_if_absen"}))], ObjectStoreCapabilities())


def test_settings_without_origins_are_checked_too() -> None:
    with pytest.raises(
        ConfigError, match=r"object_store.x is no configuration key, the nearest|the keys are"
    ):
        validate_settings(_store(), {"x": 1})


# What the hooks do. Each hook has its test_hook_<name>; test_hooks_documented.py demands it.


def _registers(write: Write, kind: str) -> None:
    registry = PluginRegistry(modules=[write(f"{kind}_module", provider(kind, f"my_{kind}"))])
    spec = registry.select(kind, f"my_{kind}")
    assert (spec.kind, spec.name) == (kind, f"my_{kind}")
    (info,) = registry.infos()
    assert (info.kind, info.version, info.spi_version, info.origin) == (
        kind,
        "7",
        SPI_VERSION,
        f"module {kind}_module",
    )
    assert isinstance(info.capabilities, Mapping)


def test_hook_penstock_register_object_store(write: Write) -> None:
    _registers(write, "object_store")


def test_hook_penstock_register_wal(write: Write) -> None:
    _registers(write, "wal")


def test_hook_penstock_register_log_cache(write: Write) -> None:
    _registers(write, "log_cache")


def test_hook_penstock_register_block_cache(write: Write) -> None:
    _registers(write, "block_cache")


def test_hook_penstock_register_allocator(write: Write) -> None:
    _registers(write, "allocator")


def test_hook_penstock_register_partitioner(write: Write) -> None:
    _registers(write, "partitioner")


def test_hook_penstock_register_metadata_log(write: Write) -> None:
    _registers(write, "metadata_log")


def test_hook_penstock_register_lake_compactor(write: Write) -> None:
    _registers(write, "lake_compactor")


OBSERVER_SOURCE = '''
"""Watches.

And more.
"""
from penstock.hookspecs import hookimpl
seen = []

@hookimpl
def {hook}(event):
    seen.append(event)
'''


def _is_told(write: Write, hook: str, event: object) -> None:
    registry = PluginRegistry(modules=[write("watching", OBSERVER_SOURCE.format(hook=hook))])
    registry.notify(hook, event)
    assert sys.modules["watching"].seen == [event]


def test_hook_penstock_on_broker_started(write: Write) -> None:
    event = BrokerStarted(
        node_id=1, epoch=2, cluster_id="c", bootstrap_servers="h:1", plugins={"wal": "wal_block"}
    )
    _is_told(write, "penstock_on_broker_started", event)


def test_hook_penstock_on_broker_stopping(write: Write) -> None:
    _is_told(write, "penstock_on_broker_stopping", BrokerStopping(node_id=1, reason="SIGTERM"))


def test_hook_penstock_on_topic_created(write: Write) -> None:
    _is_told(
        write,
        "penstock_on_topic_created",
        TopicCreated(name="t", topic_id="i", partition_count=1, configs={}),
    )


def test_hook_penstock_on_topic_deleted(write: Write) -> None:
    _is_told(write, "penstock_on_topic_deleted", TopicDeleted(name="t", topic_id="i"))


def test_hook_penstock_on_partition_opened(write: Write) -> None:
    event = PartitionOpened(topic="t", partition=0, leader_epoch=1, start_offset=2, end_offset=3)
    _is_told(write, "penstock_on_partition_opened", event)


def test_hook_penstock_on_partition_closed(write: Write) -> None:
    _is_told(write, "penstock_on_partition_closed", PartitionClosed(topic="t", partition=0, end_offset=3))


def test_hook_penstock_on_upload_committed(write: Write) -> None:
    event = UploadCommitted(object_ids=(1, 2), stream_count=3, payload_bytes=4, duration_ms=5.0)
    _is_told(write, "penstock_on_upload_committed", event)


def test_hook_penstock_on_objects_destroyed(write: Write) -> None:
    _is_told(write, "penstock_on_objects_destroyed", ObjectsDestroyed(object_ids=(1,)))


def test_hook_penstock_on_recovery_finished(write: Write) -> None:
    event = RecoveryFinished(entries=1, recovered_bytes=2, skipped_entries=3, duration_ms=4.0)
    _is_told(write, "penstock_on_recovery_finished", event)


def test_hook_penstock_on_wal_degraded(write: Write) -> None:
    event = WalDegraded(location="p", durability_domain="host", reason="r")
    _is_told(write, "penstock_on_wal_degraded", event)


def test_hook_penstock_on_wal_restored(write: Write) -> None:
    _is_told(write, "penstock_on_wal_restored", WalRestored(location="p", durability_domain="region"))


# Observers


def test_observer_is_listed_as_one(write: Write) -> None:
    module = write("watching", OBSERVER_SOURCE.format(hook="penstock_on_topic_created"))
    (info,) = PluginRegistry(modules=[module]).infos()
    assert (info.name, info.kind, info.summary) == ("watching", "observer", "Watches.")


def test_observer_that_fails_is_named_and_harms_nobody(
    write: Write, caplog: pytest.LogCaptureFixture
) -> None:
    source = OBSERVER_SOURCE.format(hook="penstock_on_topic_deleted")
    failing = source.replace("seen.append(event)", "raise ValueError('oh no')")
    registry = PluginRegistry(
        modules=[write("before", source), write("failing", failing), write("behind", source)]
    )
    event = TopicDeleted(name="t", topic_id="i")
    with caplog.at_level(logging.ERROR, "penstock.plugins"):
        registry.notify("penstock_on_topic_deleted", event)
        registry.notify("penstock_on_topic_deleted", event)
    assert "plugin failing failed in penstock_on_topic_deleted" in caplog.text
    assert "oh no" in caplog.text
    assert sys.modules["before"].seen == sys.modules["behind"].seen == [event, event]


def test_observer_loaded_later_is_told_too(write: Write) -> None:
    registry = PluginRegistry()
    event = TopicDeleted(name="t", topic_id="i")
    registry.notify("penstock_on_topic_deleted", event)
    registry.load([write("watching", OBSERVER_SOURCE.format(hook="penstock_on_topic_deleted"))])
    registry.notify("penstock_on_topic_deleted", event)
    assert sys.modules["watching"].seen == [event]


def test_observer_may_leave_out_the_event(write: Write) -> None:
    source = OBSERVER_SOURCE.format(hook="penstock_on_topic_deleted").replace("(event)", "()", 1)
    registry = PluginRegistry(
        modules=[write("watching", source.replace("seen.append(event)", "seen.append(1)"))]
    )
    registry.notify("penstock_on_topic_deleted", TopicDeleted(name="t", topic_id="i"))
    assert sys.modules["watching"].seen == [1]


def test_hook_calls_are_traced_on_request(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    module = write("watching", OBSERVER_SOURCE.format(hook="penstock_on_topic_deleted"))
    logger = logging.getLogger("penstock.plugins")
    try:
        registry = PluginRegistry(env={"PENSTOCK_TRACE_HOOKS": "1"}, modules=[module])
        with caplog.at_level(logging.INFO, "penstock.plugins"):
            registry.notify("penstock_on_topic_deleted", TopicDeleted(name="t9", topic_id="i"))
    finally:
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
    assert (
        "hook penstock_on_topic_deleted(event=TopicDeleted(name='t9', topic_id='i')) -> watching"
        in caplog.text
    )
