"""Arrow arrays as text, to compare them by what can be seen of them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from penstock_iceberg_compactor.decode import conform
from penstock_iceberg_compactor.decode._arrow import storage


def visible(array: Any, *, maps_in_order: bool = True) -> Any:
    """All that can be seen of an array: what null structs hide differs, and NaN isn't equal to itself."""
    if "extension<" in str(array.type):
        array = conform(array, storage(array.type)).rows
    if pa.types.is_struct(array.type):
        inside = [visible(one, maps_in_order=maps_in_order) for one in array.flatten()]
        return [str(array.is_valid()), *inside]
    if pa.types.is_map(array.type):
        if not maps_in_order:
            return [None if one is None else sorted(map(repr, one)) for one in array.to_pylist()]
        array = array.cast(pa.list_(pa.struct([("k", array.type.key_type), ("v", array.type.item_type)])))
    if pa.types.is_list(array.type):
        return [str(pc.list_value_length(array)), visible(array.flatten(), maps_in_order=maps_in_order)]
    return str(array)
