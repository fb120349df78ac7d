"""Native code: chosen as PENSTOCK_NATIVE says, left out where it can't be built, and the reference's twin."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.depth import examples, how_many
from tests.unit.wire.batches import NOW
from tests.unit.wire.walk_mutants import compare, compare_columns, mutants, varint

from penstock.checksum import combine_in_python
from penstock.errors import ConfigError
from penstock.wire import native_code
from penstock.wire.record_batch import HEADER_BYTES
from penstock.wire.record_columns import Columns, Filled
from penstock.wire.records import build_batch

REPOSITORY = Path(__file__).parents[3]
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")


def compile_native(folder: Path, *flags: str) -> str:
    """As the build does it; says why it doesn't work here."""
    pytest.importorskip("hatchling", reason="the build backend isn't installed here")
    spec = importlib.util.spec_from_file_location("hatch_build", REPOSITORY / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fault: str = module.compile_modules(REPOSITORY, folder, *flags)
    return fault


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the modules as their sources are now, whatever is installed."""
    folder = tmp_path_factory.mktemp("native")
    if fault := compile_native(folder, "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"):
        if "-W" in fault:
            pytest.fail(fault)
        pytest.skip(f"the native modules can't be built here: {fault}")
    return folder


@pytest.fixture(scope="module")
def native(built: Path) -> Any:
    """The one that walks records."""
    return load(built, "_walk")


@pytest.fixture(scope="module")
def buffers(built: Path) -> Any:
    """The one that copies, and combines checksums."""
    return load(built, "_buffers")


def load(folder: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.abi3.so")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the choice ---


def module_of(interface: int) -> ModuleType:
    return SimpleNamespace(INTERFACE=interface, walk=compare)  # type: ignore[return-value]


def missing() -> ModuleType:
    raise ModuleNotFoundError("No module named 'penstock.wire._walk'")


def broken() -> ModuleType:
    raise ImportError("undefined symbol: PyNew")


def test_what_is_there_is_used_unless_it_is_switched_off() -> None:
    good = module_of(native_code.INTERFACE)
    for mode in ("auto", "require"):
        assert native_code.choose(mode, lambda: good) == (good.walk, "")
    walk, reason = native_code.choose("off", lambda: good)
    assert walk is None
    assert "PENSTOCK_NATIVE=off" in reason


def test_without_it_python_is_used_and_require_refuses_to_start(caplog: pytest.LogCaptureFixture) -> None:
    for load, why in ((missing, "wasn't built"), (broken, "undefined symbol")):
        walk, reason = native_code.choose("auto", load)
        assert walk is None
        assert why in reason
        with pytest.raises(ConfigError, match=why):
            native_code.choose("require", load)
    assert not caplog.records, "a machine without a compiler is no fault"


def test_a_stale_module_is_never_used(caplog: pytest.LogCaptureFixture) -> None:
    """An editable install keeps the file that was built when the source changes."""
    stale = module_of(native_code.INTERFACE + 1)
    walk, reason = native_code.choose("auto", lambda: stale)
    assert walk is None
    assert f"interface={native_code.INTERFACE + 1}" in reason
    assert ["install penstock again" in record.getMessage() for record in caplog.records] == [True]
    with pytest.raises(ConfigError, match="interface"):
        native_code.choose("require", lambda: stale)


def test_an_unknown_mode_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^PENSTOCK_NATIVE must be auto, off or require: value=yes$"):
        native_code.choose("yes", missing)


def test_the_commands_say_which_code_runs_and_refuse_an_unknown_mode_in_one_sentence() -> None:
    def run(mode: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PENSTOCK_NATIVE": mode}
        command = [sys.executable, "-m", "penstock", "--version"]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    off = run("off")
    assert (off.returncode, "records are checked in Python (PENSTOCK_NATIVE=off)" in off.stdout) == (0, True)
    bad = run("maybe")
    assert bad.returncode == 2
    assert bad.stderr == "penstock: PENSTOCK_NATIVE must be auto, off or require: value=maybe\n"


# --- the build ---


@pytest.mark.parametrize("how", ["no compiler", "no headers"])
def test_without_compiler_or_headers_the_wheel_is_pure_and_nothing_is_said(tmp_path: Path, how: str) -> None:
    """``pip install .`` works on a bare machine."""
    pytest.importorskip("hatchling", reason="the build backend isn't installed here")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "tests", "*.so", ".mypy_cache", ".hypothesis", "__pycache__"
    )
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    environment = {**os.environ, "PENSTOCK_NATIVE": "auto"}
    if how == "no compiler":
        environment |= {"CC": "/nonexistent/cc", "PATH": "/nonexistent"}
    else:  # a compiler that finds no Python.h
        (source / "kernel/penstock/wire/_walk.c").write_text("#include <no_such_header.h>\n")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(tmp_path),
        str(source),
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    for word in ("error", "warning", "cc", "no_such_header"):
        assert word not in (result.stdout + result.stderr).lower().split()


# --- the twin of the reference ---


def test_mutants_are_walked_as_the_reference_does(native: Any) -> None:
    number = 5 * how_many("native_batches")
    alike = [compare(native.walk, *mutant) for mutant, _ in zip(mutants(7), range(number), strict=False)]
    assert number // 20 < sum(alike) < number // 2, "good ones and bad ones"


FIELD = st.one_of(
    st.sampled_from([b"\x00", b"\x01", b"\x03", b"\x02k", b"\x7e"]),
    st.builds(varint, st.integers(0, 2**66), st.integers(1, 11)),
    st.binary(max_size=3),
)


@given(fields=st.lists(FIELD, min_size=1, max_size=14), count=st.integers(-1, 3), slack=st.integers(-2, 2))
@settings(max_examples=examples(1500), deadline=None)
def test_records_of_odd_numbers_are_walked_as_the_reference_does(
    native: Any, fields: list[bytes], count: int, slack: int
) -> None:
    body = b"".join(fields)
    compare(native.walk, varint(max(0, 2 * (len(body) + slack)), 2) + body, count)


def test_large_batches_are_walked_while_others_run(native: Any) -> None:
    data = bytes(build_batch([(b"k", bytes(100), (), NOW + at) for at in range(12_000)])[HEADER_BYTES:])
    assert len(data) > 2**20
    assert native.walk(data, 0, 12_000) == (0, 11_999, False)
    assert native.walk(data, 0, 11_999) is None


@settings(max_examples=examples(300))
@given(seed=st.integers(0, 2**32), bytes_max=st.sampled_from((0, 60, 400, 2**62)), roomy=st.booleans())
def test_columns_are_those_of_the_reference(native: Any, seed: int, bytes_max: int, roomy: bool) -> None:
    """Of records in order and of hostile bytes: what they take, every byte of each column, and what is refused."""
    for (data, count), _ in zip(mutants(seed), range(5), strict=False):
        if count > 0:
            compare_columns(native, data, count, bytes_max, roomy=roomy)


def test_wrong_arguments_of_columns_are_errors_and_no_crash(native: Any) -> None:
    columns, filled = Columns.of(Filled(1, 1)), Filled()
    good = (b"", 0, 0, 0, 0, True, columns, filled)
    assert native.gather(*good) == filled
    for at, wrong in (
        (0, "text"),
        (1, "0"),
        (6, None),
        (6, columns[:3]),
        (6, (b"",) * 14),
        (7, ()),
        (7, ("",) * 6),
    ):
        with pytest.raises((TypeError, BufferError)):
            native.gather(*good[:at], wrong, *good[at + 1 :])
    for place in ((-1, 0), (9, 0), (0, -1)):
        assert native.gather(b"12345678", *place, 0, 0, True, columns, filled) is None
        assert native.measure(b"12345678", *place, -1, 10) is None
    assert native.gather(b"", 0, 0, 0, 0, True, columns, Filled(records=-1)) is None
    with pytest.raises(TypeError):
        native.measure(b"", 0, 0)


@pytest.mark.parametrize("start", [-1, 8, 2**62, -(2**62)])
def test_a_start_outside_the_buffer_reads_nothing(native: Any, start: int) -> None:
    assert native.walk(b"\x0c\x00\x00\x00\x01\x01\x00", start, 1) is None


def test_wrong_arguments_are_errors_and_no_crash(native: Any) -> None:
    wrong: list[tuple[Any, ...]] = [
        (),
        (b"",),
        (b"", 0),
        (b"", 0, 1, 2),
        ("text", 0, 1),
        (b"", "0", 1),
        (None, 0, 1),
    ]
    for arguments in wrong:
        with pytest.raises(TypeError):
            native.walk(*arguments)
    for arguments in ((b"", 2**70, 1), (b"", 0, 2**70)):
        with pytest.raises(OverflowError):
            native.walk(*arguments)
    with pytest.raises(BufferError):
        native.walk(memoryview(bytes(20))[::2], 0, 1)


CHECKSUMS = st.integers(0, 2**32 - 1)


@given(first=CHECKSUMS, second=CHECKSUMS, size=st.integers(0, 2**63 - 1) | st.integers(0, 2**20))
def test_checksums_combine_as_the_reference_does(buffers: Any, first: int, second: int, size: int) -> None:
    assert buffers.combine(first, second, size) == combine_in_python(first, second, size)


def test_wrong_arguments_of_buffers_are_errors_that_copy_nothing(buffers: Any) -> None:
    for numbers in ((2**32, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 2**64)):
        with pytest.raises(OverflowError):
            buffers.combine(*numbers)
    target = bytearray(8)
    for place in (-1, 6, 9, 2**62):
        with pytest.raises(ValueError, match="don't fit"):
            buffers.copy(target, place, [b"ab", b"c"])
    wrong: list[tuple[Any, ...]] = [
        (),
        (target, 0),
        (target, 0, (b"a",)),
        (target, 0, ["a"]),
        ("text", 0, []),
        (target, "0", []),
    ]
    for arguments in wrong:
        with pytest.raises(TypeError):
            buffers.copy(*arguments)
    for arguments in ((bytes(8), 0, [b"a"]), (target, 0, [b"a", memoryview(b"abcd")[::2]])):
        with pytest.raises(BufferError):
            buffers.copy(*arguments)
    assert target == bytes(8)
    target.extend(b"still mine")  # nobody holds it any more


@given(st.lists(st.integers(0, 300), max_size=30), st.integers(0, 50), st.integers(0, 20))
def test_buffers_are_copied_behind_each_other_and_nothing_beside_them(
    buffers: Any, sizes: list[int], position: int, behind: int
) -> None:
    parts = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    end = position + sum(sizes)
    target = bytearray(end + behind)
    assert buffers.copy(memoryview(target), position, [memoryview(part) for part in parts]) == end
    assert target == bytes(position) + b"".join(parts) + bytes(behind)


def test_many_bytes_are_copied_while_others_run(buffers: Any) -> None:
    parts = [bytes([number]) * 2**16 for number in range(40)]
    target = bytearray(1 + 40 * 2**16)
    assert buffers.copy(target, 1, parts) == len(target)
    assert target == b"\0" + b"".join(parts)


def test_mutants_are_walked_without_a_report_from_sanitizers(tmp_path: Path) -> None:
    """Hostile bytes: no read out of bounds, no undefined arithmetic."""
    if fault := compile_native(tmp_path, *SANITIZERS):
        pytest.skip(f"no sanitizers here: {fault}")
    compiler, count = os.environ.get("CC") or "cc", how_many("native_batches")
    runtimes = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    if not all(Path(runtime).is_absolute() for runtime in runtimes):
        pytest.skip(f"the sanitizers' runtime isn't installed here: {runtimes}")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",  # each buffer by itself, with red zones around it
    }
    command = [sys.executable, "-m", "tests.unit.wire.walk_mutants", str(tmp_path), str(count), "3"]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{count} walked alike" in result.stdout
