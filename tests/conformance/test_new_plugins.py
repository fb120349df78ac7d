"""What ``penstock plugin new`` writes works as it is: its own tests pass, and with them level 1 of its contract."""

from __future__ import annotations

import pytest
from tests.conformance.new_packages import results_of, tell_python

from penstock_tools.scaffold import KINDS, write_package


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("packages")
    for kind in KINDS:
        write_package(kind, f"my_{kind}", folder / kind)
        tell_python(folder / kind)
    return results_of([folder / kind for kind in KINDS])


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_its_tests_and_level_1(kind: str, outcomes: dict[str, str]) -> None:
    mine = {name: fault for name, fault in outcomes.items() if name.startswith(f"{kind}.tests.")}
    assert [f"{name}: {fault}" for name, fault in mine.items() if fault] == []
    assert len(mine) >= 2
    of_contract = f"{kind}.tests.test_conformance.test_level_1_of_the_contract_holds"
    assert (of_contract in mine) == (kind != "observer")
