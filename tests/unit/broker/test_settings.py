"""What the parts are told of the configuration."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from tests.patience import HANG_S

from penstock.api.broker_configs import BROKER_CONFIGS
from penstock.broker import Broker, _settings
from penstock.broker._settings import _broker_configs
from penstock.config import SECTIONS, load_config
from penstock.log.topic_config import TopicConfigTable
from penstock.metadata.service import MetadataService

REPOSITORY = Path(__file__).parents[3]
MIB = 2**20

_OPENS = "kernel/penstock/broker/_broker.py"
#: Keys that no room's settings have, and who reads them instead.
READ_ELSEWHERE = {
    # what the broker needs before, and after, there are rooms
    "broker.node_id": _OPENS,
    "broker.cluster_id": _OPENS,
    "broker.data_dir": _OPENS,
    "broker.data_access": _OPENS,
    "broker.start_timeout": _OPENS,
    "broker.accept_lost_metadata": _OPENS,
    "broker.accept_lost_wal": _OPENS,
    "stream.metadata_snapshot_entries": _OPENS,
    # the number of partitions is the topic's once it is made
    "groups.offsets_partitions": "kernel/penstock/broker/_groups.py",
    # the limit of an allocator whose section names none
    "memory.limit": "kernel/penstock/config/_load.py",
    "memory.reserve": "kernel/penstock/config/_load.py",
    # the process is set up by the command line, not by the broker in it
    "logging.level": "tools/penstock_tools/cli/_logging.py",
    "logging.format": "tools/penstock_tools/cli/_logging.py",
    "logging.file": "tools/penstock_tools/cli/_logging.py",
    # plugins come before rooms
    "plugins.load": "kernel/penstock/plugins/_registry.py",
}


class _Recorded:
    """A section, or the tree of them, that notes the keys which are read."""

    def __init__(self, told: Any, path: str, read: set[str]) -> None:
        self._told, self._path, self._read = told, path, read

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._told, name)
        if not self._path:
            return _Recorded(value, f"{name}.", self._read)
        self._read.add(self._path + name)
        return value


def _keys_in_rooms() -> set[str]:
    """The keys that are read while the settings of all rooms are built."""
    read: set[str] = set()
    tree: Any = _Recorded(load_config().tree, "", read)
    at_hand = {
        "tree": tree,
        "budget": _settings.budget(tree, 256 * MIB, 64 * MIB),
        "configs": TopicConfigTable(),
        "selection": SimpleNamespace(specs={}),  # no plugin adds topic configs
    }
    for name in _settings.__all__:
        build = getattr(_settings, name)
        parameters = list(inspect.signature(build).parameters)
        if parameters[0] == "tree" and build is not _settings.budget:
            build(*(at_hand[parameter] for parameter in parameters))
    return read


def test_every_configuration_key_is_handed_to_a_room_or_read_elsewhere_for_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # to describe a key to clients isn't to act by it
    monkeypatch.setattr(_settings, "_broker_configs", lambda tree: {})
    known = {f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields}
    read = _keys_in_rooms()
    assert not known - read - READ_ELSEWHERE.keys(), "keys that nobody acts by"
    assert not READ_ELSEWHERE.keys() - known, "keys that are gone"
    assert not READ_ELSEWHERE.keys() & read, "keys that a room has"


@pytest.mark.parametrize("key", READ_ELSEWHERE)
def test_a_key_that_no_room_has_is_read_where_the_list_says(key: str) -> None:
    source = (REPOSITORY / READ_ELSEWHERE[key]).read_text()
    section, _, name = key.partition(".")
    # a module that is all about one section calls it settings
    assert re.search(rf"\b(tree\.{section}|memory|settings)\.{name}\b", source)
    assert f"tree.{section}" in source


@pytest.mark.anyio
async def test_the_rack_is_told_to_clients_with_the_address(tmp_path: Path) -> None:
    overrides = {
        "broker.data_dir": str(tmp_path / "data"),
        "broker.rack": "eu-central-1a",
        "listener.bind": "127.0.0.1:0",
    }
    async with Broker(overrides=overrides) as broker:
        assert [endpoint.rack for endpoint in broker._running.server.endpoints] == ["eu-central-1a"]


def test_types_and_defaults_of_all_broker_configs_that_are_described_are_known() -> None:
    assert set(_broker_configs(load_config().tree)) <= set(BROKER_CONFIGS)


@pytest.mark.anyio
async def test_metadata_is_written_anew_as_often_as_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = anyio.Event()

    async def write(*_: object) -> None:
        written.set()

    monkeypatch.setattr(MetadataService, "_write_cut", write)
    overrides = {"broker.data_dir": str(tmp_path / "data"), "listener.bind": "127.0.0.1:0"}
    async with Broker(overrides=overrides | {"stream.metadata_snapshot_entries": 1}):
        with anyio.fail_after(HANG_S):
            await written.wait()
