"""What only the garbage collector could free."""

from __future__ import annotations

__all__ = ("nothing_to_collect",)

import gc
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import PenstockError

#: Buffers over this size are payload.
BYTES_MAX = 1024


@contextmanager
def nothing_to_collect() -> Iterator[None]:
    """Fails if what happens inside left objects, errors, frames or payload that only the garbage collector frees."""
    gc.collect()
    gc.freeze()  # what is there before isn't looked at
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found = [one for one in gc.garbage if _is_ours(one)]
        heavy = Counter(_told(one) for one in found)
        payload = sum(
            len(held)
            for one in gc.garbage
            for held in gc.get_referents(one)
            if isinstance(held, (bytes, bytearray)) and len(held) > BYTES_MAX
        )
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()
    assert not heavy, f"left to collect: {dict(heavy)}"
    assert not payload, "left to collect, in bytes of payload"


def _is_ours(one: object) -> bool:
    """Objects, errors and frames of Penstock; those of the test runner end when they end."""
    if isinstance(one, BaseException):
        return isinstance(one, PenstockError) or any(map(_is_ours, _traces(one.__traceback__)))
    if isinstance(one, types.TracebackType):
        one = one.tb_frame
    if isinstance(one, types.FrameType):
        return "/penstock" in one.f_code.co_filename
    return type(one).__module__.partition(".")[0] == "penstock"


def _traces(trace: types.TracebackType | None) -> Iterator[types.TracebackType]:
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _told(one: object) -> str:
    if isinstance(one, types.TracebackType):
        one = one.tb_frame
    if isinstance(one, types.FrameType):
        return f"{Path(one.f_code.co_filename).name}:{one.f_code.co_name}"
    return repr(one)[:100] if isinstance(one, BaseException) else type(one).__qualname__
