"""What clients make the broker remember: counted exactly, bounded, and charged to the allocator in steps."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.account import STEP_BYTES, Ledger
from penstock_conformance.reference._allocator import PlainAllocator

MIB = 1024 * 1024


def charged(allocator: PlainAllocator) -> int:
    return allocator.statistics().used_by_purpose.get("groups", 0)


def test_state_over_the_limit_finds_no_room_and_is_counted() -> None:
    ledger = Ledger("groups", 1000)
    assert ledger.has_room(1000)
    ledger.add(600)
    assert not ledger.has_room(401)
    assert ledger.has_room(400)
    assert (ledger.statistics().used_bytes, ledger.statistics().refused) == (600, 1)


def test_state_that_a_start_finds_stays_and_no_more_is_made() -> None:
    allocator = PlainAllocator(10 * MIB)
    ledger = Ledger("groups", 1000, allocator)
    ledger.add(5 * MIB)
    assert not ledger.has_room(1)
    assert charged(allocator) >= 5 * MIB
    ledger.add(-5 * MIB + 500)
    assert ledger.has_room(500)


def test_state_is_charged_even_when_payload_has_all_memory() -> None:
    allocator = PlainAllocator(MIB)
    payload = allocator.charge_nowait(MIB, "append")
    ledger = Ledger("groups", MIB, allocator)
    ledger.add(10)
    assert allocator.statistics().used_bytes == MIB + STEP_BYTES
    ledger.close()
    payload.release()
    assert allocator.statistics().used_bytes == 0


@given(st.lists(st.integers(0, 300_000), max_size=40), st.randoms(use_true_random=False))
def test_the_charge_covers_the_state_and_is_zero_with_the_last_of_it(
    sizes: list[int], random: object
) -> None:
    allocator = PlainAllocator(64 * MIB)
    ledger = Ledger("groups", 64 * MIB, allocator)
    there: list[int] = []
    for size in sizes:
        if there and size % 3 == 0:
            ledger.add(-there.pop(random.randrange(len(there))))  # type: ignore[attr-defined]
        else:
            there.append(size)
            ledger.add(size)
        assert ledger.used_bytes == sum(there)
        assert charged(allocator) >= ledger.used_bytes
    for size in there:
        ledger.add(-size)
    assert charged(allocator) == 0
