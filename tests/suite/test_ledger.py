"""What a test leaves to its producers when it fails or is interrupted."""

from __future__ import annotations

import socket

import pytest
from tests.integration.ledger import Ledger
from tests.integration.test_faults import eventually


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, AssertionError])
@pytest.mark.parametrize("stopping", [False, True])
def test_records_that_nobody_will_acknowledge_are_abandoned(
    interruption: type[BaseException], stopping: bool
) -> None:
    """The broker is gone for good; without that an interrupted run waited for it for minutes."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # nobody listens, and nobody else gets the port
        ledger = Ledger(f"127.0.0.1:{sock.getsockname()[1]}", idempotent=True, writers=2)

        def body() -> None:
            with ledger:
                eventually(lambda: ledger.produced >= 100, "records that wait for a broker")
                if stopping:
                    ledger.ask_to_stop()
                raise interruption

        with pytest.raises(interruption):
            body()
    assert not ledger.acked
    assert ledger.failed["_PURGE_QUEUE"] == ledger.produced
