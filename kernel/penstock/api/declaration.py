"""The declaration of a Kafka API: all that the broker, its clients and its documents have to know of it.

A declaration stands beside its handler, in the module's ``APIS``. Dispatch, ApiVersions, limits of frames, the gate
and the table in ``docs/kafka-compatibility.md`` follow from it; nothing else names an API a second time.
"""

from __future__ import annotations

__all__ = ("CODEC", "SHORT_BYTES", "Api", "FailureResponse", "Frame", "Handler", "NowaitHandler", "one_code")

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, TypeAlias

from penstock.api.authorization import Need
from penstock.api.context import ApiContext, RequestContext
from penstock.wire.api_keys import ApiKey
from penstock.wire.registry import Message, smallest_element, supported_versions

#: ``async def handle_x(request, context) -> response``
Handler: TypeAlias = Callable[[Any, RequestContext], Awaitable[Message]]
#: ``def x_nowait(request, context) -> response``; None: it has to wait, let the handler do it.
NowaitHandler: TypeAlias = Callable[[Any, RequestContext], Message | None]
#: ``(request, version, error_code) -> response``; None where that version has no place for it.
FailureResponse: TypeAlias = Callable[[Any, int, int], Message | None]

#: As far as there is a codec.
CODEC: Final = -1
#: A request of less is short, whatever it holds.
SHORT_BYTES: Final = 256
#: A request of so many bytes is long, whatever it holds.
_LONG_BYTES: Final = 4 * 1024


class Frame(Enum):
    """The bound on a request's length: decoded, most take many times their size."""

    #: ``ServerSettings.control_request_bytes_max``
    CONTROL = "control"
    #: What carries the metadata of a whole group: ``group_request_bytes_max``.
    GROUP = "group"
    #: What carries records, which stay as they came: ``request_bytes_max``.
    RECORDS = "records"


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One Kafka API.

    How it waits: with ``nowait`` alone it never does; ``handler`` runs in a task of its own, after ``nowait``, if
    there is one, has returned None. An API with neither is *pipelined*, which Produce alone is: the connection
    hands its requests to the log in the call that received their bytes, while earlier ones are unanswered.
    """

    key: ApiKey
    #: The permissions that it needs, as Kafka's documentation lists them; an empty tuple if none.
    needs: tuple[Need, ...]
    nowait: NowaitHandler | None = None
    handler: Handler | None = None
    #: The versions that are handled.
    low: int = CODEC
    high: int = CODEC
    #: The lowest version that ApiVersions tells, where that isn't the lowest one that is handled.
    low_advertised: int = CODEC
    #: Whether it is given up when the client goes away: for what waits, not for what changes something.
    cancellable: bool = False
    frame: Frame = Frame.CONTROL
    #: How a failure of the whole request is told. None: the protocol has no place for it, the connection is closed.
    failure: FailureResponse | None = None
    #: The answer, in version 0, to a version that isn't handled. None: the connection is closed, as in Kafka.
    unsupported: Callable[[ApiContext], Message] | None = None
    #: A request that may have more elements is long: an element takes up to 250 bytecodes, however short it is.
    short_elements: int = 200
    #: What an element of a long request takes until it is answered, where that is more than so many times its bytes.
    #: It may have three. Decoding takes about half of that, the handler and its answer the other half.
    element_bytes: int = 512
    #: What the answer to a long request may take, as so many times the request, where that is far more than requests
    #: take as a rule: so much is counted while it's handled, and the next one waits.
    answer_parts: int = 0
    #: Whether a client that hasn't authenticated yet may ask.
    before_identity: bool = False
    #: What a reader of the documents should know beside versions and permissions; Markdown.
    note: str = ""

    def __post_init__(self) -> None:
        if self.before_identity and self.needs:
            raise ValueError(
                f"an api that is served before clients authenticate can't need permissions: api_key={self.key}"
            )
        versions = supported_versions(self.key)
        if versions is None:
            raise ValueError(f"api has no codec, generate one: api_key={self.key}")
        for field, end in (("low", versions.low), ("high", versions.high)):
            if getattr(self, field) == CODEC:
                object.__setattr__(self, field, end)
        if self.low_advertised == CODEC:
            object.__setattr__(self, "low_advertised", self.low)
        if not versions.low <= self.low <= self.high <= versions.high:
            raise ValueError(
                f"api is declared with versions that have no codec: api_key={self.key} "
                f"low={self.low} high={self.high} codec_low={versions.low} codec_high={versions.high}"
            )

    @property
    def is_pipelined(self) -> bool:
        """Whether the connection handles it itself, where its bytes are."""
        return self.handler is None and self.nowait is None

    def long_bytes(self, version: int) -> int:
        """A request of this size is decoded, and its response encoded, in a thread: others get their turns meanwhile.

        What is shorter takes the loop for 50,000 bytecodes at most. An element may be an empty string, of one byte.
        """
        element_bytes = smallest_element(self.key, version) or _LONG_BYTES
        return min(max(SHORT_BYTES, self.short_elements * element_bytes), _LONG_BYTES)

    @property
    def name(self) -> str:
        """The API's name in Kafka's documentation: ``OffsetForLeaderEpoch``."""
        return "".join(part.capitalize() for part in self.key.name.split("_"))

    @property
    def versions(self) -> str:
        """``2-7``, or ``0``."""
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"

    def failure_response(self, request: Any, version: int, error_code: int) -> Message | None:
        """A response that says ``error_code`` of all of ``request``; None where there is no place for that."""
        return None if self.failure is None else self.failure(request, version, error_code)


def one_code(response: Callable[..., Message], *, since: int = 0, until: int = 99) -> FailureResponse:
    """A failure is told by the ``error_code`` that ``response`` has in the versions from ``since`` to ``until``."""

    def failure(_request: Any, version: int, error_code: int) -> Message | None:
        return response(error_code=error_code) if since <= version <= until else None

    return failure
