"""One TCP connection to a broker: requests pipelined, answers matched by correlation id, versions negotiated."""

from __future__ import annotations

__all__ = ("CLIENT_VERSIONS_MAX", "Connection", "Pending", "choose_version")

import errno
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import anyio
import anyio.abc

from penstock.errors import ClosedError, InvalidRequestError, PenstockError, UnavailableError, again
from penstock.wire import (
    ApiKey,
    DecodeError,
    ErrorCode,
    Message,
    VersionRange,
    decode_response,
    encode_request,
    supported_versions,
)
from penstock.wire.messages.api_versions import ApiVersionsRequest, ApiVersionsResponse
from penstock_tools.client._frames import FrameReader
from penstock_tools.client._scope import task_group

#: Versions that this client stops at though there are codecs for newer ones: later ones name topics by id
#: only (Produce 13, Fetch 13, offset APIs 10: KIP-516, KIP-848), or ask for several groups at once, which a
#: client of one group doesn't need. Every Kafka from 2.1 to 4 speaks these.
CLIENT_VERSIONS_MAX: Final[Mapping[int, int]] = {
    ApiKey.PRODUCE: 12,
    ApiKey.FETCH: 12,
    ApiKey.OFFSET_COMMIT: 9,
    ApiKey.OFFSET_FETCH: 7,
    ApiKey.FIND_COORDINATOR: 3,
    ApiKey.INIT_PRODUCER_ID: 5,
}

_FIRST_API_VERSIONS: Final = 3  # the first that says which software asks (KIP-511)
_RECEIVE_BYTES: Final = 1 << 18
#: Until the broker has told its versions: what isn't Kafka mostly reads as a frame of a gigabyte ("HTTP").
_FIRST_FRAME_BYTES_MAX: Final = 1 << 20
#: Later answers are as large as our own requests let them be.
_FRAME_BYTES_MAX: Final = 0x7FFF_FFFF
_CLIENT_SOFTWARE: Final = "penstock"


class Pending:
    """A request that was sent: its answer, or why there is none.

    ``on_done`` is called once, synchronously, when either is there.
    """

    __slots__ = ("_connection", "_done", "_error", "_frame", "api_key", "on_done", "sent_at_s", "version")

    def __init__(self, connection: Connection, api_key: int, version: int, sent_at_s: float) -> None:
        self._connection = connection
        self.api_key = api_key
        self.version = version
        self.sent_at_s = sent_at_s
        self.on_done: Callable[[], None] | None = None
        self._frame: memoryview | None = None
        self._error: PenstockError | None = None
        self._done: anyio.Event | None = None

    @property
    def done(self) -> bool:
        """Whether :meth:`result` has something to say."""
        return self._frame is not None or self._error is not None

    def result(self) -> Message:
        """The decoded answer.

        Raises:
            UnavailableError: the connection broke first.
            ClosedError: the connection was closed first.
        """
        if self._error is not None:
            raise again(self._error)
        assert self._frame is not None
        try:
            return decode_response(self.api_key, self.version, self._frame)[1]
        except DecodeError as error:
            error_text = f"the broker's answer can't be read: {error}"
            self._connection.abort(UnavailableError(error_text))
            raise UnavailableError(error_text) from error

    def raw_frame(self) -> memoryview:
        """The undecoded answer; raises as :meth:`result`."""
        if self._error is not None:
            raise again(self._error)
        assert self._frame is not None
        return self._frame

    async def wait(self, timeout_s: float) -> None:
        """Return when :attr:`done`. An answer that takes longer than ``timeout_s`` ends the connection.

        Cancelling leaves the connection as it is; the answer is dropped when it comes.
        """
        if not self.done:
            self._done = anyio.Event()
            with anyio.move_on_after(timeout_s):
                await self._done.wait()
            if not self.done:
                self.expire(timeout_s)

    def expire(self, timeout_s: float) -> None:
        """The answer is overdue after ``timeout_s``: give the connection up."""
        self._connection.abort(self._connection.timeout_error(self.api_key, timeout_s))

    def _finish(self, frame: memoryview | None, error: PenstockError | None) -> None:
        self._frame, self._error = frame, error
        if self._done is not None:
            self._done.set()
        if self.on_done is not None:
            self.on_done()


class Connection:
    """A connection to one broker; open it with :meth:`open`, which owns its reading task.

    Requests may be sent by several tasks; the broker answers in the order they were sent.
    """

    def __init__(self, stream: anyio.abc.SocketStream, address: str, client_id: str) -> None:
        self.address = address
        self._stream = stream
        self._client_id = client_id
        self._send_lock = anyio.Lock()
        self._pending: dict[int, Pending] = {}
        self._next_correlation_id = 0
        self._versions: Mapping[int, VersionRange] = {}
        self._error: PenstockError | None = None
        self._broken = anyio.Event()
        self._frames = FrameReader(_FIRST_FRAME_BYTES_MAX)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, host: str, port: int, *, client_id: str = "penstock", timeout_s: float = 30.0
    ) -> AsyncIterator[Connection]:
        """Connect and learn which versions the broker speaks; leaving closes.

        ``timeout_s`` covers connecting and the first answer.

        Raises:
            UnavailableError: nobody listens, the name is unknown, or what listens doesn't speak plain Kafka.
        """
        address = f"{host}:{port}"
        stream = await _connect(host, port, timeout_s)
        connection = cls(stream, address, client_id)
        try:
            async with task_group() as tasks:
                tasks.start_soon(connection._receive)
                await connection._learn_versions(timeout_s)
                yield connection
        finally:
            connection._fail(ClosedError(f"connection was closed address={address}"))
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)

    @property
    def is_usable(self) -> bool:
        """False once the connection broke or was closed."""
        return self._error is None

    async def wait_broken(self) -> None:
        """Return when the connection is of no more use."""
        await self._broken.wait()

    def version_of(self, api_key: int) -> int:
        """The version that requests of this API go out with.

        Raises:
            InvalidRequestError: the broker doesn't speak a version that this client speaks.
        """
        return choose_version(api_key, self._versions.get(api_key), self.address)

    async def request(self, api_key: int, message: Message, *, timeout_s: float = 30.0) -> Message:
        """Send and wait for the answer.

        Raises:
            UnavailableError: the connection broke, or no answer came within ``timeout_s``; whether the broker
                acted is unknown.
            InvalidRequestError: see :meth:`version_of`.
        """
        pending = await self.begin(api_key, message)
        await pending.wait(timeout_s)
        return pending.result()

    async def begin(self, api_key: int, message: Message, *, answered: bool = True) -> Pending:
        """Send and return at once; ``answered`` is False for Produce with acks=0, whose Pending never ends.

        Raises:
            UnavailableError, ClosedError: the connection is broken or closed.
            InvalidRequestError: see :meth:`version_of`.
        """
        return await self._send(api_key, self.version_of(api_key), message, answered)

    async def _send(self, api_key: int, version: int, message: Message, answered: bool) -> Pending:
        async with self._send_lock:
            if self._error is not None:
                raise again(self._error)
            correlation_id = self._next_correlation_id
            self._next_correlation_id = (correlation_id + 1) & 0x7FFFFFFF
            frame = b"".join(encode_request(api_key, version, correlation_id, self._client_id, message))
            pending = Pending(self, api_key, version, anyio.current_time())
            if answered:
                self._pending[correlation_id] = pending
            try:
                await self._stream.send(frame)
            except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                self.abort(self._lost_error())
                raise self._lost_error() from error
            except BaseException:
                # cancelled half way through a frame, perhaps: nothing can follow it
                self.abort(self._lost_error())
                raise
            return pending

    def abort(self, error: PenstockError) -> None:
        """Give the connection up; everything that waits gets ``error``."""
        self._fail(error)

    def timeout_error(self, api_key: int, timeout_s: float) -> UnavailableError:
        """The sentence for a broker that is silent."""
        return UnavailableError(
            f"broker didn't answer within {timeout_s:g} s, try again: address={self.address} "
            f"request={ApiKey(api_key).name.lower()}"
        )

    def _lost_error(self) -> UnavailableError:
        return UnavailableError(f"connection to the broker broke, try again: address={self.address}")

    def _fail(self, error: PenstockError) -> None:
        if self._error is not None:
            return
        self._error = error
        pending, self._pending = self._pending, {}
        for each in pending.values():
            each._finish(None, error)
        self._broken.set()

    async def _receive(self) -> None:
        received = 0
        try:
            while self._error is None:
                chunk = await self._stream.receive(_RECEIVE_BYTES)
                received += len(chunk)
                for frame in self._frames.feed(chunk):
                    if len(frame) < 4:
                        raise DecodeError(f"frame is too short: bytes={len(frame)}")
                    found = self._pending.pop(int.from_bytes(frame[:4], "big", signed=True), None)
                    if found is None:
                        raise DecodeError("answer to a question that nobody asked")
                    found._finish(frame, None)
        except (anyio.EndOfStream, OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            if received:
                self._fail(self._lost_error())
            else:
                self._fail(
                    UnavailableError(
                        "broker closed the connection without a word; it may expect TLS or SASL, and this client "
                        f"speaks plaintext: address={self.address}"
                    )
                )
        except DecodeError as error:
            self._fail(
                UnavailableError(
                    f"what listens there doesn't speak Kafka's protocol: address={self.address} reason={error}"
                )
            )

    async def _learn_versions(self, timeout_s: float) -> None:
        # not imported: the package's own module names the broker, which lies above this one
        version_text = str(sys.modules["penstock"].__version__)
        request = ApiVersionsRequest(
            client_software_name=_CLIENT_SOFTWARE, client_software_version=version_text
        )
        version = _FIRST_API_VERSIONS
        pending = await self._send(ApiKey.API_VERSIONS, version, request, True)
        await pending.wait(timeout_s)
        frame = pending.raw_frame()
        if frame[4:6] == ErrorCode.UNSUPPORTED_VERSION.to_bytes(2, "big"):
            # A broker that doesn't know our version answers in version 0, whatever was asked (KIP-511).
            pending = await self._send(ApiKey.API_VERSIONS, 0, request, True)
            await pending.wait(timeout_s)
        answer = pending.result()
        assert isinstance(answer, ApiVersionsResponse)
        if answer.error_code:
            raise UnavailableError(
                f"broker doesn't tell its versions: address={self.address} error_code={answer.error_code}"
            )
        self._frames.frame_bytes_max = _FRAME_BYTES_MAX
        self._versions = {
            each.api_key: VersionRange(each.min_version, each.max_version) for each in answer.api_keys
        }


def choose_version(api_key: int, broker: VersionRange | None, address: str) -> int:
    """The newest version that both ends speak.

    Raises:
        InvalidRequestError: there is none.
    """
    ours = supported_versions(api_key)
    assert ours is not None
    high = min(ours.high, CLIENT_VERSIONS_MAX.get(api_key, ours.high))
    name = ApiKey(api_key).name.lower()
    if broker is None:
        raise InvalidRequestError(f"broker doesn't have this api: api={name} address={address}")
    version = min(high, broker.high)
    if version < max(ours.low, broker.low):
        raise InvalidRequestError(
            f"broker and client have no version of this api in common: api={name} address={address} "
            f"broker={broker.low}-{broker.high} client={ours.low}-{high}"
        )
    return version


async def _connect(host: str, port: int, timeout_s: float) -> anyio.abc.SocketStream:
    address = f"{host}:{port}"
    try:
        with anyio.fail_after(timeout_s):
            return await anyio.connect_tcp(host, port)
    except TimeoutError as error:
        raise UnavailableError(
            f"nobody answers at this address within {timeout_s:g} s: address={address}"
        ) from error
    except socket.gaierror as error:
        raise UnavailableError(
            f"host name isn't known, check --bootstrap-server: address={address}"
        ) from error
    except OSError as error:
        raise UnavailableError(_why_not_connected(error, address)) from error


def _why_not_connected(error: OSError, address: str) -> str:
    causes = _os_errors(error)
    if any(cause.errno == errno.ECONNREFUSED for cause in causes):
        return f"no broker listens there, start one with 'penstock serve' or name another: address={address}"
    reasons = [cause.strerror.lower() for cause in causes if cause.strerror]
    return f"broker can't be reached, {reasons[-1] if reasons else error}: address={address}"


def _os_errors(error: BaseException | None) -> list[OSError]:
    """The errors of all addresses that a name stands for."""
    found: list[OSError] = []
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                found += _os_errors(inner)
        elif isinstance(error, OSError):
            found.append(error)
        error = error.__cause__
    return found
