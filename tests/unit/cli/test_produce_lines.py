"""How `penstock produce` turns its input into records."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.patience import HANG_S

from penstock.errors import InvalidRequestError
from penstock_tools.cli import main
from penstock_tools.cli._client import read_lines
from penstock_tools.cli._format import parse_key_delimiter
from penstock_tools.cli.produce import Lines


async def collect(fd: int) -> list[bytes]:
    return [line async for lines in read_lines(fd) for line in lines]


def test_a_line_is_a_value() -> None:
    assert Lines().record(b"a:b") == (None, b"a:b")


def test_a_delimiter_splits_key_and_value_once() -> None:
    lines = Lines(key_delimiter=b"::")
    assert lines.record(b"k::v::w") == (b"k", b"v::w")
    assert lines.record(b"no key") == (None, b"no key")
    assert lines.record(b"::v") == (b"", b"v")
    assert lines.record(b"k::") == (b"k", b"")


def test_tombstones_are_null_only_when_asked_for() -> None:
    lines = Lines(key_delimiter=b":", empty_is_null=True)
    assert lines.record(b"k:") == (b"k", None)
    assert lines.record(b":") == (None, None)
    assert lines.record(b"") == (None, None)


@pytest.mark.parametrize(
    ("text", "expected"), [(":", b":"), (r"\t", b"\t"), ("%", b"%"), (r"\x1f", b"\x1f"), ("ab", b"ab")]
)
def test_key_delimiters(text: str, expected: bytes) -> None:
    assert parse_key_delimiter(text) == expected


def test_an_empty_key_delimiter_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at least one character"):
        parse_key_delimiter("")


@given(
    st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=20), st.booleans()
)
def test_lines_of_a_pipe_come_out_as_they_went_in(lines: list[bytes], ends: bool) -> None:
    text = b"\n".join(lines) + (b"\n" if ends and lines else b"")
    read_fd, write_fd = os.pipe()
    try:
        os.write(write_fd, text)
        os.close(write_fd)
        found = anyio.run(collect, read_fd)
    finally:
        os.close(read_fd)
    expected = text.split(b"\n")
    assert found == (expected[:-1] if expected[-1] == b"" else expected)


def test_a_line_larger_than_a_read_is_put_together() -> None:
    line = b"x" * 1_000_000
    read_fd, write_fd = os.pipe()
    with os.fdopen(write_fd, "wb") as writer:

        def feed() -> None:
            writer.write(line + b"\nlast")
            writer.close()

        feeder = threading.Thread(target=feed)
        feeder.start()
        try:
            assert anyio.run(collect, read_fd) == [line, b"last"]
        finally:
            feeder.join()
            os.close(read_fd)


def test_reading_a_pipe_that_stays_open_can_be_cancelled() -> None:
    read_fd, write_fd = os.pipe()

    async def read_a_little() -> list[bytes]:
        found: list[bytes] = []
        with anyio.CancelScope() as scope:
            async for lines in read_lines(read_fd):
                found += lines
                scope.cancel()
        return found

    try:
        os.write(write_fd, b"one\ntwo\nthr")
        assert anyio.run(read_a_little) == [b"one", b"two"]
    finally:
        os.close(read_fd)
        os.close(write_fd)


def test_the_null_device_is_an_empty_input() -> None:
    with open(os.devnull, "rb") as null:
        assert anyio.run(collect, null.fileno()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--acks", "2"], "--acks is all, 1 or 0"),
        (["-z", "rar"], "no such codec"),
        (["--partitioner", "random"], "--partitioner is one of"),
        (["-H", "x"], "--header wants name=value"),
        (["-l", "/no/such/file"], "file can't be read"),
        (["-l", os.devnull, "-b", "nonsense:port"], "not an address"),
    ],
)
def test_wrong_options_are_one_sentence_and_exit_code_2(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["produce", "t", *arguments]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1


def test_help_imports_neither_broker_nor_client() -> None:
    code = (
        "import sys\n"
        "from penstock_tools.cli import main\n"
        "assert main(['produce', '--help']) == 0\n"
        "print([name for name in sys.modules if name.startswith(('penstock.broker', 'penstock_tools.client', "
        "'penstock.wire'))], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
