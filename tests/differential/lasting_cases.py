"""What lasts longer than a request: fetches that wait, lists of configs that grow, members that are gone already."""

from __future__ import annotations

__all__ = ("LASTING_CASES",)

from collections.abc import Callable
from typing import Any, Final

from tests.differential.compare import Pair
from tests.differential.corner_cases import ask, make, message, wait_for_configs
from tests.differential.odd_requests import records

from penstock.wire import ApiKey

_SET, _DELETE, _APPEND, _SUBTRACT = range(4)
_THROTTLED: Final = "leader.replication.throttled.replicas"
_RATIO: Final = "min.cleanable.dirty.ratio"
_LAG_MIN, _LAG_MAX = "min.compaction.lag.ms", "max.compaction.lag.ms"
#: Stands for the id of a fetch session.
_SESSION: Final = -7781
#: What is described after each change.
_TOLD: Final = ("cleanup.policy", _THROTTLED, _RATIO)
_CHANGES: Final[tuple[tuple[tuple[str, int, str | None], ...], ...]] = (
    (("cleanup.policy", _SET, "delete,delete"),),
    ((_THROTTLED, _SET, "3:1,3:1"),),
    ((_THROTTLED, _APPEND, "4:1,3:1,4:1"),),
    ((_THROTTLED, _SUBTRACT, "3:1"),),
    *(
        ((_RATIO, _SET, value),)
        for value in ("1", "0.50", "5e-1", "0.5f", "1e-5", "0.00012", "0.0010", "0", ".5", "1.", "0_1", "e")
    ),
    ((_LAG_MAX, _SET, "5"),),
    ((_LAG_MIN, _SET, "10"),),
    ((_LAG_MIN, _SET, "10"), (_LAG_MAX, _DELETE, None)),
    ((_LAG_MAX, _SET, "9"),),
    ((_LAG_MAX, _SET, "9"), (_LAG_MIN, _DELETE, None)),
)


def values_as_they_are_told(pair: Pair) -> None:
    """Lists that name something twice, ratios as Java writes them, bounds that cross."""
    make(pair, "told")
    resource = {"resource_type": 2, "resource_name": "told"}
    for changes in _CHANGES:
        configs = [{"name": name, "config_operation": how, "value": value} for name, how, value in changes]
        altered = [resource | {"configs": configs}]
        ask(pair, f"{changes}", ApiKey.INCREMENTAL_ALTER_CONFIGS, 1, resources=altered)
        (name, *_), *others = changes
        if name in _TOLD and not others:
            wait_for_configs(pair, "told")
            asked = [resource | {"configuration_keys": [name]}]
            ask(pair, f"{changes}: described", ApiKey.DESCRIBE_CONFIGS, 4, resources=asked)


def no_wait_for_what_does_not_fit(pair: Pair) -> None:
    """As many bytes are wanted as the partitions may have, and whole batches don't add up to them."""
    make(pair, "fitting", 2)
    size = len(records())
    for version in (4, 12):
        for wanted, start in ((3 * size, 0), (3 * size + 1, 2)):
            partitions = [
                {"partition": index, "fetch_offset": start, "partition_max_bytes": size + size // 2}
                for index in (0, 1)
            ]
            # an answer that Kafka gives at once; where it waits, for no longer than that
            ask(
                pair,
                f"{wanted} bytes from {start} on",
                ApiKey.FETCH,
                version,
                max_wait_ms=1 if start else 2**31 - 1,
                min_bytes=wanted,
                max_bytes=1 << 20,
                session_epoch=-1,
                topics=[{"topic": "fitting", "partitions": partitions}],
                forgotten_topics_data=[],
            )


def turns_in_sessions(pair: Pair) -> None:
    """Whose records come where there is room for those of one partition, from the second answer of a session on."""
    make(pair, "turns", 3)
    partitions = [
        {"partition": index, "fetch_offset": 0, "partition_max_bytes": size}
        for index, size in ((9, 1), (1, 1 << 20), (0, 1), (2, 1 << 20))
    ]

    def fetch(epoch: int, max_bytes: int) -> dict[str, Any]:
        return {
            "max_wait_ms": 0,
            "min_bytes": 0,
            "max_bytes": max_bytes,
            "session_id": _SESSION if epoch else 0,
            "session_epoch": epoch,
            "topics": [{"topic": "turns", "partitions": partitions}] if not epoch else [],
            "forgotten_topics_data": [],
        }

    opened = message(ApiKey.FETCH, **fetch(0, 1 << 20))
    for side in pair.sides:
        side.learn(_SESSION, side.ask_message(ApiKey.FETCH, 12, opened).session_id)
    for epoch in range(1, 6):
        ask(pair, f"answer {epoch}", ApiKey.FETCH, 12, **fetch(epoch, 1))


def gone_already(pair: Pair) -> None:
    """A member that leaves by its instance, and is named again with an id that was never its own."""
    group, instance = "gone-already", "one"
    join: dict[str, Any] = {
        "group_id": group,
        "group_instance_id": instance,
        "session_timeout_ms": 60_000,
        "rebalance_timeout_ms": 60_000,
        "protocol_type": "consumer",
        "protocols": [{"name": "range", "metadata": b"bytes"}],
    }
    named = {"member_id": "", "group_instance_id": instance}
    wrong = {"member_id": "wrong", "group_instance_id": instance}
    for label, members in (("first", [wrong, named]), ("then", [named, wrong]), ("only", [wrong])):
        ask(pair, f"joins, {label}", ApiKey.JOIN_GROUP, 5, **join)
        ask(pair, f"the wrong one {label}", ApiKey.LEAVE_GROUP, 4, group_id=group, members=members)


#: By name.
LASTING_CASES: Final[dict[str, Callable[[Pair], None]]] = {
    "values as they are told": values_as_they_are_told,
    "no wait for what doesn't fit": no_wait_for_what_does_not_fit,
    "turns in sessions": turns_in_sessions,
    "gone already": gone_already,
}
