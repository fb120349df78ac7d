"""A lake compactor that writes JSON lines: a folder per table, and a manifest that says which files are in it."""

from __future__ import annotations

__all__ = ("JsonLinesCompactor",)

import base64
import fcntl
import json
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
from pydantic import Field

from penstock.errors import ConflictError, FencedError, InvalidRequestError, NotFoundError, UnavailableError
from penstock.files import Access, create_file, make_directories
from penstock.hookspecs import hookimpl
from penstock.spi import Settings
from penstock.spi.lake import (
    LakeCommit,
    LakeCompactor,
    LakeCompactorCapabilities,
    LakeCompactorSpec,
    LakeMaintenance,
    LakePolicies,
    LakeRecord,
    LakeRecords,
    LakeTopic,
    LakeTopicConfig,
    LakeWritten,
)
from penstock.spi.plugin import Services
from penstock.threads import run_in_thread

_CAPABILITIES = LakeCompactorCapabilities(maintains=True)


class JsonLinesCompactor:
    """A folder of tables, and ``step``, which is called with each thing that was done on the disk."""

    def __init__(self, folder: Path, access: Access) -> None:
        self.folder = folder
        self.access = access
        self.step: Callable[[str], None] = lambda name: None

    @property
    def capabilities(self) -> LakeCompactorCapabilities:
        return _CAPABILITIES

    @property
    def location(self) -> str:
        return str(self.folder)

    @asynccontextmanager
    async def open_table(self, topic: LakeTopic, epoch: int) -> AsyncIterator[JsonLinesTable]:
        table = self._table(topic, epoch)
        await run_in_thread(table.open)
        try:
            yield table
        finally:
            if epoch:
                with anyio.CancelScope(shield=True):
                    await run_in_thread(table.drop_uncommitted)

    def _table(self, topic: LakeTopic, epoch: int) -> JsonLinesTable:
        return JsonLinesTable(self, topic, epoch)

    async def tables(self) -> Sequence[str]:
        return sorted(path.parent.name for path in self.folder.glob("*/manifest.json"))


class JsonLinesTable:
    """Files of rows; those that the manifest names are in the table. The manifest is replaced whole, under a lock."""

    def __init__(self, compactor: JsonLinesCompactor, topic: LakeTopic, epoch: int) -> None:
        self._topic = topic
        self._epoch = epoch
        self._access = compactor.access
        self._step = compactor.step
        self._folder = compactor.folder / (topic.table or topic.name)
        #: The version that this opening goes on from, and what was written since.
        self._version = 0
        self._files: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        return self._folder.name

    # -- what is on the disk ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Claim the table, and remove the files that nobody committed; with epoch 0 only look."""
        if not self._epoch:
            manifest = self._read()
            self._check_topic(manifest)
            self._version = manifest["version"]
            return
        with self._writing():
            make_directories(self._folder, self._access)
            with self._locked():
                try:
                    manifest = self._read()
                except NotFoundError:
                    manifest = {"topic_id": self._topic.topic_id, "version": 0, "positions": {}, "files": []}
                self._check(manifest)
                self._version = manifest["version"]
                self._replace({**manifest, "epoch": self._epoch})
                self._step("claimed")
                self._remove_unknown(manifest)

    def _check_topic(self, manifest: Mapping[str, Any]) -> None:
        if manifest["topic_id"] != self._topic.topic_id:
            raise ConflictError(
                f"the table is of another topic that had this name, move its folder away: table={self.name} "
                f"topic_id={manifest['topic_id']} asked={self._topic.topic_id}"
            )

    def _check(self, manifest: Mapping[str, Any]) -> None:
        self._check_topic(manifest)
        if manifest.get("epoch", 0) > self._epoch:
            raise FencedError(
                f"another owner has opened the table since: table={self.name} epoch={self._epoch} "
                f"newer={manifest['epoch']}"
            )

    def _read(self) -> dict[str, Any]:
        try:
            manifest: dict[str, Any] = json.loads((self._folder / "manifest.json").read_bytes())
        except FileNotFoundError:
            raise NotFoundError(f"there is no such table: table={self.name}") from None
        return manifest

    def _replace(self, manifest: Mapping[str, Any]) -> None:
        path = self._folder / f"manifest-{secrets.token_hex(4)}.tmp"
        self._create(path, json.dumps(manifest).encode())
        os.replace(path, self._folder / "manifest.json")
        self._sync_folder()

    def _create(self, path: Path, data: bytes) -> None:
        with os.fdopen(create_file(path, os.O_WRONLY, self._access), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _sync_folder(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _remove_unknown(self, manifest: Mapping[str, Any]) -> None:
        known = {file["name"] for file in manifest["files"]} | {"manifest.json", "lock"}
        for path in self._folder.iterdir():
            if path.name not in known:
                path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone with the manifest, among all processes of this host."""
        fd = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT, self._access.file_mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UnavailableError(f"the table can't be written: table={self.name} reason={error}") from error

    # -- the contract ----------------------------------------------------------------------------------------

    async def positions(self) -> Mapping[int, int]:
        manifest = await run_in_thread(self._read)
        if self._epoch:
            self._check(manifest)
        return {int(partition): offset for partition, offset in manifest["positions"].items()}

    async def write(self, records: LakeRecords) -> LakeWritten:
        if not len(records):
            return LakeWritten(rows=0)
        return await run_in_thread(self._write, records)

    def _write(self, records: LakeRecords) -> LakeWritten:
        lines: list[str] = []
        rejected = 0
        reason = ""
        for row in records.rows():
            try:
                lines.append(json.dumps(self._row(row)))
            except ValueError as error:
                reason = f"a value isn't JSON: partition={row.partition} offset={row.offset} reason={error}"
                if self._topic.configs["errors"] == "stop":
                    raise InvalidRequestError(reason) from error
                rejected += 1
                lines.append(json.dumps(_raw(row) | {"reason": reason}))
        name = (
            f"{self._epoch:020}-{records.partition}-{records.start_offset:020}-{secrets.token_hex(4)}.jsonl"
        )
        data = "".join(f"{line}\n" for line in lines).encode()
        with self._writing():
            self._create(self._folder / name, data)
        self._files.append({"name": name, "rows": len(lines), "bytes": len(data)})
        self._step("file written")
        counts = {"dead_letter": rejected} if rejected else {}
        return LakeWritten(rows=len(records) - rejected, rejected=counts, reason=reason)

    def _row(self, row: LakeRecord) -> dict[str, Any]:
        raw = _raw(row)
        if self._topic.configs["format"] == "json" and row.value is not None:
            raw["value"] = json.loads(row.value)
        return raw

    async def commit(self, positions: Mapping[int, int]) -> LakeCommit:
        return await run_in_thread(self._commit, dict(positions))

    def _commit(self, positions: Mapping[int, int]) -> LakeCommit:
        with self._writing(), self._locked():
            manifest = self._current()
            files, self._files = self._files, []
            self._version += 1
            self._replace(
                {
                    **manifest,
                    "version": self._version,
                    "positions": manifest["positions"]
                    | {str(key): value for key, value in positions.items()},
                    "files": manifest["files"] + files,
                }
            )
            self._step("manifest replaced")
        return LakeCommit(
            version=str(self._version),
            files=len(files),
            rows=sum(file["rows"] for file in files),
            size_bytes=sum(file["bytes"] for file in files),
        )

    def _current(self) -> dict[str, Any]:
        manifest = self._read()
        self._check(manifest)
        if manifest["version"] != self._version:
            raise ConflictError(
                f"somebody else changed the table: table={self.name} version={manifest['version']} "
                f"expected={self._version}"
            )
        return manifest

    def drop_uncommitted(self) -> None:
        """Remove what was written and not committed."""
        for file in self._files:
            (self._folder / file["name"]).unlink(missing_ok=True)

    async def maintain(self, *, dry_run: bool = False) -> LakeMaintenance:
        return await run_in_thread(self._maintain, dry_run)

    def _maintain(self, dry_run: bool) -> LakeMaintenance:
        """Make one file of all."""
        manifest = self._read()
        files = manifest["files"] if len(manifest["files"]) > 1 else []
        if files and not dry_run:
            with self._writing(), self._locked():
                manifest = self._current()
                data = b"".join((self._folder / file["name"]).read_bytes() for file in manifest["files"])
                name = f"{self._epoch:020}-all-{secrets.token_hex(4)}.jsonl"
                self._create(self._folder / name, data)
                self._step("files joined")
                rows = sum(file["rows"] for file in manifest["files"])
                self._version += 1
                joined = {"name": name, "rows": rows, "bytes": len(data)}
                manifest |= {"version": self._version, "files": [joined]}
                self._replace(manifest)
                self._step("manifest replaced")
                self._remove_unknown(manifest)
        figures = {"data files joined": len(files)}
        return LakeMaintenance(figures=figures, saved_bytes=0, dry_run=dry_run)

    async def describe(self) -> Mapping[str, str]:
        manifest = await run_in_thread(self._read)
        return {
            "place": str(self._folder),
            "files": str(len(manifest["files"])),
            "rows": str(sum(file["rows"] for file in manifest["files"])),
            "version": str(manifest["version"]),
        }

    async def rows(self) -> AsyncIterator[LakeRecord]:
        for file in self._read()["files"]:
            for line in (self._folder / file["name"]).read_text().splitlines():
                yield _record(json.loads(line))


def _text(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode()


def _data(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def _raw(row: LakeRecord) -> dict[str, Any]:
    return {
        "partition": row.partition,
        "offset": row.offset,
        "timestamp": row.timestamp,
        "key": _text(row.key),
        "value": _text(row.value),
        "headers": [[_text(name), _text(value)] for name, value in row.headers],
    }


def _record(raw: Mapping[str, Any]) -> LakeRecord:
    headers = tuple((_data(name) or b"", _data(value)) for name, value in raw["headers"])
    return LakeRecord(
        raw["partition"], raw["offset"], raw["timestamp"], _data(raw["key"]), _data(raw["value"]), headers
    )


class LakeCompactorSettings(Settings):
    """Where tables are."""

    path: str = Field(default="lake", description="The folder; relative paths start at `broker.data_dir`.")


@asynccontextmanager
async def _open(settings: LakeCompactorSettings, services: Services) -> AsyncIterator[JsonLinesCompactor]:
    yield JsonLinesCompactor(services.data_dir / settings.path, services.access)


def _watch(compactor: LakeCompactor, step: Callable[[str], None]) -> None:
    assert isinstance(compactor, JsonLinesCompactor)
    compactor.step = step


def _fault_of(configs: Mapping[str, str]) -> str:
    if configs["format"] == "raw" and configs["errors"] != "stop":
        return "every value is raw, so none can be sent to the dead letters: set format to json, or errors to stop"
    return ""


@hookimpl
def penstock_register_lake_compactor() -> LakeCompactorSpec[LakeCompactorSettings]:
    """Register the lake compactor of JSON lines."""
    return LakeCompactorSpec(
        name="reference",
        summary="Tables of JSON lines, in a folder each.",
        settings=LakeCompactorSettings,
        capabilities=_CAPABILITIES,
        open=_open,
        topic_configs=(
            LakeTopicConfig(
                name="format",
                default="raw",
                doc="What a value is: bytes as they are (in base64), or JSON.",
                choices=("raw", "json"),
            ),
            LakeTopicConfig(
                name="errors",
                default="stop",
                doc="What becomes of a value that isn't JSON: the table stops, or a row has it raw, and the reason.",
                choices=("stop", "dead_letter"),
            ),
        ),
        fault_of=_fault_of,
        raw_configs={"format": "raw", "errors": "stop"},
        policies=LakePolicies(
            configs={
                "stop": {"format": "json", "errors": "stop"},
                "dead_letter": {"format": "json", "errors": "dead_letter"},
            },
            good=b'{"n": 1}',
            bad=b'{"n": ',
        ),
        watch=_watch,
    )
