"""A good client beside each attack, with real processes: it is served, whatever the others do."""

from __future__ import annotations

import pytest
from tests.integration.conftest import ServeFactory

from penstock_tools.bench.attacks import ATTACKS, GoodClient, attacking
from penstock_tools.bench.floor import create_topic

#: More than fit into the memory of a broker that gives its bytes away.
ROUNDS = 25
BATCH_BYTES = 200 * 1024
MIB = 2**20
LIMIT = 256 * MIB


@pytest.mark.parametrize("name", sorted(ATTACKS))
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
