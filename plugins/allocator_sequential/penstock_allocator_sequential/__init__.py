"""Chunked bump allocation with one account, a hard limit and back-pressure."""

from __future__ import annotations

__all__ = ("SequentialAllocatorSettings", "penstock_register_allocator")

from penstock.hookspecs import hookimpl
from penstock.spi.allocator import AllocatorCapabilities, AllocatorSpec
from penstock_allocator_sequential._allocator import SequentialAllocatorSettings, open_allocator


@hookimpl
def penstock_register_allocator() -> AllocatorSpec[SequentialAllocatorSettings]:
    """Register the sequential allocator."""
    return AllocatorSpec(
        name="allocator_sequential",
        summary="bump allocation in recycled chunks, one per purpose, with a hard limit and fair waiting",
        settings=SequentialAllocatorSettings,
        capabilities=AllocatorCapabilities(),
        open=open_allocator,
    )
