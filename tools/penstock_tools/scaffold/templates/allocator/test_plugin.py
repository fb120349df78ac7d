"""What is particular to an allocator of mappings."""

from __future__ import annotations

import pytest

from penstock.errors import FullError
from penstock_conformance.reference import PlainAllocator


def test_memory_that_somebody_sees_stays_on_the_account() -> None:
    allocator = PlainAllocator(limit=100)
    grant = allocator.allocate_nowait(60, "records")
    view = grant.view[:10]
    grant.release()
    assert allocator.statistics().used_by_purpose == {"pinned": 60}
    with pytest.raises(FullError):
        allocator.charge_nowait(60, "cache")
    del view
    assert allocator.statistics().used_bytes == 0


def test_listeners_make_room_before_anybody_is_refused() -> None:
    allocator = PlainAllocator(limit=100)
    cached = allocator.charge_nowait(100, "cache")

    def evict(wanted: int) -> int:
        cached.release()
        return 100

    allocator.add_pressure_listener(evict)
    allocator.charge_nowait(50, "records")
    assert allocator.statistics().used_by_purpose == {"records": 50}
