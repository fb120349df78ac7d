"""Credentials that end while a broker runs, and come back: nothing acknowledged is lost, and it goes on by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.depth import in_full
from tests.integration.conftest import ServeFactory
from tests.integration.ledger import Ledger, create_topic
from tests.integration.test_faults import BUSY, acks_go_on, acks_stop, eventually, finish
from tests.s3_server import S3Server, serving_s3
from tests.store_proxy import StoreProxy, proxied


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    pytest.importorskip("s3fs", reason="needs pip install 'penstock[s3]'")
    with serving_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def proxy(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreProxy]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
    with proxied(s3) as running:
        yield running


@pytest.mark.parametrize(
    ("wal", "client", "refusal"),
    [("wal_s3", "obstore", "400 ExpiredToken"), *in_full(("wal_block", "fsspec", "403 AccessDenied"))],
)
def test_credentials_that_end_are_waited_for_and_told(
    serve: ServeFactory, s3: S3Server, proxy: StoreProxy, wal: str, client: str, refusal: str
) -> None:
    """As S3 refuses a user whose rights were taken, and a session's token that has ended."""
    broker = serve(
        f"wal.plugin={wal}",
        f"object_store.url=s3://{s3.make_bucket()}/penstock",
        f"object_store.client={client}",
        f"object_store.options.endpoint_url={proxy.endpoint_url}",
        *BUSY,
    )
    create_topic(broker.bootstrap_servers)
    ledger = Ledger(broker.bootstrap_servers, idempotent=True, writers=2)
    with ledger:
        acks_go_on(ledger)
        said = len(broker.output_so_far)
        proxy.decide = lambda request: refusal
        if wal == "wal_s3":
            acks_stop(ledger)
        else:
            acks_go_on(ledger)
        eventually(lambda: proxy.faults[refusal] > 5, "tries that are refused")
        broker.wait_for_output("refused the credentials", after=said)
        proxy.decide = lambda request: ""
        broker.wait_for_output("works again", after=said)
        acks_go_on(ledger)
    finish(broker, ledger)
    assert s3.secret_key not in broker.output_so_far
