"""Settings that must fit each other: each relation, what is advised, and that nothing else can break the budget."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.patience import HANG_S

from penstock import Broker
from penstock.broker._settings import budget, check_opened
from penstock.client import ProducerSettings
from penstock.config import Config, _load, check_limits, load_config
from penstock.errors import ConfigError
from penstock.limits import COMMIT_RANGES_MAX, ENTRY_BYTES_MIN, RELATIONS, Limit, Relation, refusals, written
from penstock.metadata.commands import encode_entry, new_entry
from penstock.metadata.commands.objects import CommitUpload, UploadedObject, UploadedRange
from penstock.plugins import PluginRegistry
from penstock.units import parse_size

KIB, MIB = 2**10, 2**20
REGISTRY = PluginRegistry()


def known_limits(config: Config) -> dict[str, Limit]:
    """All limits of a configuration with the default plugins, without refusing any."""
    specs = {
        kind: REGISTRY.select(kind, config.plugin_name(kind))
        for kind in config.tree.kinds
        if config.plugin_name(kind)
    }
    settings = {kind: REGISTRY.validate_plugin_settings(config, kind) for kind in specs}
    sizes = {kind: spec.sizes(settings[kind]) for kind, spec in specs.items()}
    return config.limits(sizes, settings)


def check(sets: list[str]) -> None:
    """As ``penstock config check`` and a start do."""
    REGISTRY.select_all(load_config(sets=sets))


#: For each relation a configuration that breaks it, and how its refusal begins.
BROKEN: dict[tuple[str, str], tuple[list[str], str]] = {
    ("memory.reserve", "memory.limit"): (
        ["memory.limit=170MiB"],
        "--set memory.limit: memory.reserve must leave at least 16MiB of memory.limit",
    ),
    ("allocator.limit", "memory.limit"): (
        ["allocator.limit=1GiB"],
        "--set allocator.limit: allocator.limit must be at most memory.limit, 512MiB",
    ),
    ("", "allocator.limit"): (
        ["allocator.limit=15MiB"],
        "--set allocator.limit: allocator.limit must be at least 16MiB",
    ),
    ("stream.upload_bytes", "allocator.limit"): (
        ["stream.upload_bytes=353MiB"],
        "--set stream.upload_bytes: stream.upload_bytes must fit into the allocator, 352MiB",
    ),
    ("stream.append_in_flight_bytes_max", "allocator.limit"): (
        ["stream.append_in_flight_bytes_max=32MiB", "allocator.limit=31MiB"],
        "--set stream.append_in_flight_bytes_max: stream.append_in_flight_bytes_max must fit into the allocator",
    ),
    ("stream.fetch_in_flight_bytes_max", "allocator.limit"): (
        ["stream.fetch_in_flight_bytes_max=1GiB"],
        "--set stream.fetch_in_flight_bytes_max: stream.fetch_in_flight_bytes_max must fit into the allocator",
    ),
    ("lake.memory_max", "allocator.limit"): (
        ["lake.memory_max=353MiB"],
        "--set lake.memory_max: lake.memory_max must fit into the allocator, 352MiB",
    ),
    ("wal.memory", "allocator.limit"): (
        ["wal.groups_in_flight_max=64", "memory.limit=176MiB"],
        "--set wal.groups_in_flight_max: wal.groups_in_flight_max must be at most 4, since",
    ),
    ("groups.memory_max", "allocator.limit"): (
        ["groups.memory_max=89MiB"],
        "--set groups.memory_max: groups.memory_max must be at most a quarter of the allocator",
    ),
    ("topics.message_bytes_max", "allocator.limit"): (
        ["topics.message_bytes_max=30MiB", "memory.limit=256MiB"],
        "--set topics.message_bytes_max: topics.message_bytes_max must be at most a quarter of the allocator",
    ),
    ("listener.request_bytes_max", "allocator.limit"): (
        ["listener.request_bytes_max=100MiB", "memory.limit=256MiB"],
        "--set listener.request_bytes_max: listener.request_bytes_max must be at most three quarters",
    ),
    ("topics.message_bytes_max", "listener.request_bytes_max"): (
        ["listener.request_bytes_max=1MB"],
        "--set listener.request_bytes_max: topics.message_bytes_max must be at most listener.request_bytes_max",
    ),
    ("topics.message_bytes_max", "wal.entry"): (
        ["topics.message_bytes_max=16MiB", "wal.capacity=64MiB"],
        "--set topics.message_bytes_max: topics.message_bytes_max must be at most 15MiB, since a batch",
    ),
    ("groups.member_bytes_max", "groups.memory_max"): (
        ["groups.member_bytes_max=2MiB", "groups.memory_max=1MiB"],
        "--set groups.member_bytes_max: groups.member_bytes_max must be at most groups.memory_max",
    ),
    ("groups.member_bytes_max", ""): (
        ["groups.member_bytes_max=5MiB"],
        "--set groups.member_bytes_max: groups.member_bytes_max must be at most 4MiB",
    ),
    ("groups.session_timeout_min", "groups.session_timeout_max"): (
        ["groups.session_timeout_min=1h"],
        "--set groups.session_timeout_min: groups.session_timeout_min must be at most groups.session_timeout_max",
    ),
    ("topics.partitions", "topics.partitions_max"): (
        ["topics.partitions=20000"],
        "--set topics.partitions: topics.partitions must be at most topics.partitions_max",
    ),
    ("topics.partitions_max", "memory.reserve"): (
        ["topics.partitions_max=100000"],
        "--set topics.partitions_max: topics.partitions_max must fit into memory.reserve",
    ),
    ("stream.block_bytes", "block_cache.capacity"): (
        ["stream.block_bytes=2MiB", "block_cache.limit=1MiB"],
        "--set stream.block_bytes: stream.block_bytes must be at most block_cache.limit",
    ),
    ("", "metadata_log.entry"): (
        ["metadata_log.entry_bytes_max=64KiB"],
        "--set metadata_log.entry_bytes_max: metadata_log.entry_bytes_max must be at least 167KiB",
    ),
}


def test_there_is_a_broken_configuration_for_each_relation() -> None:
    assert set(BROKEN) == {(relation.low, relation.high) for relation in RELATIONS}
    assert len(RELATIONS) == len(BROKEN)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: f"{relation.low}<={relation.high}")
def test_what_breaks_a_relation_is_refused_by_the_check_and_named(relation: Relation) -> None:
    sets, beginning = BROKEN[relation.low, relation.high]
    with pytest.raises(ConfigError) as caught:
        check(sets)
    sentence = str(caught.value)
    assert sentence.startswith(beginning)
    for one in sets:
        key, _, value = one.partition("=")
        assert f"{key}={value if value != '1MB' else 1000000} (--set {key})" in sentence


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: f"{relation.low}<={relation.high}")
def test_each_way_that_a_refusal_advises_mends_the_relation(relation: Relation) -> None:
    sets, _ = BROKEN[relation.low, relation.high]
    sentence = relation.refusal(known_limits(unchecked(sets)))
    assert sentence is not None
    ways = re.findall(r"(?:lower|raise) ([a-z_.]+) to (\w+)", sentence)
    assert ways
    for key, value in ways:
        mended = [one for one in sets if not one.startswith(f"{key}=")] + [f"{key}={value}"]
        assert relation.refusal(known_limits(unchecked(mended))) is None, (key, value)


def unchecked(sets: list[str]) -> Config:
    """The configuration, also where its settings don't fit each other."""
    with mock.patch.object(_load, "check_limits"):
        return load_config(sets=sets)


def test_the_defaults_fit_each_other() -> None:
    assert list(refusals(known_limits(load_config()))) == []


def test_a_default_gives_way_where_less_fits() -> None:
    check(["wal.capacity=4MiB"])  # no batch of topics.message_bytes_max fits, as its topic's answer says
    check(["memory.limit=256MiB"])  # listener.request_bytes_max is more than there is


def sizes(low: int, high: int) -> st.SearchStrategy[int]:
    """Sizes on a scale where small and large ones are as frequent."""
    return st.builds(lambda exponent: round(2**exponent), st.floats(low, high, allow_nan=False))


SETTINGS: dict[str, st.SearchStrategy[int]] = {
    "memory.limit": sizes(26, 34),
    "memory.reserve": sizes(20, 30),
    "listener.request_bytes_max": sizes(10, 30),
    "topics.message_bytes_max": sizes(0, 30),
    "topics.partitions_max": st.integers(1, 10**6),
    "groups.member_bytes_max": sizes(10, 26),
    "groups.memory_max": sizes(0, 32),
    "stream.upload_bytes": sizes(0, 34),
    "stream.append_in_flight_bytes_max": sizes(0, 34),
    "stream.fetch_in_flight_bytes_max": sizes(0, 34),
    "stream.block_bytes": sizes(10, 26),
    "allocator.limit": sizes(0, 34),
    "wal.capacity": sizes(20, 34),
    "wal.group_bytes_max": sizes(12, 26),
    "wal.entry_bytes_max": sizes(12, 31),
    "wal.groups_in_flight_max": st.integers(1, 64),
    "block_cache.limit": sizes(0, 30),
    "metadata_log.entry_bytes_max": sizes(10, 26),
}


@given(st.fixed_dictionaries({}, optional=SETTINGS))
def test_a_configuration_is_refused_or_keeps_all_promises_of_the_budget(values: dict[str, int]) -> None:
    try:
        config = load_config(sets=[f"{key}={value}" for key, value in values.items()])
        selection = REGISTRY.select_all(config)
    except ConfigError:
        return
    limits = known_limits(config)
    wal: Any = selection.settings["wal"]
    divided = budget(config.tree, limits["allocator.limit"].value, wal.capacity)
    divided.check(limits["wal.memory"].value)
    if "topics.message_bytes_max" in values:
        state = divided.groups + divided.producers + divided.sessions
        left = divided.allocator - state - limits["wal.memory"].value
        assert config.tree.topics.message_bytes_max <= left, "a largest batch always finds room in the end"


def test_the_longest_commit_of_an_upload_fits_the_smallest_entry_of_metadata() -> None:
    most = 2**63 - 1
    ranges = [
        UploadedObject(most, most, [UploadedRange(most, most, most, most, most)])
        for _ in range(COMMIT_RANGES_MAX)
    ]
    entry = new_entry([CommitUpload(2**31 - 1, most, ranges)], "w" * 64, most, most)
    assert len(encode_entry(entry)) <= ENTRY_BYTES_MIN
    assert len(msgspec.msgpack.encode(UploadedRange(most, most, most, most, most))) == 46


def test_what_only_an_opened_plugin_knows_must_fit_as_well() -> None:
    config = load_config(sets=["topics.message_bytes_max=2MiB"])
    check_opened(config, {"wal.entry": ("an entry of the WAL", 3 * MIB), "wal.memory": ("its memory", MIB)})
    with pytest.raises(ConfigError, match=r"^--set topics.message_bytes_max: .*raise an entry of the WAL to"):
        check_opened(config, {"wal.entry": ("an entry of the WAL", 2 * MIB)})
    with pytest.raises(ConfigError, match=r"^as opened: the WAL's memory must be at most 88MiB"):
        check_opened(config, {"wal.memory": ("the WAL's memory", 100 * MIB)})


def test_a_limit_that_is_not_known_breaks_nothing() -> None:
    check_limits({})
    for relation in RELATIONS:
        assert relation.refusal({relation.low: Limit(2**62, "x", "x", "here")}) is None or not relation.high


def test_a_size_that_follows_from_hundreds_of_digits_can_be_told() -> None:
    assert written(10**400, "size") == str(10**400)


@given(st.integers(0, 2**45))
def test_a_size_is_written_without_loss(value: int) -> None:
    assert parse_size(written(value, "size")) == value


@given(st.integers(0, 2**40), st.sampled_from([KIB, MIB]))
def test_advice_is_on_the_right_side_of_the_limit(value: int, offset: int) -> None:
    limit = Limit(1, "wal.capacity", "1", offset=offset)
    assert parse_size(limit.setting_for(value, at_least=True)) >= value + offset
    assert parse_size(limit.setting_for(value, at_least=False)) <= value + offset


@pytest.mark.anyio
async def test_the_smallest_memory_that_is_allowed_serves_the_largest_batch(tmp_path: Path) -> None:
    overrides = {
        "broker.data_dir": str(tmp_path),
        "listener.bind": "127.0.0.1:0",
        "memory.limit": "176MiB",
        "topics.message_bytes_max": "4MiB",
        "wal.capacity": "64MiB",
    }
    async with Broker(overrides=overrides) as broker:
        assert broker.statistics().memory["wal"] == 4 * MIB, "a quarter, the most that is allowed"
        with anyio.fail_after(HANG_S):
            async with broker.producer(ProducerSettings(batch_bytes_max=4 * MIB)) as producer:
                for _ in range(4):
                    await producer.send("topic", value=bytes(4 * MIB - 200))
