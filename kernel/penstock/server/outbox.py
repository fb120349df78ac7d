"""Bytes on their way out of a connection, and the memory that is on its account until they have left."""

from __future__ import annotations

__all__ = ("HUNG_UP", "Outbox")

import asyncio
import select
from collections.abc import Sequence
from typing import Final

from penstock.log.limiter import BytesLimiter
from penstock.server.sender import LARGE_BYTES, Sender, Sending
from penstock.shares import Member
from penstock.spi.allocator import Charge
from penstock.spi.buffers import Buffer

#: Responses up to this size are joined before they are written; so are those of buffers that are smaller on average.
#: The system looks at each buffer, which takes longer than to copy so few bytes: a thousand small batches leave in a
#: fifth of the time.
_JOIN_BYTES_MAX: Final = 16 * 1024
_SMALL_BUFFER_BYTES: Final = 512
_SMALL_JOIN_BYTES_MAX: Final = 256 * 1024
#: The other end is closed, or closed for sending; where the system can't tell the latter, only the former.
HUNG_UP: Final = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class Outbox:
    """The responses of one connection on their way to the client.

    ``is_full`` from the moment that the client doesn't take all that is written until it has taken all. As long
    as that lasts, the charges that came with the responses are kept, and bytes beyond them are on the account too.
    """

    __slots__ = (
        "_charges",
        "_closes",
        "_extra",
        "_gathers",
        "_limiter",
        "_sender",
        "_sending",
        "_transport",
        "_unsent_bytes",
        "is_full",
        "member",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        limiter: BytesLimiter,
        member: Member,
        sender: Sender,
        *,
        gathers: bool,
    ) -> None:
        self._transport = transport
        self._limiter = limiter
        self._sender = sender
        self._gathers = gathers
        #: What a thread sends; until it has, the transport is given nothing.
        self._sending: Sending | None = None
        #: The transport is to be closed when that is over.
        self._closes = False
        self._charges: list[Charge] = []
        #: Bytes on the account that no charge is for.
        self._extra = 0
        #: Bytes that wait, as last looked at.
        self._unsent_bytes = 0
        self.is_full = False
        self.member = member
        member.busy = True  # until something waits for the client
        # "Pause" then means that the client didn't take all, "resume" that all bytes have left.
        transport.set_write_buffer_limits(high=0, low=0)

    def write(self, buffers: list[Buffer], charges: Sequence[Charge]) -> int:
        """Send what ``buffers`` hold, which ``charges`` are for; the number of bytes."""
        size = sum(map(len, buffers))
        self._charges += charges
        transport = self._transport
        if size and not transport.is_closing() and not self._closes:
            if self._sending is not None:
                self._sending.add(buffers)
            elif size >= LARGE_BYTES and not self.is_full and self._send(buffers):
                pass
            elif size <= _JOIN_BYTES_MAX or size < min(
                _SMALL_JOIN_BYTES_MAX, len(buffers) * _SMALL_BUFFER_BYTES
            ):
                transport.write(b"".join(buffers))
            elif self._gathers:
                transport.writelines(buffers)
            else:
                # asyncio joins the list before it writes; one by one, only what the socket refuses is copied.
                for buffer in buffers:
                    transport.write(buffer)
                    if transport.is_closing():
                        break  # the client is gone: asyncio would write a line to the log for each buffer
        if self.is_full:
            self._count_unsent()
        elif self._charges:
            self._limiter.shares.earn(self.member, self.member.held)
            self.release()
        return size

    def _send(self, buffers: list[Buffer]) -> bool:
        """Have a thread send ``buffers``; whether that is possible."""
        descriptor = self.descriptor
        if descriptor < 0 or self._transport.get_write_buffer_size():
            return False
        self._sending = self._sender.send(descriptor, buffers, self._sent)
        if self._sending is None:
            return False
        self._protocol().pause_writing()
        return True

    def _sent(self) -> None:
        """The thread has sent all, or can't."""
        sending, self._sending = self._sending, None
        assert sending is not None
        if sending.error is not None:
            self._transport.abort()
            return
        self._protocol().resume_writing()
        if self._closes:
            self._transport.close()

    def _protocol(self) -> asyncio.BaseProtocol:
        return self._transport.get_protocol()

    @property
    def is_sending(self) -> bool:
        """Whether a thread sends. The transport knows nothing of that: it mustn't be closed but by ``close``."""
        return self._sending is not None

    @property
    def waits_for_client(self) -> bool:
        """Whether bytes wait here, and the system takes none of them until the client has taken some."""
        return self.is_full and (self._sending is None or self._sending.waits_for_client)

    def close(self) -> None:
        """Close the transport when all that was written has left; nothing more is."""
        if self._sending is None:
            self._transport.close()
        else:
            self._closes = True

    def lose(self) -> None:
        """The transport is gone, or is aborted: nothing leaves any more."""
        sending, self._sending = self._sending, None
        if sending is not None:
            self._sender.cancel(sending)
        self.release()

    def _unsent(self) -> int:
        unsent = self._transport.get_write_buffer_size()
        return unsent if self._sending is None else unsent + self._sending.unsent_bytes

    def _count_unsent(self) -> None:
        self._unsent_bytes = unsent = self._unsent()
        extra = unsent - self.member.held
        if extra > 0:
            self._extra += extra
            self._limiter.take(self.member, extra)

    def filled(self, now: float) -> None:
        """The client didn't take all."""
        self.is_full = True
        self.member.busy = False
        self.member.rested(now)

    def emptied(self) -> None:
        """The client has taken everything."""
        self.is_full = False
        self.member.busy = True
        self._limiter.shares.earn(self.member, self.member.held)
        self.release()

    def probe(self, now: float) -> int:
        """Look how much the client has taken since the last time; the number of bytes."""
        if not self.is_full:
            return 0
        unsent = self._unsent()
        taken, self._unsent_bytes = self._unsent_bytes - unsent, unsent
        if taken > 0:
            self.member.moved(taken, now)
        return taken

    @property
    def descriptor(self) -> int:
        """The socket, as the system knows it; -1 if there is none, or it is closed."""
        sock = self._transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    def is_our_turn(self) -> bool:
        """Whether the client has sent, or made room for, bytes that the loop didn't come to yet."""
        return self._is_now(select.POLLOUT if self.is_full else select.POLLIN)

    def has_hung_up(self) -> bool:
        """Whether the client sends nothing more. Not read from, a socket doesn't tell that by itself."""
        return self._is_now(HUNG_UP)

    def _is_now(self, events: int) -> bool:
        descriptor = self.descriptor
        if descriptor < 0:
            return False
        poll = select.poll()
        poll.register(descriptor, events)
        return bool(poll.poll(0))

    def stalled_for(self, now: float) -> float:
        """Seconds that the client has taken nothing, as far as ``probe`` saw; 0 if nothing waits."""
        return now - self.member.last_moved if self.is_full else 0.0

    def release(self) -> None:
        """Nothing that was written is held any more."""
        charges, self._charges = self._charges, []
        for charge in charges:
            charge.release()
        extra, self._extra = self._extra, 0
        if extra:
            self._limiter.give(self.member, extra)
