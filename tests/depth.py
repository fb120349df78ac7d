"""How deep the tests go: all that the default run and the full one differ in.

The default run meets each clause, plugin, kind of mutant, attack, family of clients and kind of fault at least
once. The full run, ``pytest --full``, repeats them with more seeds, rounds, sizes, variants and versions. What is
counted is in the table below, of which ``--depth fuzz_cases=5000`` sets a number; a variant that only the full run
tries has the mark ``full``.
"""

from __future__ import annotations

__all__ = ("FULL", "NUMBERS", "examples", "how_many", "in_full", "pairs", "seeds")

import itertools
import os
from collections.abc import Sequence

import pytest
from _pytest.mark import ParameterSet

#: By name: in the default run, in the full one.
NUMBERS = {
    "broker_lives": (8, 100),  # random histories of a broker in simulated time
    "crowd_seeds": (1, 8),  # random crowds of clients in simulated time
    "examples": (20, 100),  # of Hypothesis: percent of those that each property names
    "fuzz_cases": (180, 900),  # requests of each seed, and their connections
    "kills": (6, 50),  # of a broker that small batches are written to
    "lake_commits": (15, 100),  # of a table whose files are merged
    "lake_kills": (2, 5),  # of a broker that writes a table
    "lake_kills_s3": (1, 3),  # the same, on S3
    "lake_records": (120, 500),  # of a log that is replayed against its table
    "native_batches": (1000, 20_000),  # wrong ones, read by native code under sanitizers
    "probe_writers": (2, 3),  # processes that a probe of a cloud races with each other
    "race_rounds": (3, 50),  # races of processes for one object, on each store
    "race_writers": (3, 8),  # the processes
    "refusals": (250, 10_000),  # of a client that fills a broker's memory
    "replica_histories": (5, 50),  # random histories of a log in several places
    "unusual": (1, 9),  # of each kind, plugins that keep their contract in an unusual way
    "wal_lives": (2, 20),  # random histories of each log in simulated time
    "wal_s3_histories": (6, 100),  # random histories of a log in a store
    "zombie_rounds": (1, 4),  # stopped brokers that wake up, with each log
    "zombie_seeds": (8, 100),  # random histories of stopped owners of a log
}

#: What the options of the run say, in all its processes: ``full``, and ``NAME=NUMBER`` for each number given.
_asked = os.environ.get("TESTS_DEPTH", "").split()
#: Whether this is the full run.
FULL = "full" in _asked
_given = dict(one.split("=") for one in _asked if "=" in one)
if not _given.keys() <= NUMBERS.keys():
    raise pytest.UsageError(
        f"--depth knows no {', '.join(_given.keys() - NUMBERS.keys())}: {', '.join(NUMBERS)}"
    )


def how_many(name: str) -> int:
    """How many there are of this in this run."""
    default, full = NUMBERS[name]
    return int(_given.get(name, full if FULL else default))


def examples(usual: int) -> int:
    """How many examples Hypothesis tries in this run, of a property that is worth so many."""
    return max(1, usual * how_many("examples") // 100)


def seeds(name: str) -> range:
    """As many seeds, from 0."""
    return range(how_many(name))


def pairs(one: Sequence[object], other: Sequence[object]) -> list[object]:
    """Pairs in which each value of both is met once; those that are left are for the full run only."""
    count = max(len(one), len(other))
    once = [(one[at % len(one)], other[at % len(other)]) for at in range(count)]
    return [*once, *in_full(*(pair for pair in itertools.product(one, other) if pair not in once))]


def in_full(*values: object) -> list[ParameterSet]:
    """Parameters that only the full run tries, each a value or, as a tuple, several."""
    return [
        pytest.param(*(one if isinstance(one, tuple) else (one,)), marks=pytest.mark.full) for one in values
    ]
