"""The same promises on a server of each cloud: versitygw or ministack, fake-gcs-server, and Azurite."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path

import anyio
import pytest
from penstock_object_store_fsspec import Settings, penstock_register_object_store
from tests.cloud_servers import CloudServer, serving_azure, serving_gcs
from tests.depth import how_many, in_full
from tests.patience import HANG_S
from tests.s3_server import serving_s3

from penstock.errors import (
    AlreadyExistsError,
    ConfigError,
    ConflictError,
    InvalidRequestError,
    NotFoundError,
)
from penstock.spi.object_store import ObjectStore
from penstock.spi.plugin import Services
from penstock_tools.probe.checks import Bench, questions
from penstock_tools.probe.races import open_writers

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings(
        "ignore:Sending a large body directly:ResourceWarning"
    ),  # Azure's library does
]


@contextmanager
def _serving_s3(directory: Path) -> Iterator[CloudServer]:
    pytest.importorskip("s3fs", reason="needs pip install 'penstock[s3]'")
    with serving_s3(directory) as server:
        options = {"endpoint_url": server.endpoint_url, "key": server.access_key, "secret": server.secret_key}
        found = CloudServer(protocol="s3", port=server.port, options=options, secret=server.secret_key)
        found.make_bucket = server.make_bucket  # type: ignore[method-assign]
        yield found


CLOUDS: dict[str, Callable[[Path], AbstractAsyncContextManager[CloudServer]]] = {
    "s3": _serving_s3,  # type: ignore[dict-item]
    "gs": serving_gcs,  # type: ignore[dict-item]
    "az": serving_azure,  # type: ignore[dict-item]
}


@pytest.fixture(scope="module", params=list(CLOUDS))
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CloudServer]:
    with CLOUDS[request.param](tmp_path_factory.mktemp(request.param)) as running:  # type: ignore[attr-defined]
        yield running


def _open(
    cloud: CloudServer, bucket: str, prefix: str = "/some/prefix"
) -> AbstractAsyncContextManager[ObjectStore]:
    services = Services(
        node_id=1, epoch=1, cluster_id="test", data_dir=Path("/nonexistent"), clock=time.monotonic
    )
    settings = Settings(
        url=f"{cloud.protocol}://{bucket}{prefix}",
        options=cloud.options,
        retry_budget_ms=int(HANG_S * 1000),  # nothing fails here
        request_timeout_ms=int(HANG_S * 1000),
    )
    return penstock_register_object_store().open(settings, services)


@pytest.fixture
async def store(cloud: CloudServer) -> AsyncIterator[ObjectStore]:
    async with _open(cloud, cloud.make_bucket()) as opened:
        yield opened


async def test_objects_and_ranges(store: ObjectStore) -> None:
    token = await store.put("a/b", [b"0123", memoryview(b"456789")])
    assert bytes(await store.get("a/b")) == b"0123456789"
    for start, end in ((2, 4), (8, 99), (10, None), (3, 3), (0, None), (9, 10)):
        assert bytes(await store.get("a/b", start, end)) == b"0123456789"[start:end]
    with pytest.raises(InvalidRequestError):
        await store.get("a/b", 11)
    info = await store.head("a/b")
    assert (info.size, info.token) == (10, token)
    assert [(each.size, each.token) async for each in store.list("a/")] == [(10, token)]
    assert abs(info.modified_ms / 1000 - time.time()) < 3600
    for key in ("a", "a/c"):
        with pytest.raises(NotFoundError):
            await store.get(key)
        with pytest.raises(NotFoundError):
            await store.head(key)
        with pytest.raises(NotFoundError):
            await store.get(key, 1, 1)
    await store.put("empty", [])
    assert bytes(await store.get("empty")) == b""


async def test_put_if_absent_of_tasks(store: ObjectStore) -> None:
    assert store.capabilities.put_if_absent
    winners: list[int] = []

    async def create(number: int) -> None:
        try:
            await store.put_if_absent("k", [b"%d" % number])
        except AlreadyExistsError:
            return
        winners.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(10):
            tasks.start_soon(create, number)
    assert [b"%d" % number for number in winners] == [bytes(await store.get("k"))]


async def test_compare_and_swap_of_tasks(store: ObjectStore) -> None:
    assert store.capabilities.compare_and_swap
    first = await store.put("count", [b"0"])
    for body, token in ((b"1", "1"), (b"1", "no token"), (b"1", ""), (b"1", '"*"')):
        with pytest.raises(ConflictError):
            await store.compare_and_swap("count", [body], token)
    with pytest.raises(ConflictError):
        await store.compare_and_swap("absent", [b"1"], first)

    async def add() -> None:
        while True:
            (info,) = [each async for each in store.list("count")]
            value = int(bytes(await store.get("count")))
            try:
                token = await store.compare_and_swap(
                    "count", [b"%d" % (value // 10), b"%d" % ((value + 1) % 10)], info.token
                )
            except ConflictError:
                continue
            tokens.append(token)
            return

    tokens = [first]
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(add)
    assert int(bytes(await store.get("count"))) == 5
    assert (await store.head("count")).token == tokens[-1]
    assert len(set(tokens)) == 6
    with pytest.raises(ConflictError):  # another's, though its bytes are these
        await store.compare_and_swap("count", [await store.get("count")], first)


@pytest.mark.parametrize(
    "data",
    [
        b"\n--==0==--\n rest",
        b"\r\n--==0==--\r\nrest",
        b"--==0==\nContent-Type: text/plain\n\nrest",
        b"\r\n\r\n",
        b"\n",
        b"\x1f\x8b\x08",
        bytes(range(256)),
    ],
)
async def test_bytes_that_look_like_a_request_are_kept_as_they_are(store: ObjectStore, data: bytes) -> None:
    await store.put("k", [data])
    assert bytes(await store.get("k")) == data
    await store.put_if_absent("j", [data])
    assert bytes(await store.get("j")) == data


async def test_a_large_object_is_as_it_was(store: ObjectStore) -> None:
    data = random.Random(1).randbytes(9 * 2**20 + 1)
    await store.put_if_absent("large", [data[:1000], data[1000:]])
    assert bytes(await store.get("large")) == data
    assert bytes(await store.get("large", 2**20 - 3, 9 * 2**20 + 7)) == data[2**20 - 3 :]


KEYS = ("a b", "a%25b", "a+b", "a=b&c", "a*", "a?", "a[b]", "a#1", "a~", "a'b", 'a"b', "a:b;c", "a(b),c@d!e$")


async def test_keys_of_every_printable_character(store: ObjectStore) -> None:
    for key in KEYS:
        await store.put(key, [key.encode()])
        await store.put_if_absent(f"{key}-2", [key.encode()])
    expected = sorted(each for key in KEYS for each in (key, f"{key}-2"))
    assert [info.key async for info in store.list()] == expected
    for key in KEYS:
        assert bytes(await store.get(key)) == key.encode()
        assert (await store.head(key)).size == len(key)
        await store.delete([key])
        expected.remove(key)
        assert [info.key async for info in store.list()] == expected


async def test_deletion_of_what_is_not_there(store: ObjectStore) -> None:
    await store.put("a", [b"x"])
    await store.delete(["a", "absent", "a/b"])
    await store.delete([])
    assert [info.key async for info in store.list()] == []


async def test_what_another_client_wrote_is_listed_at_once(cloud: CloudServer) -> None:
    """No client keeps listings."""
    bucket = cloud.make_bucket()
    async with _open(cloud, bucket) as one, _open(cloud, bucket) as other:
        for number in range(5):
            assert len([info async for info in one.list()]) == number
            await other.put(f"k-{number}", [b"x"])
        await other.delete(["k-0"])
        assert [info.key async for info in one.list()] == ["k-1", "k-2", "k-3", "k-4"]


async def test_a_bucket_without_prefix_beside_one(cloud: CloudServer) -> None:
    bucket = cloud.make_bucket()
    async with _open(cloud, bucket, "") as whole, _open(cloud, bucket, "/in/it") as part:
        await part.put("k", [b"x"])
        await whole.put("other", [b"y"])
        assert [info.key async for info in whole.list()] == ["in/it/k", "other"]
        assert [info.key async for info in part.list()] == ["k"]


async def test_a_missing_bucket_is_one_sentence(cloud: CloudServer) -> None:
    with pytest.raises(ConfigError, match="the bucket doesn't exist") as caught:
        async with _open(cloud, "no-such-bucket"):
            pass
    assert not cloud.secret or cloud.secret not in repr(caught.value)


#: What processes of their own are asked; each has a client library to import.
_OF_PROCESSES = ("conditional creation", "compare-and-swap", "reads of other processes")


@pytest.mark.parametrize("cloud", ["s3", *in_full("gs", "az")], indirect=True)
@pytest.mark.parametrize("about", [each for each in questions() if each not in _OF_PROCESSES])
async def test_the_probe_finds_nothing_broken(store: ObjectStore, cloud: CloudServer, about: str) -> None:
    findings = await questions()[about](Bench(store=store, writers=(), prefix="p/", rounds=4))
    assert [each for each in findings if each.verdict == "broken"] == []


@pytest.mark.parametrize("cloud", ["s3", *in_full("gs", "az")], indirect=True)
async def test_the_probe_finds_nothing_broken_between_processes(cloud: CloudServer) -> None:
    bucket = cloud.make_bucket()
    setup = {
        "config_path": None,
        "sets": [
            f"object_store.url={cloud.protocol}://{bucket}",
            *(f"object_store.options.{name}={value}" for name, value in cloud.options.items()),
        ],
        "plugins_dirs": [],
        "modules": [],
    }
    async with (
        _open(cloud, bucket, "") as store,
        open_writers(how_many("probe_writers"), setup, store) as writers,
    ):
        found = [
            each
            for number, about in enumerate(_OF_PROCESSES)
            for each in await questions()[about](
                Bench(store=store, writers=writers, prefix=f"p{number}/", rounds=4)
            )
        ]
    assert [each for each in found if each.verdict == "broken"] == []
    slow = [each for each in found if "slow writer" in each.name]
    assert [each.verdict for each in slow] == ["kept"] * 4
