"""A good client beside each attack, with real processes: it is served, whatever the others do."""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack

import pytest
from tests.depth import in_full
from tests.integration.conftest import ServeFactory
from tests.patience import HANG_S

from penstock_tools.bench import attacks_of_crowds
from penstock_tools.bench.attacks import ATTACKS, attacking
from penstock_tools.bench.floor import TOPIC, create_topic
from penstock_tools.bench.good_client import GoodClient, fetch_request
from penstock_tools.bench.peers import make_topics

#: More than fit into the memory of a broker that gives its bytes away.
ROUNDS = 25
BATCH_BYTES = 200 * 1024
MIB = 2**20
LIMIT = 256 * MIB


#: Of the crowds these in each run: each takes some seconds.
CROWDS = {"woken_by_own", "churn", "cheap_from_200"}
REST = sorted(
    name
    for name, function in ATTACKS.items()
    if function.__module__ == attacks_of_crowds.__name__ and name not in CROWDS
)


@pytest.mark.parametrize("name", [*sorted(ATTACKS.keys() - set(REST)), *in_full(*REST)])
def test_a_good_client_is_served_beside(name: str, serve: ServeFactory) -> None:
    broker = serve(f"memory.limit={LIMIT}", "listener.connections_max=4000")
    create_topic(broker.port)
    with attacking(name, broker.port):
        client = GoodClient(broker.port, BATCH_BYTES)
        try:
            for _ in range(ROUNDS):
                client.once()
        finally:
            client.close()
        assert broker.running
        assert broker.resident_bytes() < LIMIT * 1.1
    broker.terminate()
    assert "this is a bug" not in broker.output
    assert "no answer yet" not in broker.output


def test_a_long_request_is_served_however_many_fetches_of_hundreds_of_partitions_wait_for_data(
    serve: ServeFactory,
) -> None:
    broker = serve("memory.limit=192MiB")
    asyncio.run(make_topics(broker.port, TOPIC, partitions=200))
    with ExitStack() as crowd:

        def connect() -> socket.socket:
            return crowd.enter_context(socket.create_connection(("127.0.0.1", broker.port), HANG_S))

        waiting = fetch_request(MIB, 200, wait_ms=300_000)
        for _ in range(200):
            connect().sendall(waiting)
        good = connect()
        for _ in range(3):
            good.sendall(fetch_request(MIB, 200, wait_ms=1))
            assert good.recv(4, socket.MSG_WAITALL)
            good.recv(MIB)
        assert broker.resident_bytes() < 192 * MIB * 1.1
