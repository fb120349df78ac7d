"""Requests of all kinds but Produce: from the frame through the gate to the handler, and back as an answer.

Most are answered at once, by their API's ``nowait``. What has to wait runs in a task of the server's scope, alone in
its pipeline, and ends with its client if the API says so. A long request is decoded in that task, when there is room.
"""

from __future__ import annotations

__all__ = ("not_served", "start")

from typing import Final

import anyio.lowlevel

from penstock.api.context import RequestContext
from penstock.api.declaration import SHORT_BYTES, Api, Frame
from penstock.api.errors import error_code_of, is_expected, quoted
from penstock.api.gate import UnidentifiedError
from penstock.errors import PenstockError
from penstock.server.admission import admit, rest, throttled
from penstock.server.channel import Channel
from penstock.server.large_frame import HeldFrame
from penstock.server.long_request import COUNTED_BYTES, admit_and_decode, admit_nowait
from penstock.server.responses import count_response, encode_in_turn
from penstock.server.slots import Slot
from penstock.spi.allocator import Allocation
from penstock.spi.buffers import Buffer
from penstock.wire.elements import drop_elements
from penstock.wire.registry import Message, decode_request, decode_request_header, encode_response

#: An answer leaves from the read that asked for it up to this size. A larger one takes as long as several requests,
#: which are read first: Produces among them share a group, and while a thread writes it large answers leave.
_AT_ONCE_BYTES_MAX: Final = 128 * 1024


def start(
    channel: Channel, frame: memoryview, api_key: int, version: int, allocation: Allocation | None
) -> bool:
    """Begin a request; whether it keeps ``frame`` and ``allocation``. Handlers get a copy.

    Raises PenstockError, with nothing changed, when it's malformed.
    """
    header = decode_request_header(frame)
    if header.client_id != channel.client.client_id:
        channel.set_client_id(header.client_id)
    core = channel.core
    api = core.apis.get(api_key)
    slot = Slot(version, header.correlation_id, len(frame), api_key=api_key)
    if api is None or not api.low <= version <= api.high:
        if api is not None and api.unsupported is not None:
            slot.version = 0
            channel.pipeline.take(slot)
            _answer(channel, slot, api_key, api.unsupported(core.api))
        else:
            channel.fault(not_served(api, api_key, version, header.client_id))
        return False
    context = RequestContext(api=core.api, client=channel.client, version=version)
    slot.charges = context.charges
    message: Message | None = None
    size = len(frame)
    if (size < SHORT_BYTES or size < api.long_bytes(version)) and (
        size < COUNTED_BYTES or admit_nowait(core, channel.handling, context, size)
    ):
        message = decode_request(api_key, version, bytes(frame), header.body_pos, lenient=True)
    core.requests_by_api[api_key] += 1
    channel.pipeline.take(slot)
    if message is None:
        held = channel.held = HeldFrame(frame, allocation, header.body_pos)
        channel.run_alone(slot, _run_long, channel, slot, api, held, context)
        return allocation is not None
    try:
        admit(channel, api, message, slot)
        response = None if api.nowait is None else api.nowait(message, context)
    except Exception as error:  # noqa: BLE001 - logged and answered in _fail
        _fail(channel, slot, api, message, error)
        return False
    if response is not None:
        _answer(channel, slot, api_key, response, at_once=True)
    else:
        slot.message = message
        channel.run_alone(slot, _run, channel, slot, api, message, context)
    return False


def not_served(api: Api | None, api_key: int, version: int, client_id: str | None) -> str:
    """Why a request can't be answered, so that whoever reads the log knows what to do about which client."""
    asked = f"version={version}"
    if client_id:
        asked += f" client_id={quoted(client_id)}"
    if api is None:
        return f"there is no such api here: api_key={api_key} {asked}"
    age, remedy = ("old", "a newer one") if version < api.low else ("new", "an older one")
    return f"the client is too {age}, use {remedy}: api={api.name} versions={api.versions} {asked}"


async def _run_long(
    channel: Channel, slot: Slot, api: Api, frame: HeldFrame, context: RequestContext
) -> None:
    message: Message | None = None
    core = channel.core
    with frame, channel.scopes.entered():
        try:
            message = await admit_and_decode(core, channel.handling, context, api, frame, channel.go_on)
        except PenstockError as error:
            channel.fault(f"request is malformed: api_key={api.key} version={slot.version}: {error}")
    channel.held = None
    slot.message = message
    if message is None or channel.is_lost:
        return
    try:
        admit(channel, api, message, slot)
        response = None if api.nowait is None else api.nowait(message, context)
    except Exception as error:  # noqa: BLE001 - logged and answered in _fail
        _fail(channel, slot, api, message, error)
        return
    if response is not None:
        rest = _answer_in_turn(channel, slot, api.key, [message, response], in_thread=True)
    else:
        rest = _run(channel, slot, api, message, context, is_long=True)
    del message, response  # only those have them who drop them
    await rest


async def _run(
    channel: Channel,
    slot: Slot,
    api: Api,
    message: Message,
    context: RequestContext,
    *,
    is_long: bool = False,
) -> None:
    """Run one handler to its answer, or to the end of its client or of the server."""
    assert api.handler is not None
    if api.frame is Frame.GROUP and api.cancellable:
        context.release_charges()  # groups account for what waits there, which may be for long
    response: Message | None = None
    try:
        if api.cancellable:
            with channel.scopes.entered():
                response = await api.handler(message, context)
        else:
            response = await api.handler(message, context)
    except Exception as error:  # noqa: BLE001 - logged and answered in _fail
        _fail(channel, slot, api, message, error)
        return
    finally:
        spent_s, core = context.elsewhere_s, channel.core
        if spent_s:
            core.loop_time.used(channel.time, spent_s, spent_s, core.time())
    if response is None:
        return  # its client is gone
    if context.rest_s > 0.0:
        rest(channel, slot, context.rest_s)
    over = [message, response]
    del message, response
    await _answer_in_turn(channel, slot, api.key, over, in_thread=is_long or context.is_long)


async def _answer_in_turn(
    channel: Channel, slot: Slot, api_key: int, over: list[Message], *, in_thread: bool
) -> None:
    """Answer with the last of ``over``, which the request is in, too; the caller keeps neither.

    What is long is dropped some elements at a time, before the answer leaves: its memory is counted until then, and
    its client asks for nothing else meanwhile.
    """
    buffers: list[Buffer] | None = None
    if slot.throttle_ms:
        over[-1] = throttled(over[-1], slot.throttle_ms)
    if not channel.is_lost:
        with channel.scopes.entered():  # who is gone doesn't wait to be answered
            buffers = await encode_in_turn(
                channel.core, channel.client, slot, api_key, over, in_thread=in_thread
            )
    if in_thread and (buffers or channel.is_lost):
        slot.forget_request()
        for _ in drop_elements(over):
            await anyio.lowlevel.checkpoint()
    _answer(channel, slot, api_key, over[-1], buffers)


def _answer(
    channel: Channel,
    slot: Slot,
    api_key: int,
    response: Message,
    buffers: list[Buffer] | None = None,
    *,
    at_once: bool = False,
) -> None:
    if channel.is_lost:
        slot.release_charges()
        return
    slot.buffers = buffers
    if buffers is None:  # else nothing may be left of the response
        if slot.throttle_ms:
            response = throttled(response, slot.throttle_ms)
        try:
            slot.buffers = encode_response(api_key, slot.version, slot.correlation_id, response)
        except Exception as error:  # noqa: BLE001 - logged as a bug
            channel.answer_failed(slot, error)
    count_response(channel.core, channel.client, slot)
    if at_once and sum(map(len, slot.buffers or ())) <= _AT_ONCE_BYTES_MAX:
        channel.answered(slot, reads_on=True)
    else:
        channel.slot_completed(slot)


def _fail(channel: Channel, slot: Slot, api: Api, message: Message, error: Exception) -> None:
    """A handler raised: say so in the log if it is a bug, and to the client where the API has a place for it."""
    channel.core.handler_failed(api.key, error, expected=is_expected(error), client=channel.client)
    slot.release_charges()
    response = None
    if not isinstance(error, UnidentifiedError):
        response = api.failure_response(message, slot.version, error_code_of(error))
    if response is None:
        slot.buffers = []
        slot.close = True
        channel.slot_completed(slot)
    else:
        _answer(channel, slot, api.key, response)
