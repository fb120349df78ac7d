"""Create, list, describe, change and delete topics."""

from __future__ import annotations

__all__ = ("app",)

import base64
import dataclasses
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.errors import AlreadyExistsError, InvalidRequestError
from penstock.units import format_size
from penstock_tools.cli._client import (
    DEFAULT_BOOTSTRAP,
    BootstrapOption,
    JsonOption,
    connect,
    print_json,
    run,
)
from penstock_tools.cli._format import count_text, parse_topic_configs, print_table

if TYPE_CHECKING:
    from penstock_tools.client.admin import Admin, ConfigEntry, ListedOffset, TopicPartition
    from penstock_tools.client.cluster import TopicInfo

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)

NameArgument = Annotated[str, typer.Argument(metavar="TOPIC", help="The topic.")]
ConfigOption = Annotated[
    list[str] | None,
    typer.Option(
        "--config", metavar="KEY=VALUE", help="Set one topic config, like retention.ms=7d; may be repeated."
    ),
]


@app.command()
def create(
    name: NameArgument,
    partitions: Annotated[
        int | None,
        typer.Option(
            "--partitions", "-P", metavar="N", min=1, help="Number of partitions; else the broker's default."
        ),
    ] = None,
    config: ConfigOption = None,
    if_not_exists: Annotated[
        bool, typer.Option("--if-not-exists", help="Be content if it is there already, as it is.")
    ] = False,
    replication_factor: Annotated[str | None, typer.Option("--replication-factor", hidden=True)] = None,
    bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP,
) -> None:
    """Create a topic."""
    if replication_factor is not None:
        raise InvalidRequestError(
            "--replication-factor isn't taken, leave it out: the broker decides, and where that is penstock the "
            f"object store keeps the copies: value={replication_factor}"
        )
    configs = parse_topic_configs(config or (), "--config")

    async def work() -> None:
        from penstock_tools.client import Admin

        async with connect(bootstrap_server) as cluster:
            try:
                count = await Admin(cluster).create_topic(name, partitions=partitions or -1, configs=configs)
            except AlreadyExistsError:
                if not if_not_exists:
                    raise
                _say(f"topic {name} is there already")
                return
        _say(f"created topic {name}" + (f" with {count_text(count, 'partition')}" if count > 0 else ""))

    run(work)


@app.command("list")
def list_topics(
    as_json: JsonOption = False,
    internal: Annotated[bool, typer.Option("--internal", help="Internal topics too.")] = False,
    bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP,
) -> None:
    """List the topics."""

    async def work() -> list[TopicInfo]:
        from penstock_tools.client import Admin

        async with connect(bootstrap_server) as cluster:
            return await Admin(cluster).topics()

    topics = [topic for topic in run(work) if internal or not topic.is_internal]
    if as_json:
        print_json(
            [
                {
                    "name": topic.name,
                    "id": _id_text(topic),
                    "partitions": len(topic.partitions),
                    "internal": topic.is_internal,
                }
                for topic in topics
            ]
        )
        return
    print_table(("NAME", "PARTITIONS"), [(topic.name, str(len(topic.partitions))) for topic in topics])


@app.command()
def describe(
    name: NameArgument,
    as_json: JsonOption = False,
    all_configs: Annotated[
        bool, typer.Option("--all-configs", help="Show also configs that are at their default.")
    ] = False,
    bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP,
) -> None:
    """Show a topic: partitions with leader, first and next offset, and size; configs with where they come from."""

    async def work() -> tuple[TopicInfo, _Offsets, _Offsets, dict[int, int], list[ConfigEntry]]:
        from penstock_tools.client import Admin
        from penstock_tools.client.admin import EARLIEST, LATEST

        async with connect(bootstrap_server) as cluster:
            admin = Admin(cluster)
            (topic,) = await admin.topics([name])
            starts = await _offsets(admin, topic, EARLIEST)
            ends = await _offsets(admin, topic, LATEST)
            return topic, starts, ends, await _sizes(admin, topic), await admin.topic_configs(name)

    topic, starts, ends, sizes, configs = run(work)
    partitions = [
        {
            "partition": each.partition,
            "leader": each.leader if each.leader >= 0 else None,
            "replicas": each.replicas,
            "in_sync": each.in_sync,
            "start_offset": _offset(starts, topic, each.partition),
            "end_offset": _offset(ends, topic, each.partition),
            "size_bytes": sizes.get(each.partition),
        }
        for each in topic.partitions
    ]
    if as_json:
        print_json(
            {
                "name": topic.name,
                "id": _id_text(topic),
                "internal": topic.is_internal,
                "size_bytes": sum(sizes.values()) if sizes else None,
                "partitions": partitions,
                "configs": [dataclasses.asdict(entry) for entry in configs],
            }
        )
        return
    _print_description(topic, partitions, configs, all_configs)


_Offsets = dict["TopicPartition", "ListedOffset"]


def _print_description(
    topic: TopicInfo, partitions: list[dict[str, Any]], configs: list[ConfigEntry], all_configs: bool
) -> None:
    sys.stdout.write(
        f"{topic.name}: {count_text(len(topic.partitions), 'partition')}, {_total_text(partitions)}"
        f"id {_id_text(topic)}{', internal' if topic.is_internal else ''}\n\n"
    )
    sys.stdout.flush()
    columns = ("partition", "leader", "start_offset", "end_offset")
    print_table(
        ("PARTITION", "LEADER", "START", "END", "SIZE"),
        [
            (
                *("-" if partition[column] is None else str(partition[column]) for column in columns),
                _size_text(partition["size_bytes"]),
            )
            for partition in partitions
        ],
    )
    shown = [entry for entry in configs if all_configs or entry.source != "default"]
    sys.stdout.write("\n")
    if shown:
        print_table(
            ("CONFIG", "VALUE", "SOURCE"),
            [(entry.name, "-" if entry.value is None else entry.value, entry.source) for entry in shown],
        )
    if len(shown) < len(configs):
        sys.stdout.write(
            f"at their default: {count_text(len(configs) - len(shown), 'config')}; --all-configs shows them\n"
        )


@app.command()
def delete(
    names: Annotated[list[str], typer.Argument(metavar="TOPIC", help="The topics.")],
    bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP,
) -> None:
    """Delete topics and all their records."""

    async def work() -> None:
        from penstock_tools.client import Admin

        async with connect(bootstrap_server) as cluster:
            for name in names:
                await Admin(cluster).delete_topic(name)
                _say(f"deleted topic {name}")

    run(work)


@app.command()
def alter(
    name: NameArgument,
    partitions: Annotated[
        int | None,
        typer.Option(
            "--partitions", "-P", metavar="N", min=1, help="Raise the number of partitions to this."
        ),
    ] = None,
    config: ConfigOption = None,
    delete_config: Annotated[
        list[str] | None,
        typer.Option(
            "--delete-config", metavar="KEY", help="Return one config to its default; may be repeated."
        ),
    ] = None,
    bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP,
) -> None:
    """Change a topic's configs, or add partitions."""
    set_to = parse_topic_configs(config or (), "--config")
    both = sorted(set_to.keys() & set(delete_config or ()))
    if both:
        raise InvalidRequestError(f"a config can't be set and deleted at once: config={both[0]}")
    if not set_to and not delete_config and partitions is None:
        raise InvalidRequestError("nothing to change, give --partitions, --config or --delete-config")

    async def work() -> None:
        from penstock_tools.client import Admin

        async with connect(bootstrap_server) as cluster:
            admin = Admin(cluster)
            if set_to or delete_config:
                await admin.alter_topic_configs(name, set_to=set_to, delete=delete_config or ())
                _say(f"changed the configs of topic {name}")
            if partitions is not None:
                await admin.create_partitions(name, partitions)
                _say(f"topic {name} has {count_text(partitions, 'partition')} now")

    run(work)


@app.command()
def delete_records(
    name: NameArgument,
    partition: Annotated[int, typer.Option("--partition", "-p", metavar="N", min=0, help="The partition.")],
    before: Annotated[
        int, typer.Option("--before", metavar="OFFSET", min=-1, help="The first offset to keep; -1: the end.")
    ],
    bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP,
) -> None:
    """Delete the oldest records of a partition; one that is offline, since its data are damaged, may come back."""

    async def work() -> None:
        from penstock_tools.client import Admin

        async with connect(bootstrap_server) as cluster:
            starts = await Admin(cluster).delete_records({(name, partition): before})
            _say(f"{name}-{partition} starts at offset {starts[name, partition]} now")

    run(work)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _id_text(topic: TopicInfo) -> str:
    """A topic id as Kafka's tools write it."""
    return base64.urlsafe_b64encode(topic.topic_id).decode().rstrip("=")


def _size_text(size: int | None) -> str:
    return "-" if size is None else format_size(size)


def _total_text(partitions: list[dict[str, Any]]) -> str:
    sizes = [partition["size_bytes"] for partition in partitions if partition["size_bytes"] is not None]
    return f"{format_size(sum(sizes))}, " if sizes else ""


async def _sizes(admin: Admin, topic: TopicInfo) -> dict[int, int]:
    """Bytes by partition; none from a broker that doesn't tell, or not to us."""
    try:
        return await admin.partition_sizes(topic)
    except InvalidRequestError:
        return {}


async def _offsets(admin: Admin, topic: TopicInfo, timestamp: int) -> _Offsets:
    """Of the partitions that have a leader."""
    return await admin.list_offsets(
        {(topic.name, each.partition): timestamp for each in topic.partitions if each.leader >= 0}
    )


def _offset(offsets: _Offsets, topic: TopicInfo, partition: int) -> int | None:
    found = offsets.get((topic.name, partition))
    return found.offset if found is not None else None
