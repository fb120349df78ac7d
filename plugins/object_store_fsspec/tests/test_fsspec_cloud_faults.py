"""GCS and Azure behind the proxy that fails: outcomes that nobody heard of, and what may be done twice."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from penstock_object_store_fsspec import Settings, penstock_register_object_store
from tests.cloud_servers import CloudServer, serving_azure, serving_gcs
from tests.store_proxy import FAULTS, StoreProxy, each_first, proxied
from tests.store_races import race_for_objects

from penstock.errors import AlreadyExistsError, ConfigError, UnavailableError
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services

pytestmark = pytest.mark.anyio

#: The request that writes an object.
WRITE = {"gs": "POST", "az": "PUT"}
SERVING = {"gs": serving_gcs, "az": serving_azure}


@pytest.fixture(scope="module", params=list(SERVING))
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudServer]:
    with SERVING[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def proxy(cloud: CloudServer) -> Iterator[StoreProxy]:
    with proxied(cloud) as running:
        yield running


def _options(cloud: CloudServer, proxy: StoreProxy) -> dict[str, str]:
    """Of a client that meets the proxy where it looks for the server."""
    behind, before = f"127.0.0.1:{cloud.port}", proxy.endpoint_url.removeprefix("http://")
    return {name: value.replace(behind, before) for name, value in cloud.options.items()}


def _open(
    cloud: CloudServer, proxy: StoreProxy, budget_ms: int = 20_000
) -> AbstractAsyncContextManager[ObjectStore]:
    services = Services(
        node_id=1, epoch=1, cluster_id="test", data_dir=Path("/nonexistent"), clock=time.monotonic
    )
    settings = Settings(
        url=f"{cloud.protocol}://{cloud.make_bucket()}/some/prefix",
        options=_options(cloud, proxy),
        retry_budget_ms=budget_ms,
    )
    return penstock_register_object_store().open(settings, services)


@pytest.fixture
async def store(cloud: CloudServer, proxy: StoreProxy) -> AsyncIterator[ObjectStore]:
    async with _open(cloud, proxy) as opened:
        yield opened


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_creation_or_swap_whose_outcome_is_unknown_is_ones_own(
    store: ObjectStore, cloud: CloudServer, proxy: StoreProxy, fault: str
) -> None:
    proxy.decide = each_first(WRITE[cloud.protocol], fault)
    token = await store.put_if_absent("k", [b"mine"])
    assert proxy.faults[fault] == 1
    assert bytes(await store.get("k")) == b"mine"
    proxy.decide = each_first(WRITE[cloud.protocol], fault)
    swapped = await store.compare_and_swap("k", [b"again ", b"mine"], token)
    assert proxy.faults[fault] == 2
    assert bytes(await store.get("k")) == b"again mine"
    assert (await store.head("k")).token == swapped


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_creation_whose_outcome_is_unknown_leaves_somebody_elses_object(
    store: ObjectStore, cloud: CloudServer, proxy: StoreProxy, fault: str
) -> None:
    await store.put_if_absent("k", [b"theirs"])
    proxy.decide = each_first(WRITE[cloud.protocol], fault)
    with pytest.raises(AlreadyExistsError):
        await store.put_if_absent("k", [b"mine"])
    assert proxy.faults[fault] == 1
    assert bytes(await store.get("k")) == b"theirs"


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_may_be_done_twice_is_done_again(
    store: ObjectStore, cloud: CloudServer, proxy: StoreProxy, fault: str
) -> None:
    await store.put("there", [b"0123456789" * 1000])
    for operation in ("GET", "DELETE", WRITE[cloud.protocol]):
        proxy.decide = each_first(operation, fault, times=2)
        await store.put("k", [b"bytes"])
        assert bytes(await store.get("there", 5, 9005)) == (b"0123456789" * 1000)[5:9005]
        assert [info.key async for info in store.list()] == ["k", "there"]
        await store.delete(["k"])
        assert [info.key async for info in store.list()] == ["there"]
    assert proxy.faults[fault] == 6


@pytest.mark.full
async def test_one_of_several_processes_wins_each_race_though_replies_are_lost(
    store: ObjectStore, cloud: CloudServer, proxy: StoreProxy
) -> None:
    await race_for_objects(proxy, store, f"{cloud.protocol}://{cloud.make_bucket()}", _options(cloud, proxy))


async def test_a_store_that_goes_on_failing_is_told_after_several_attempts(
    cloud: CloudServer, proxy: StoreProxy
) -> None:
    async with _open(cloud, proxy, budget_ms=1000) as store:
        proxy.decide = lambda request: "503 SlowDown"
        attempts = 0
        for number in range(50):
            before = proxy.seen[WRITE[cloud.protocol]]
            with pytest.raises(UnavailableError, match="status=503"):
                await store.put(f"k-{number}", [b"mine"])
            attempts = proxy.seen[WRITE[cloud.protocol]] - before
            assert attempts < 30, "backed off"
            if attempts >= 2:
                break  # on a busy machine one attempt may take all the time that there is
        assert attempts >= 2, "by one who repeats requests"


async def test_refused_credentials_are_told_at_once(cloud: CloudServer, proxy: StoreProxy) -> None:
    proxy.decide = lambda request: "403 AuthorizationFailure"
    with pytest.raises(ConfigError, match="refused the credentials"):
        async with _open(cloud, proxy):
            pass
    assert sum(proxy.seen.values()) == 1
