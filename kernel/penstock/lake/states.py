"""The states of a lake table, as its claim in metadata says them."""

from __future__ import annotations

__all__ = ("LakeState",)

from enum import StrEnum


class LakeState(StrEnum):
    """How it goes with the table of a topic."""

    #: It is being opened.
    OPENING = "opening"
    #: Records go into it.
    RUNNING = "running"
    #: It failed, for the reason beside it, and is tried again after a pause.
    FAILED = "failed"
    #: Records were deleted before they were in it, and the topic's policy is to stop.
    GAP = "gap"
    #: Its owner has left it, at a clean stop.
    STOPPED = "stopped"
