"""What isn't a broker's own stays as it is when it starts, and what is its own nobody else reads: real processes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import ServeFactory
from tests.integration.ledger import create_topic
from tests.integration.test_faults import one_sentence, run_serve


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def snapshot(directory: Path) -> dict[str, bytes | str]:
    """All files and links below ``directory``, but for the data directory's own."""
    found: dict[str, bytes | str] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            found[str(path)] = str(path.readlink())
        elif path.is_file() and path.name != "penstock.lock":
            found[str(path)] = path.read_bytes()
    return found


@pytest.mark.parametrize("kind", ["small file", "large file", "directory", "link", "dangling link", "pipe"])
def test_wal_path_on_what_is_no_wal_is_one_sentence_and_nothing_is_changed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "wal"
    match kind:
        case "small file":
            path.write_bytes(b"a user's notes\n")
        case "large file":
            path.write_bytes(b"a user's notes\n" * 10_000)
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            if kind == "link":
                (tmp_path / "target").write_bytes(b"")
            path.symlink_to(tmp_path / "target")
    before = snapshot(tmp_path)
    code, output = run_serve(tmp_path / "data", f"wal.path={path}")
    assert code == 2, output
    assert one_sentence(output)
    assert f"path={path}" in output
    after = snapshot(tmp_path)
    assert {name: after[name] for name in before} == before
    assert not (tmp_path / "target").exists() or (tmp_path / "target").read_bytes() == b""


def test_a_lock_that_is_a_link_is_one_sentence_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/penstock.lock").symlink_to(tmp_path / "precious")
    code, output = run_serve(tmp_path / "data")
    assert code == 2, output
    assert one_sentence(output)
    assert f"path={tmp_path}/data/penstock.lock" in output
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["penstock.lock"]


@pytest.mark.usefixtures("no_umask")
@pytest.mark.parametrize(("access", "directory", "file"), [("owner", 0o700, 0o600), ("group", 0o750, 0o640)])
def test_all_that_a_broker_makes_is_as_private_as_configured(
    serve: ServeFactory, access: str, directory: int, file: int
) -> None:
    broker = serve(f"broker.data_access={access}")
    create_topic(broker.bootstrap_servers)
    assert broker.terminate() == 0
    paths = [broker.data_dir, *broker.data_dir.rglob("*")]
    modes = {str(path): (path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths}
    assert len(modes) > 6
    assert {
        name: mode for name, (is_dir, mode) in modes.items() if mode != (directory if is_dir else file)
    } == {}
    assert "can be read by others" not in broker.output
