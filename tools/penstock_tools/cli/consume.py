"""Read records from a topic."""

from __future__ import annotations

__all__ = ("app",)

from typing import TYPE_CHECKING, Annotated, Final

import anyio
import typer

from penstock.errors import FencedError, InvalidRequestError, NotFoundError
from penstock_tools.cli._client import DEFAULT_BOOTSTRAP, BootstrapOption, connect, run
from penstock_tools.cli._format import (
    Formatter,
    OffsetSpec,
    compile_format,
    json_record,
    parse_offset,
    write_out,
)

if TYPE_CHECKING:
    from penstock_tools.client import Cluster, Fetched
    from penstock_tools.client.admin import TopicPartition

app = typer.Typer(add_completion=False)

_COMMIT_INTERVAL_S: Final = 1.0
_LEAVE_TIMEOUT_S: Final = 5.0


@app.command()
def consume(
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="The topic.")],
    partition: Annotated[
        list[int] | None,
        typer.Option("--partition", "-p", metavar="N", min=0, help="Only this partition; may be repeated."),
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
        int | None, typer.Option("--count", "-c", metavar="N", min=1, help="Stop after this many records.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help=r"%t topic, %p partition, %o offset, %k key, %s value, %K %S lengths, %T time, %h headers; \n \t.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each record as a line of JSON.")] = False,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            "-G",
            metavar="GROUP",
            help="Join this consumer group, go on where it is, and commit; -o is for partitions without a commit.",
        ),
    ] = None,
    bootstrap_server: BootstrapOption = DEFAULT_BOOTSTRAP,
) -> None:
    """Read records from a topic, first to last and then those to come, one value per line.

    It ends with Ctrl-C or SIGTERM, with --exit or with --count.
    """
    if as_json and template is not None:
        raise InvalidRequestError("--json and --format exclude each other")
    spec = parse_offset(offset)
    if group is None and spec.kind == "stored":
        raise InvalidRequestError("stored offsets are a group's, name it with --group")
    if group is not None and partition:
        raise InvalidRequestError("a group deals out the partitions itself, leave out --partition or --group")
    write = json_record if as_json else compile_format(template if template is not None else r"%s\n")

    printer = _Printer(write, count)

    async def work() -> None:
        async with connect(bootstrap_server) as cluster:
            if group is not None:
                await _GroupReader(cluster, group, topic, spec, printer, exit_at_end).run()
                return
            positions = await _start(cluster, topic, partition, spec)
            await _print_records(cluster, positions, printer, exit_at_end)

    run(work)


class _Printer:
    """Prints records, up to a number of them."""

    def __init__(self, write: Formatter, count: int | None) -> None:
        self._write = write
        self._left = count

    @property
    def is_done(self) -> bool:
        """Whether the number is reached."""
        return self._left == 0

    def print(self, fetched: Fetched) -> int:
        """Print what there is; the offset after the last record that was printed or passed.

        Raises CorruptError where something is damaged; what is before that is printed.
        """
        out: list[bytes] = []
        position = fetched.position
        try:
            for record in fetched.records():
                if self._left == 0:
                    position = record.offset
                    break
                out.append(self._write(fetched.topic, fetched.partition, record))
                if self._left is not None:
                    self._left -= 1
        finally:
            if out:
                write_out(b"".join(out))
        return position


async def _start(
    cluster: Cluster, topic: str, partitions: list[int] | None, spec: OffsetSpec
) -> dict[TopicPartition, int]:
    """Where to begin, by partition."""
    from penstock_tools.client.admin import EARLIEST, LATEST, Admin

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
    cluster: Cluster, positions: dict[TopicPartition, int], printer: _Printer, exit_at_end: bool
) -> None:
    from penstock_tools.client import Consumer

    async with Consumer.open(cluster, positions) as consumer:
        async for fetched in consumer:
            printer.print(fetched)
            if printer.is_done:
                return
            if exit_at_end and fetched.is_at_end:
                consumer.stop([(fetched.topic, fetched.partition)])


class _GroupReader:
    """Reads as a member of a group. What was printed is committed: at least once, in doubt twice."""

    def __init__(
        self, cluster: Cluster, group: str, topic: str, spec: OffsetSpec, printer: _Printer, exit_at_end: bool
    ) -> None:
        from penstock_tools.client import Membership, MembershipSettings

        self.cluster = cluster
        self.group = group
        self.topic = topic
        self.spec = OffsetSpec("beginning") if spec.kind == "stored" else spec
        self.printer = printer
        self.exit_at_end = exit_at_end
        self.membership = Membership(cluster, MembershipSettings(group=group, topics=[topic]))
        self._uncommitted: dict[TopicPartition, int] = {}

    async def run(self) -> None:
        """Join and read, again after each rebalance, until the end that was asked for."""
        await self.cluster.topics([self.topic])
        try:
            while True:
                positions = await self._positions(await self.membership.join())
                if await self._read_generation(positions):
                    return
                await self._commit()
        finally:
            with anyio.move_on_after(_LEAVE_TIMEOUT_S, shield=True):
                await self._commit()
                await self.membership.leave()

    async def _positions(self, assigned: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Where to go on: at the commit, else where --offset says."""
        from penstock_tools.client import Admin

        if not assigned:
            return {}
        committed = await Admin(self.cluster).committed_offsets(self.group, assigned)
        fresh = [partition for topic, partition in assigned if (topic, partition) not in committed]
        positions = await _start(self.cluster, self.topic, fresh, self.spec) if fresh else {}
        return {**positions, **{key: found.offset for key, found in committed.items()}}

    async def _read_generation(self, positions: dict[TopicPartition, int]) -> bool:
        """Read until a rebalance (False), or until all that was asked for is printed (True)."""
        from penstock_tools.client import Consumer

        finished = False
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await self.membership.watch()
                tasks.cancel_scope.cancel()

            async def commit_forever() -> None:
                while True:
                    await anyio.sleep(_COMMIT_INTERVAL_S)
                    await self._commit()

            tasks.start_soon(watch)
            tasks.start_soon(commit_forever)
            if not positions:
                await anyio.sleep_forever()  # more members than partitions: wait for the next rebalance
            async with Consumer.open(self.cluster, positions) as consumer:
                async for fetched in consumer:
                    key = (fetched.topic, fetched.partition)
                    position = self.printer.print(fetched)
                    if position != positions[key]:
                        self._uncommitted[key] = positions[key] = position
                    if self.printer.is_done:
                        break
                    if self.exit_at_end and fetched.is_at_end:
                        consumer.stop([key])
            finished = True
            tasks.cancel_scope.cancel()
        return finished

    async def _commit(self) -> None:
        offsets, self._uncommitted = self._uncommitted, {}
        try:
            await self.membership.commit(offsets)
        except FencedError:
            return  # the group went on without us: whoever has the partition now reads from the last commit
        except BaseException:
            self._uncommitted = {**offsets, **self._uncommitted}
            raise
