"""List, describe and delete consumer groups, and set where they go on."""

from __future__ import annotations

__all__ = ("app",)

import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.errors import InvalidRequestError, NotFoundError, shown
from penstock_tools.cli._client import (
    DEFAULT_BOOTSTRAP,
    BootstrapOption,
    JsonOption,
    connect,
    print_json,
    run,
)
from penstock_tools.cli._format import (
    OffsetSpec,
    count_text,
    parse_time_ms,
    parse_topic_partitions,
    print_table,
)

if TYPE_CHECKING:
    from penstock_tools.client.admin import Admin, GroupInfo, GroupListing, TopicPartition

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

GroupArgument = Annotated[str, typer.Argument(metavar="GROUP", help="The group.")]

#: States in which nobody reads, so that offsets may be set from outside.
_IDLE_STATES = ("Empty", "Dead")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a group is in one partition; None: not known or not there."""

    topic: str
    partition: int
    committed: int | None
    end: int | None
    member: str | None

    @property
    def lag(self) -> int | None:
        """Records between the commit and the end."""
        if self.committed is None or self.end is None:
            return None
        return max(0, self.end - self.committed)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line of a reset's plan."""

    topic: str
    partition: int
    committed: int | None
    new: int


@app.command("list")
def list_groups(as_json: JsonOption = False, bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP) -> None:
    """List the groups and their state."""

    async def work() -> list[GroupListing]:
        from penstock_tools.client import Admin

        async with connect(bootstrap_server) as cluster:
            return await Admin(cluster).groups()

    groups = run(work)
    if as_json:
        print_json([dataclasses.asdict(group) for group in groups])
        return
    print_table(
        ("GROUP", "STATE", "PROTOCOL"),
        [(group.group, group.state or "-", group.protocol_type or "-") for group in groups],
    )


@app.command()
def describe(
    name: GroupArgument, as_json: JsonOption = False, bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP
) -> None:
    """Show a group: members and what they read; per partition the committed offset, the end and the lag."""

    async def work() -> tuple[GroupInfo, list[Progress]]:
        from penstock_tools.client import Admin

        async with connect(bootstrap_server) as cluster:
            admin = Admin(cluster)
            group = await admin.group(name)
            return group, await _progress(admin, group)

    group, progress = run(work)
    if as_json:
        document = dataclasses.asdict(group)
        document["offsets"] = [{**dataclasses.asdict(each), "lag": each.lag} for each in progress]
        print_json(document)
        return
    assignor = f", assignor {group.assignor}" if group.assignor else ""
    sys.stdout.write(f"{group.group}: {group.state}, {count_text(len(group.members), 'member')}{assignor}\n")
    sys.stdout.flush()
    if progress:
        sys.stdout.write("\n")
        print_table(
            ("TOPIC", "PARTITION", "COMMITTED", "END", "LAG", "MEMBER"),
            [
                (
                    each.topic,
                    str(each.partition),
                    _cell(each.committed),
                    _cell(each.end),
                    _cell(each.lag),
                    each.member or "-",
                )
                for each in progress
            ],
        )
    if group.members:
        sys.stdout.write("\n")
        sys.stdout.flush()
        print_table(
            ("MEMBER", "INSTANCE", "CLIENT", "HOST", "PARTITIONS"),
            [
                (
                    each.member_id,
                    each.instance_id or "-",
                    each.client_id,
                    each.host,
                    str(len(each.partitions)),
                )
                for each in group.members
            ],
        )


@app.command("reset-offsets")
def reset_offsets(
    name: GroupArgument,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic", metavar="TOPIC[:P,...]", help="Of this topic, or these partitions; may be repeated."
        ),
    ] = None,
    all_topics: Annotated[
        bool, typer.Option("--all-topics", help="Of everything the group has committed.")
    ] = False,
    to_earliest: Annotated[bool, typer.Option("--to-earliest", help="To the first record.")] = False,
    to_latest: Annotated[bool, typer.Option("--to-latest", help="To the end.")] = False,
    to_offset: Annotated[
        int | None, typer.Option("--to-offset", metavar="N", min=0, help="To this offset.")
    ] = None,
    to_timestamp: Annotated[
        str | None,
        typer.Option("--to-timestamp", metavar="TIME", help="To the first record at or after: ms or ISO."),
    ] = None,
    shift_by: Annotated[
        int | None, typer.Option("--shift-by", metavar="N", help="Forward by N, or back if negative.")
    ] = None,
    execute: Annotated[bool, typer.Option("--execute", help="Do it; else the plan is only shown.")] = False,
    as_json: JsonOption = False,
    bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP,
) -> None:
    """Set where a group goes on; its members must be stopped. Without --execute the plan is shown.

    An offset outside of what a partition keeps is moved to its nearest end.
    """
    target = _target(to_earliest, to_latest, to_offset, to_timestamp, shift_by)
    wanted = [parse_topic_partitions(text) for text in topic or ()]
    if bool(wanted) == all_topics:
        raise InvalidRequestError("say which offsets: give --topic, or --all-topics")

    async def work() -> tuple[str, list[Step]]:
        from penstock_tools.client import Admin

        async with connect(bootstrap_server) as cluster:
            admin = Admin(cluster)
            state = await _state(admin, name)
            if execute and state not in _IDLE_STATES:
                raise InvalidRequestError(
                    f"group is in use, stop its members first: group={shown(name)} state={state}"
                )
            plan = await _plan(admin, name, wanted, target)
            if execute and plan:
                await admin.commit_offsets(name, {(step.topic, step.partition): step.new for step in plan})
            return state, plan

    state, plan = run(work)
    if as_json:
        print_json({"group": name, "executed": execute, "plan": [dataclasses.asdict(step) for step in plan]})
        return
    print_table(
        ("TOPIC", "PARTITION", "COMMITTED", "NEW"),
        [(step.topic, str(step.partition), _cell(step.committed), str(step.new)) for step in plan],
    )
    if execute:
        sys.stdout.write(f"set {count_text(len(plan), 'offset')} of group {shown(name)}\n")
    elif state not in _IDLE_STATES:
        sys.stdout.write(
            f"nothing was changed; the group is in use (state {state}), stop its members first\n"
        )
    else:
        sys.stdout.write("nothing was changed; --execute does it\n")


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(metavar="GROUP", help="The groups.")],
    bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP,
) -> None:
    """Delete groups that nobody is in, with their offsets."""

    async def work() -> None:
        from penstock_tools.client import Admin

        async with connect(bootstrap_server) as cluster:
            for name in names:
                await Admin(cluster).delete_group(name)
                sys.stdout.write(f"deleted group {shown(name)}\n")
                sys.stdout.flush()

    run(work)


def _cell(value: int | None) -> str:
    return "-" if value is None else str(value)


def _target(
    to_earliest: bool, to_latest: bool, to_offset: int | None, to_timestamp: str | None, shift_by: int | None
) -> OffsetSpec | int:
    """The one target that was given; an int is a shift."""
    given: list[OffsetSpec | int] = []
    if to_earliest:
        given.append(OffsetSpec("beginning"))
    if to_latest:
        given.append(OffsetSpec("end"))
    if to_offset is not None:
        given.append(OffsetSpec("offset", to_offset))
    if to_timestamp is not None:
        given.append(OffsetSpec("time", parse_time_ms(to_timestamp)))
    if shift_by is not None:
        given.append(shift_by)
    if len(given) != 1:
        raise InvalidRequestError(
            "give exactly one of --to-earliest, --to-latest, --to-offset, --to-timestamp and --shift-by"
        )
    return given[0]


async def _state(admin: Admin, name: str) -> str:
    """The group's state; a group that isn't there is as good as an empty one: a commit makes it."""
    try:
        return (await admin.group(name)).state
    except NotFoundError:
        return "Dead"


async def _progress(admin: Admin, group: GroupInfo) -> list[Progress]:
    """Every partition that the group has committed or reads now."""
    from penstock_tools.client.admin import LATEST

    committed = await admin.committed_offsets(group.group)
    members = {key: member.member_id for member in group.members for key in member.partitions}
    existing = {
        (topic.name, each.partition)
        for topic in await admin.topics()
        for each in topic.partitions
        if each.leader >= 0
    }
    keys = sorted(committed.keys() | members.keys())
    ends = await admin.list_offsets({key: LATEST for key in keys if key in existing})
    return [
        Progress(
            topic=key[0],
            partition=key[1],
            committed=committed[key].offset if key in committed else None,
            end=ends[key].offset if key in ends else None,
            member=members.get(key),
        )
        for key in keys
    ]


async def _plan(
    admin: Admin, name: str, wanted: list[tuple[str, list[int] | None]], target: OffsetSpec | int
) -> list[Step]:
    """The new offsets; ``wanted`` empty: of all that is committed."""
    from penstock_tools.client.admin import EARLIEST, LATEST

    committed = {key: found.offset for key, found in (await admin.committed_offsets(name)).items()}
    keys = sorted(committed) if not wanted else await _partitions(admin, wanted)
    if not keys:
        raise NotFoundError(f"group has committed nothing: group={shown(name)}")
    starts = {
        key: found.offset for key, found in (await admin.list_offsets(dict.fromkeys(keys, EARLIEST))).items()
    }
    ends = {
        key: found.offset for key, found in (await admin.list_offsets(dict.fromkeys(keys, LATEST))).items()
    }
    if isinstance(target, int):
        new = {key: committed[key] + target for key in keys if key in committed}
        missing = [key for key in keys if key not in committed]
        if missing:
            raise InvalidRequestError(
                "a partition without a committed offset can't be shifted: "
                f"group={shown(name)} topic={missing[0][0]} partition={missing[0][1]}"
            )
    elif target.kind == "beginning":
        new = starts
    elif target.kind == "end":
        new = ends
    elif target.kind == "time":
        found = await admin.list_offsets(dict.fromkeys(keys, target.value))
        new = {key: found[key].offset if found[key].offset >= 0 else ends[key] for key in keys}
    else:
        new = dict.fromkeys(keys, target.value)
    return [
        Step(
            topic=key[0],
            partition=key[1],
            committed=committed.get(key),
            new=min(max(new[key], starts[key]), ends[key]),
        )
        for key in keys
    ]


async def _partitions(admin: Admin, wanted: list[tuple[str, list[int] | None]]) -> list[TopicPartition]:
    topics = {topic.name: topic for topic in await admin.topics(sorted({name for name, _ in wanted}))}
    keys: set[TopicPartition] = set()
    for name, numbers in wanted:
        count = len(topics[name].partitions)
        for number in numbers if numbers is not None else range(count):
            if number >= count:
                raise NotFoundError(
                    f"topic has no such partition: topic={name} partition={number} partitions={count}"
                )
            keys.add((name, number))
    return sorted(keys)
