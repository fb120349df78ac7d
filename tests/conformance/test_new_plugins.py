"""What ``penstock plugin new`` writes works as it is: its own tests pass, and with them level 1 of its contract."""

from __future__ import annotations

import pytest
from tests.conformance.new_packages import results_of, tell_python
from tests.depth import in_full

from penstock_tools.scaffold import KINDS, write_package

#: Tried in each run; of the others, the tutorials hold those that they change to a part of level 1.
_EACH_RUN = ("object_store", "observer")


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("packages")
    kinds = [
        str(item.callspec.params["kind"])
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.function is test_a_new_plugin_passes_its_tests_and_level_1
    ]
    for kind in kinds:
        write_package(kind, f"my_{kind}", folder / kind)
        tell_python(folder / kind)
    return results_of([folder / kind for kind in kinds])


@pytest.mark.parametrize("kind", [*_EACH_RUN, *in_full(*(kind for kind in KINDS if kind not in _EACH_RUN))])
def test_a_new_plugin_passes_its_tests_and_level_1(kind: str, outcomes: dict[str, str]) -> None:
    mine = {name: fault for name, fault in outcomes.items() if name.startswith(f"{kind}.tests.")}
    assert [f"{name}: {fault}" for name, fault in mine.items() if fault] == []
    assert len(mine) >= 2
    of_contract = f"{kind}.tests.test_conformance.test_level_1_of_the_contract_holds"
    assert (of_contract in mine) == (kind != "observer")
