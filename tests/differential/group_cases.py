"""Scripts about groups for both brokers: those that never began, lost all offsets, or were refused."""

from __future__ import annotations

__all__ = ("GROUP_CASES",)

from collections.abc import Callable
from typing import Any, Final

from tests.differential.compare import Pair
from tests.differential.corner_cases import ask, make, message

from penstock.wire import ApiKey

#: Stand for the member ids that a broker gave out.
_MEMBER: Final = "@only"
_PENDING: Final = "@pending"


def _join(group: str, member_id: str = "", *protocols: str, **more: Any) -> dict[str, Any]:
    return {
        "group_id": group,
        "session_timeout_ms": 60_000,
        "rebalance_timeout_ms": 60_000,
        "member_id": member_id,
        "protocol_type": "consumer",
        "protocols": [{"name": name, "metadata": b"bytes"} for name in protocols],
        **more,
    }


def _look(pair: Pair, label: str, group: str) -> None:
    for version in (4, 6):
        ask(pair, f"{label}: described", ApiKey.DESCRIBE_GROUPS, version, groups=[group])
    ask(pair, f"{label}: listed", ApiKey.LIST_GROUPS, 5, states_filter=["Empty"], types_filter=[])


def _deleted(pair: Pair, label: str, group: str) -> None:
    for time in ("", " again"):
        ask(pair, f"{label}: deleted{time}", ApiKey.DELETE_GROUPS, 2, groups_names=[group])


def refused_groups(pair: Pair) -> None:
    """A group is there from its first JoinGroup on, also a refused one, unless its session timeout is refused."""
    for label, request in (
        ("no protocol", _join("refused-1")),
        ("no protocol type", _join("refused-2", "", "range", protocol_type="")),
        ("a session of no time", _join("refused-3", "", "range", session_timeout_ms=1)),
        ("a member that isn't known", _join("refused-4", "no", "range")),
        ("both", _join("refused-5", "", session_timeout_ms=1)),
    ):
        ask(pair, label, ApiKey.JOIN_GROUP, 5, **request)
        _look(pair, label, request["group_id"])
        _deleted(pair, label, request["group_id"])


def unnamed_protocols(pair: Pair) -> None:
    """A protocol whose name is empty, which newer versions show as none."""
    for version in (5, 6, 7, 9):
        join = _join(f"unnamed-{version}", "", "", group_instance_id="one")
        ask(pair, f"joined by version {version}", ApiKey.JOIN_GROUP, version, **join)


def pending_members(pair: Pair) -> None:
    """Ids that were given out, and leave or come as others (KIP-394)."""

    def learn(symbol: str, group: str, version: int) -> None:
        request = message(ApiKey.JOIN_GROUP, **_join(group, "", "range"))
        for side in pair.sides:
            answer = side.ask_message(ApiKey.JOIN_GROUP, version, request)
            assert answer.member_id, (side.name, answer)
            side.learn(symbol, answer.member_id)

    def give_id(group: str) -> None:
        learn(_PENDING, group, 4)

    for group, instance in (("pending-1", None), ("pending-2", "instance")):
        give_id(group)
        _look(pair, f"{group} has an id", group)
        member = {"member_id": _PENDING, "group_instance_id": instance}
        ask(pair, f"{instance} leaves", ApiKey.LEAVE_GROUP, 5, group_id=group, members=[member])
        _look(pair, f"{group} without it", group)
        _deleted(pair, group, group)
    give_id("pending-3")
    static = _join("pending-3", _PENDING, "range", group_instance_id="instance")
    ask(pair, "it comes as a static member", ApiKey.JOIN_GROUP, 5, **static)
    give_id("pending-5")
    twice = [{"member_id": _PENDING, "group_instance_id": instance} for instance in ("a", "b")]
    ask(pair, "it leaves twice", ApiKey.LEAVE_GROUP, 5, group_id="pending-5", members=twice)
    learn(_MEMBER, "pending-4", 3)
    give_id("pending-4")
    member = {"member_id": _PENDING, "group_instance_id": None}
    ask(pair, "it leaves beside a member", ApiKey.LEAVE_GROUP, 5, group_id="pending-4", members=[member])
    mine = {"group_id": "pending-4", "member_id": _MEMBER, "generation_id": 1}
    ask(pair, "the member beside one that left", ApiKey.HEARTBEAT, 4, **mine)


def lost_offsets(pair: Pair) -> None:
    """A group that loses its last offset is empty."""
    make(pair, "lost", 2)
    for group, indexes in (("lost-1", (0, 1)), ("lost-2", (0,)), ("lost-3", (7,))):
        committed = {"partition_index": 0, "committed_offset": 1, "committed_metadata": ""}
        topic = {"name": "lost", "partitions": [committed]}
        ask(pair, group, ApiKey.OFFSET_COMMIT, 8, group_id=group, topics=[topic])
        gone = {"name": "lost", "partitions": [{"partition_index": index} for index in indexes]}
        for time in ("", " again"):
            ask(pair, f"{group} loses{time}", ApiKey.OFFSET_DELETE, 0, group_id=group, topics=[gone])
            _look(pair, f"{group}{time}", group)
        nothing: list[Any] = [{"name": name, "partitions": []} for name in ("lost", "no", "")]
        ask(pair, f"{group} loses nothing", ApiKey.OFFSET_DELETE, 0, group_id=group, topics=nothing)
        _deleted(pair, group, group)


#: By name.
GROUP_CASES: Final[dict[str, Callable[[Pair], None]]] = {
    "refused groups": refused_groups,
    "unnamed protocols": unnamed_protocols,
    "pending members": pending_members,
    "lost offsets": lost_offsets,
}
