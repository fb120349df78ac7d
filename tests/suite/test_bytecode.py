"""What was compiled when a package was installed is used by a run that keeps its own compiled modules elsewhere."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import sys
from pathlib import Path

import pytest
from tests.bytecode import lend_compiled


def test_compiled_modules_are_lent_and_what_is_compiled_anew_goes_to_the_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed, run = tmp_path / "site-packages", tmp_path / "bytecode"
    source = installed / "lent_to_a_run.py"
    installed.mkdir()
    source.write_text("SAYS = 'old'\n")
    monkeypatch.setattr(sys, "pycache_prefix", None)
    beside = Path(importlib.util.cache_from_source(str(source)))
    py_compile.compile(str(source), doraise=True)
    was = beside.read_bytes()

    lend_compiled(run, [str(installed), str(installed)])
    monkeypatch.setattr(sys, "pycache_prefix", str(run))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    place = Path(importlib.util.cache_from_source(str(source)))
    assert place.is_relative_to(run)
    assert place.read_bytes() == was
    assert _imported(source) == "old"
    assert place.is_symlink()

    source.write_text("SAYS = 'new'\n")
    os.utime(source, (1, 1))
    assert _imported(source) == "new"
    assert not place.is_symlink()
    assert place.read_bytes() != was
    assert beside.read_bytes() == was


def _imported(source: Path) -> str:
    spec = importlib.util.spec_from_file_location(source.stem, source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    said: str = module.SAYS
    return said
