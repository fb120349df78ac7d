"""Read records from a topic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli._client import DEFAULT_BOOTSTRAP, BootstrapOption, connect, run
from penstock.cli._format import Formatter, OffsetSpec, compile_format, json_record, parse_offset, write_out
from penstock.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from penstock.client import Cluster, Fetched
    from penstock.client.admin import TopicPartition

__all__ = ("app",)

app = typer.Typer(add_completion=False)


@app.command()
def consume(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="The topic.")],
    partition: Annotated[
        list[int] | None,
        typer.Option("--partition", "-p", min=0, help="Only this partition; may be repeated."),
    ] = None,
    offset: Annotated[
        str,
        typer.Option(
            "--offset",
            "-o",
            metavar="WHERE",
            help="beginning, end, N, -N (N before the end), s@TIME (ms or ISO).",
        ),
    ] = "beginning",
    exit_at_end: Annotated[
        bool, typer.Option("--exit", "-e", help="Stop when every partition is read to its end.")
    ] = False,
    count: Annotated[
        int | None, typer.Option("--count", "-c", min=1, help="Stop after this many records.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            help=r"%t topic, %p partition, %o offset, %k key, %s value, %K %S lengths, %T time, %h headers; \n \t.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each record as a line of JSON.")] = False,
    bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP,
) -> None:
    """Read records from a topic, first to last and then those to come, one value per line.

    It ends with Ctrl-C, with --exit or with --count.
    """
    if as_json and template is not None:
        raise InvalidRequestError("--json and --format exclude each other")
    spec = parse_offset(offset)
    if spec.kind == "stored":
        raise InvalidRequestError("stored offsets are a group's, and this command reads without a group")
    write = json_record if as_json else compile_format(template if template is not None else r"%s\n")

    async def work() -> None:
        async with connect(bootstrap_server) as cluster:
            positions = await _start(cluster, topic, partition, spec)
            await _print_records(cluster, positions, write, count, exit_at_end)

    run(work)


async def _start(
    cluster: Cluster, topic: str, partitions: list[int] | None, spec: OffsetSpec
) -> dict[TopicPartition, int]:
    """Where to begin, by partition."""
    from penstock.client.admin import EARLIEST, LATEST, Admin

    (info,) = await cluster.topics([topic])
    numbers = sorted(set(partitions)) if partitions else range(len(info.partitions))
    for number in numbers:
        if number >= len(info.partitions):
            raise NotFoundError(
                f"topic has no such partition: topic={topic} partition={number} partitions={len(info.partitions)}"
            )
    keys = [(topic, number) for number in numbers]
    if spec.kind == "offset":
        return dict.fromkeys(keys, spec.value)
    admin = Admin(cluster)
    if spec.kind == "beginning":
        starts = await admin.list_offsets(dict.fromkeys(keys, EARLIEST))
        return {key: found.offset for key, found in starts.items()}
    ends = {
        key: found.offset for key, found in (await admin.list_offsets(dict.fromkeys(keys, LATEST))).items()
    }
    if spec.kind == "time":
        found = await admin.list_offsets(dict.fromkeys(keys, spec.value))
        return {key: found[key].offset if found[key].offset >= 0 else ends[key] for key in keys}
    if spec.kind == "from_end":
        starts = await admin.list_offsets(dict.fromkeys(keys, EARLIEST))
        return {key: max(starts[key].offset, ends[key] - spec.value) for key in keys}
    return ends


async def _print_records(
    cluster: Cluster,
    positions: dict[TopicPartition, int],
    write: Formatter,
    count: int | None,
    exit_at_end: bool,
) -> None:
    from penstock.client import Consumer

    left = count
    async with Consumer.open(cluster, positions) as consumer:
        async for fetched in consumer:
            left = _print(fetched, write, left)
            if left == 0:
                return
            if exit_at_end and fetched.is_at_end:
                consumer.stop([(fetched.topic, fetched.partition)])


def _print(fetched: Fetched, write: Formatter, left: int | None) -> int | None:
    """Print up to ``left`` records (all if None); how many are left to print then."""
    out: list[bytes] = []
    for record in fetched.records():
        if left == 0:
            break
        out.append(write(fetched.topic, fetched.partition, record))
        if left is not None:
            left -= 1
    if out:
        write_out(b"".join(out))
    return left
