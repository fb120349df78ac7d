"""When a node's WAL is recorded as in use and as left, and what happens with a WAL that tells no identity."""

from __future__ import annotations

import logging
import re
import textwrap
import uuid
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from penstock_wal_block import inspect_wal

from penstock.broker import Broker, _broker
from penstock.broker._wal import release_wal
from penstock.errors import ConfigError, PluginError, UnavailableError
from penstock.log.manager import LogManager
from penstock.metadata.nodes import NodeState
from penstock.metadata.service import MetadataService
from penstock.plugins import PluginRegistry
from penstock.stream.entry import decode_header
from penstock.stream.marks import MARK_STREAM

pytestmark = pytest.mark.anyio

#: A WAL of another maker: the suite's reference, without its identity.
OTHER_WAL = """
    from dataclasses import replace
    from penstock.hookspecs import hookimpl
    from penstock.spi.wal import WalSpec
    from penstock_conformance.reference._wal import WAL_CAPABILITIES, FileWal, WalSettings, open_wal

    async def tell_nothing(settings, services):
        return IDENTITY

    @hookimpl
    def penstock_register_wal():
        return WalSpec(
            name="other_wal",
            summary="made by a test",
            settings=WalSettings,
            capabilities=replace(WAL_CAPABILITIES, identity=CLAIMED),
            open=open_wal(FileWal),
            identify=tell_nothing if CLAIMED else None,
        )
"""


@dataclass
class Place:
    """Starts brokers on one data directory."""

    directory: Path
    plugins_dirs: list[Path] = field(default_factory=list)

    def broker(self, **more: Any) -> Broker:
        overrides = {
            "broker.data_dir": str(self.directory / "data"),
            "listener.bind": "127.0.0.1:0",
            "wal.capacity": "4MiB",
            **{key.replace("__", "."): value for key, value in more.items()},
        }
        return Broker(overrides=overrides, registry=PluginRegistry(plugins_dirs=self.plugins_dirs))

    def other_wal(self, *, claimed: bool = False, identity: str | None = None) -> dict[str, str]:
        """Settings of a broker on the other WAL."""
        source = OTHER_WAL.replace("CLAIMED", str(claimed)).replace("IDENTITY", repr(identity))
        (self.directory / "plugins").mkdir(exist_ok=True)
        name = f"other_wal_{uuid.uuid4().hex}"  # modules stay loaded
        (self.directory / "plugins" / f"{name}.py").write_text(textwrap.dedent(source))
        self.plugins_dirs = [self.directory / "plugins"]
        return {"wal__plugin": "other_wal", "wal__capacity": "4MiB"}

    def entries(self) -> list[object]:
        """Those with records."""
        return [
            entry
            for group in inspect_wal(self.directory / "data/wal/penstock.wal").entries()
            for entry in group
            if decode_header(entry.data, entry.position).stream_id != MARK_STREAM
        ]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def node(broker: Broker) -> NodeState:
    return broker._running.metadata.image.nodes.require(1)


def end_offset(broker: Broker) -> int:
    partition = broker.logs.partition("topic", 0)
    assert partition is not None
    return partition.high_watermark


async def test_the_wal_is_recorded_before_the_broker_takes_anything_and_left_after_the_last_trim(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    async def watched(metadata: MetadataService, node_id: int, node_epoch: int) -> None:
        assert place.entries() == [], "something isn't uploaded and trimmed"
        assert metadata.image.nodes.require(node_id).wal_in_use
        await release_wal(metadata, node_id, node_epoch)
        assert not metadata.image.nodes.require(node_id).wal_in_use
        seen.append(metadata.image.nodes.require(node_id).wal)

    monkeypatch.setattr(_broker, "release_wal", watched)
    async with place.broker() as broker:
        assert node(broker).wal_in_use
        assert node(broker).wal == broker.wal_identity != ""
        assert broker.places["wal"] in node(broker).wal_location
        async with broker.producer() as producer:
            await producer.send("topic", value=b"only the WAL holds it")
        assert place.entries() != []
        identity = broker.wal_identity
    assert seen == [identity]


async def fail(*_: object) -> None:
    raise UnavailableError("the power is out")


async def stop_without_record(place: Place, monkeypatch: pytest.MonkeyPatch, **more: Any) -> str:
    """Start a broker, and stop it in a way that metadata don't know of; its WAL's identity."""
    with monkeypatch.context() as patch:
        patch.setattr(_broker, "release_wal", fail)
        async with place.broker(**more) as broker:
            identity = broker.wal_identity
    return identity


async def test_a_stop_that_ends_between_trim_and_record_errs_on_the_safe_side(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The WAL is empty and metadata don't know: only this WAL will do, with which the next start is as ever."""

    identity = await stop_without_record(place, monkeypatch)
    assert place.entries() == []
    with pytest.raises(ConfigError, match=f"recorded={identity} .* found=none"):
        await place.broker(wal__path="other.wal").__aenter__()
    async with place.broker() as broker:
        assert broker.wal_identity == identity


async def test_a_start_that_fails_leaves_nothing_in_doubt(place: Place) -> None:
    """It ends cleanly, so that another WAL will do: what it took it had uploaded."""
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(place.broker())
        taken = broker.bootstrap_servers
        other = Place(place.directory / "other")
        with pytest.raises(Exception, match=taken.rpartition(":")[2]):
            await other.broker(listener__bind=taken).__aenter__()
    async with other.broker(wal__path="another.wal") as broker:
        assert node(broker).wal_in_use


async def test_a_wal_without_identity_works_and_is_recorded_by_its_place(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And where a known WAL is in use, it isn't taken for that one."""
    other = place.other_wal()
    for _ in range(2):
        async with place.broker(**other) as broker:
            assert broker.wal_identity == ""
            assert (node(broker).wal, node(broker).wal_in_use) == ("", True)
            assert broker.places["wal"] in node(broker).wal_location
    identity = await stop_without_record(place, monkeypatch)
    with pytest.raises(
        ConfigError, match=rf"recorded={identity} .* found=none .*other_wal tells no identity"
    ):
        await place.broker(**other).__aenter__()
    with caplog.at_level(logging.WARNING):
        async with place.broker(broker__accept_lost_wal=identity, **other) as broker:
            assert node(broker).lost_wals == [identity]
            assert (node(broker).wal, node(broker).wal_in_use) == ("", True)
    assert "ACKNOWLEDGED RECORDS WERE GIVEN UP" in caplog.text


async def test_a_wal_without_identity_is_its_nodes_alone_until_that_stops_cleanly(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same node starts after a crash; another one, or this one with another kind of WAL, names what is lost."""
    other = place.other_wal()
    identity = await stop_without_record(place, monkeypatch, **other)
    assert identity == ""
    async with place.broker(**other) as broker:
        pass
    async with place.broker(broker__node_id=2, **other) as broker:  # node 1 stopped cleanly
        assert broker._running.metadata.image.nodes.require(2).wal_in_use
    await stop_without_record(place, monkeypatch, **other)
    with pytest.raises(ConfigError, match=r"recorded=unnamed-1-\d+ .* found=none"):
        await place.broker().__aenter__()
    with pytest.raises(ConfigError, match=r"the WAL of node 1 only.* recorded=unnamed-1-\d+") as refused:
        await place.broker(broker__node_id=2).__aenter__()
    (name,) = re.findall(r"accept_lost_wal=(unnamed\S+):", str(refused.value))
    with caplog.at_level(logging.WARNING):
        async with place.broker(broker__node_id=2, broker__accept_lost_wal=f"{name} more") as broker:
            assert node(broker).lost_wals == [name]
    assert f"wal={name}" in caplog.text
    assert "isn't needed, take it out: node_id=2 accept_lost_wal=more" in caplog.text


async def test_a_wal_that_another_node_takes_over_brings_its_records(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a node that ended without uploading; that node is refused afterwards, until it takes its WAL back."""
    with monkeypatch.context() as patch:
        patch.setattr(LogManager, "drain", fail)
        async with place.broker() as broker:
            async with broker.producer() as producer:
                await producer.send("topic", value=b"only the WAL holds it")
            identity = broker.wal_identity
    with pytest.raises(ConfigError, match=f"the WAL of node 1 only.*accept_lost_wal={identity}"):
        await place.broker(broker__node_id=2, wal__path="other.wal").__aenter__()
    with caplog.at_level(logging.WARNING):
        async with place.broker(broker__node_id=2) as broker:
            assert broker.wal_identity == identity
            assert end_offset(broker) == 1
            with pytest.raises(ConfigError, match="the WAL of node 2 only"):
                await (
                    Place(place.directory, place.plugins_dirs)
                    .broker(
                        broker__data_dir=str(place.directory / "other"),
                        object_store__url=f"file://{place.directory}/data/objects",
                    )
                    .__aenter__()
                )
    assert "the WAL of node 1, and what it holds, are this node's from now on" in caplog.text
    async with place.broker() as broker:
        assert end_offset(broker) == 1


@pytest.mark.parametrize(
    ("identity", "sentence"),
    [(None, "the WAL is open and tells no identity"), ("two words", "printable"), ("x" * 65, "at most 64")],
)
async def test_a_wal_that_breaks_the_contract_of_identities_is_refused(
    place: Place, identity: str | None, sentence: str
) -> None:
    other = place.other_wal(claimed=True, identity=identity)
    with pytest.raises(PluginError, match=sentence):
        await place.broker(**other).__aenter__()
