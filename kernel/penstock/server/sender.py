"""Large responses are sent by a thread, not by the event loop.

The system copies what a socket is sent, and on the same machine hands it to the receiver in the same call: up to a
millisecond per megabyte, in which the loop would serve nobody, and no other thread would get the interpreter. So a
catch-up reader at 100 MB/s took 30 % of the loop's time, and p50 of producing beside it was several times as long.
System calls of a thread hold neither.

The thread writes to a duplicate of the connection's descriptor, its own, so that the transport may be closed at any
moment. While it sends, nobody else may write to the connection.
"""

from __future__ import annotations

__all__ = ("LARGE_BYTES", "Sender", "Sending")

import asyncio
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

from penstock.spi.plugin import Buffer

#: Responses from here on are sent by the thread. The hand-over there and back takes 0.7 ms and as much processor
#: time: a thread is woken, and both wait for the interpreter around each system call. The loop copies a mebibyte in
#: 0.15 ms, so a consumer that asks for one, as most do, is served four times as fast by the loop. A reader that
#: catches up on several partitions asks for more, and can wait.
LARGE_BYTES: Final = 5 * 2**18
#: One system call sends at most so much; then other connections get their turn.
_PIECE_BYTES: Final = 512 * 1024
#: Linux takes at most 1024 vectors a call (IOV_MAX).
_VECTORS_MAX: Final = 1024
#: Connections that are sent to at a time, each of which takes a descriptor; others are served by the loop.
_SENDINGS_MAX: Final = 256


class Sending:
    """What one connection is being sent."""

    __slots__ = (
        "_buffers",
        "_done",
        "_fd",
        "_is_cancelled",
        "_is_registered",
        "_queued_bytes",
        "_sent_bytes",
        "error",
    )

    def __init__(self, fd: int, done: Callable[[], None]) -> None:
        self._fd = fd
        self._done = done
        self._buffers: deque[Buffer] = deque()
        # Two counters, as each is written by one thread only.
        self._queued_bytes = self._sent_bytes = 0
        self._is_registered = False
        self._is_cancelled = False
        #: Why it ended early.
        self.error: OSError | None = None

    @property
    def unsent_bytes(self) -> int:
        """Bytes that the system hasn't taken yet."""
        return self._queued_bytes - self._sent_bytes

    @property
    def waits_for_client(self) -> bool:
        """Whether the system takes nothing more until the client has taken some."""
        return self._is_registered

    def add(self, buffers: Sequence[Buffer]) -> None:
        """Send ``buffers`` too, behind the others."""
        self._queued_bytes += sum(map(len, buffers))
        self._buffers.extend([buffer for buffer in buffers if len(buffer)])


class Sender:
    """Sends for all connections of a server, with one thread, from ``open`` to ``close``. Called on the loop."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._wake, self._woken = -1, -1
        self._selector: selectors.BaseSelector | None = None
        #: For the thread: what to begin, to go on with, or to give up. None: the end.
        self._orders: deque[Sending | None] = deque()
        #: From the thread: what has ended.
        self._ended: deque[Sending] = deque()
        self._settle_pending = False
        self._under_way: set[Sending] = set()

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Be ready: all descriptors of its own are taken now; the thread begins with the first large response."""
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._loop = loop

    def close(self) -> None:
        """Give up what is being sent still, and end the thread, which never waits for a client."""
        for sending in tuple(self._under_way):
            self.cancel(sending)
        if self._thread is not None:
            self._order(None)
            self._thread.join()
            self._thread = None
        if self._selector is not None:
            self._selector.close()
            self._selector = None
            os.close(self._wake)
            os.close(self._woken)
        self._loop = None

    def send(self, fd: int, buffers: Sequence[Buffer], done: Callable[[], None]) -> Sending | None:
        """Send ``buffers`` to the socket ``fd``, then call ``done``, on the loop; None: not possible now.

        ``done`` is called too when it fails (``error``), but not when it is cancelled.
        """
        if self._loop is None or len(self._under_way) >= _SENDINGS_MAX:
            return None
        try:
            sending = Sending(os.dup(fd), done)
        except OSError:  # no descriptor is left: the transport needs none
            return None
        if self._thread is None:
            thread = threading.Thread(
                target=self._run, args=(self._selector,), name="penstock-sender", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:  # no thread is left: the loop needs none
                os.close(sending._fd)
                return None
            self._thread = thread
        sending.add(buffers)
        self._under_way.add(sending)
        self._order(sending)
        return sending

    def cancel(self, sending: Sending) -> None:
        """Give up ``sending``: nothing is called for it any more."""
        if sending in self._under_way:
            self._under_way.discard(sending)
            sending._is_cancelled = True
            self._order(sending)

    def _order(self, sending: Sending | None) -> None:
        self._orders.append(sending)
        with suppress(BlockingIOError):  # full of wake-ups
            os.write(self._wake, b"\0")

    def _settle(self) -> None:
        # First the flag, then the list: what ends in between schedules one more call.
        self._settle_pending = False
        while self._ended:
            sending = self._ended.popleft()
            if sending not in self._under_way:
                continue  # cancelled since: the thread closes its descriptor, once, when it comes to that order
            if sending._buffers and sending.error is None:
                self._order(sending)  # more was added when the thread had seen the last of it
                continue
            self._under_way.discard(sending)
            os.close(sending._fd)
            sending._done()

    # -- in the thread ----------------------------------------------------------------------------------

    def _run(self, selector: selectors.BaseSelector) -> None:
        #: What the system may take more of.
        ready: deque[Sending] = deque()
        while True:
            for key, _ in selector.select(0 if ready else None):
                if key.data is None:
                    os.read(self._woken, 4096)
                else:
                    self._unregister(key.data, selector)  # asked again when it is full again
                    ready.append(key.data)
            while self._orders:
                order = self._orders.popleft()
                if order is None:
                    return
                if order._is_cancelled:
                    self._drop(order, selector)
                else:
                    ready.append(order)
            if ready:
                sending = ready.popleft()
                if not sending._is_cancelled and self._send_piece(sending, selector):
                    ready.append(sending)

    def _send_piece(self, sending: Sending, selector: selectors.BaseSelector) -> bool:
        """Send some; whether it may go on at once."""
        vectors = list(islice(sending._buffers, _VECTORS_MAX))
        size = 0
        for number, buffer in enumerate(vectors):
            size += len(buffer)
            if size > _PIECE_BYTES:
                vectors[number] = memoryview(buffer)[: len(buffer) - (size - _PIECE_BYTES)]
                size = _PIECE_BYTES
                del vectors[number + 1 :]
                break
        try:
            sent = os.writev(sending._fd, vectors)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            sending.error = error.with_traceback(None)
            self._end(sending)
            return False
        self._take(sending, sent)
        if not sending._buffers:
            self._end(sending)
            return False
        if sent == size:
            return True
        try:
            selector.register(sending._fd, selectors.EVENT_WRITE, sending)
        except OSError as error:
            # the system watches no more (epoll: ENOSPC, ENOMEM): others are sent to all the same
            sending.error = error.with_traceback(None)
            self._end(sending)
            return False
        sending._is_registered = True
        return False

    @staticmethod
    def _take(sending: Sending, sent: int) -> None:
        sending._sent_bytes += sent
        buffers = sending._buffers
        while sent:
            first = buffers[0]
            if len(first) > sent:
                buffers[0] = memoryview(first)[sent:]
                return
            sent -= len(first)
            buffers.popleft()

    @staticmethod
    def _unregister(sending: Sending, selector: selectors.BaseSelector) -> None:
        if sending._is_registered:
            sending._is_registered = False
            selector.unregister(sending._fd)

    def _drop(self, sending: Sending, selector: selectors.BaseSelector) -> None:
        """Release one that is given up: once, though it may have been ordered to begin just before."""
        if sending._fd >= 0:
            self._unregister(sending, selector)
            os.close(sending._fd)
            sending._fd = -1
            sending._buffers.clear()

    def _end(self, sending: Sending) -> None:
        """Tell the loop that there is nothing left to send, or that it failed."""
        self._ended.append(sending)
        if not self._settle_pending:
            self._settle_pending = True
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._settle)
