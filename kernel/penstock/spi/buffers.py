"""Bytes as they cross the boundary between the kernel and a plugin."""

from __future__ import annotations

__all__ = ("Buffer",)

from typing import TypeAlias

#: Bytes of any kind. A plugin must not keep a writable buffer past the call that it got it in, unless the
#: contract of that method says so.
Buffer: TypeAlias = bytes | bytearray | memoryview
