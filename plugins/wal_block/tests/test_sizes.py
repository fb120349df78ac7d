"""The sizes of a log: what they leave to each other, whatever is set, and which setting decides them."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st
from penstock_wal_block import Settings
from penstock_wal_block._sizes import LogSizes, plugin_sizes

MIB = 2**20

SETTINGS = st.builds(
    Settings,
    capacity=st.integers(MIB, 2**34),
    group_bytes_max=st.integers(4096, 64 * MIB),
    entry_bytes_max=st.integers(4096, 2**31),
    groups_in_flight_max=st.integers(1, 64),
)


@given(SETTINGS)
def test_sizes_fit_each_other_whatever_is_set(settings: Settings) -> None:
    sizes = LogSizes.of(settings)  # which asserts it
    assert sizes.entry <= settings.entry_bytes_max
    assert sizes.group <= settings.group_bytes_max
    assert sizes.buffers <= max(settings.group_bytes_max, settings.groups_in_flight_max * MIB)


@given(SETTINGS, st.integers(1, 64))
def test_memory_follows_the_setting_that_it_names(settings: Settings, factor: int) -> None:
    memory = plugin_sizes(settings).memory
    assert memory is not None
    less = max(1 if memory.setting.startswith("groups") else 4096, int(memory.size * memory.ratio) // factor)
    smaller = settings.model_copy(update={memory.setting: less})
    assert LogSizes.of(smaller).buffers <= memory.size


@given(SETTINGS)
def test_the_largest_entry_follows_the_setting_that_it_names(settings: Settings) -> None:
    entry = plugin_sizes(settings).entry
    assert entry is not None
    assert entry.ratio == (Fraction(4) if entry.setting == "capacity" else Fraction(1))
    if entry.setting == "capacity":
        larger = settings.model_copy(update={"capacity": settings.capacity + 4 * 4096})
        assert LogSizes.of(larger).entry > entry.size or LogSizes.of(larger).entry == settings.entry_bytes_max
    else:
        assert entry.size == settings.entry_bytes_max
