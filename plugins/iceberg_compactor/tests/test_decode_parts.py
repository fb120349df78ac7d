"""Records that fail cost what is next to them a second look, not the batch."""

from __future__ import annotations

import pyarrow as pa
import pytest
from penstock_iceberg_compactor.decode._decoder import RefusedError, parts

COUNT = 4000


@pytest.mark.parametrize("names_it", [True, False])
def test_a_failure_in_a_thousand_has_little_decoded_twice(names_it: bool) -> None:
    """Whether the bulk decoder names the record or not; and less still once failures are expected."""
    items = [b"%d" % n for n in range(COUNT)]
    bad = {700, 701, 1900, 3333}
    array = pa.array([b"bad" if n in bad else item for n, item in enumerate(items)], pa.binary())
    given: list[int] = []
    rows: list[bytes] = []

    def bulk(some: pa.Array) -> pa.Array:
        given.append(len(some))
        at = some.to_pylist().index(b"bad") if b"bad" in some.to_pylist() else -1
        if at >= 0:
            raise RefusedError(at if names_it else -1)
        return some.cast(pa.string()).cast(pa.int64())

    def row(item: bytes) -> int:
        rows.append(item)
        return int(item)

    costs = []
    for wary in (False, True):
        given.clear()
        rows.clear()
        decoded = parts(array, pa.int64(), bulk, row, wary=wary)
        assert [one.index for one in decoded.failures] == sorted(bad)
        assert decoded.rows.to_pylist() == [n for n in range(COUNT) if n not in bad]
        assert decoded.indices.to_pylist() == [n for n in range(COUNT) if n not in bad]
        costs.append((sum(given), len(rows)))
    (first, one_by_one), (expected, still) = costs
    assert expected < first < 2.5 * COUNT
    assert expected < 1.5 * COUNT
    assert max(one_by_one, still) < 0.1 * COUNT
