"""What leaves a connection: joined where the system would look at many small buffers."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.log.limiter import BytesLimiter
from penstock.server.outbox import Outbox
from penstock.server.sender import Sender


class Transport:
    """Takes everything, and remembers in how many buffers it came."""

    def __init__(self) -> None:
        self.writes: list[list[Any]] = []

    def write(self, data: Any) -> None:
        self.writes.append([data])

    def writelines(self, buffers: list[Any]) -> None:
        self.writes.append(list(buffers))

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, **limits: int) -> None:
        """Of no interest."""


@pytest.mark.parametrize(
    ("size", "count", "is_joined"),
    [(70, 1_000, True), (500, 100, True), (4_096, 4, True), (512, 100, False), (100_000, 2, False)],
)
def test_small_buffers_are_joined_and_others_given_to_the_system_as_they_are(
    size: int, count: int, is_joined: bool
) -> None:
    transport = Transport()
    limiter = BytesLimiter(1 << 20, credit=1 << 20, credit_max=1 << 20, clock=lambda: 0.0)
    outbox = Outbox(transport, limiter, limiter.join("here", None), Sender(), gathers=True)  # type: ignore[arg-type]
    buffers = [bytes([number % 251]) * size for number in range(count)]
    assert outbox.write(list(buffers), ()) == size * count
    assert transport.writes == ([[b"".join(buffers)]] if is_joined else [buffers])


def test_a_client_that_is_gone_is_written_to_once() -> None:
    """asyncio says of each further buffer that it could not be sent: some dozen lines in the log a disconnect."""

    class Lost(Transport):
        def is_closing(self) -> bool:
            return bool(self.writes)

    transport = Lost()
    limiter = BytesLimiter(1 << 20, credit=1 << 20, credit_max=1 << 20, clock=lambda: 0.0)
    outbox = Outbox(transport, limiter, limiter.join("here", None), Sender(), gathers=False)  # type: ignore[arg-type]
    assert outbox.write([bytes(1_000)] * 200, ()) == 200_000
    assert len(transport.writes) == 1
