"""Lake compactors that make tables as they should, and are registered wrongly: each is a plugin of its own."""

from __future__ import annotations

__all__ = ()

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from penstock.hookspecs import hookimpl
from penstock.spi.kinds import LAKE_COMPACTOR
from penstock.spi.lake import LakeCompactorSpec, LakePolicies
from penstock_conformance.mutants._lake_compactor import _SPEC, KIND
from penstock_conformance.mutants._mutant import SUMMARY, mutant

_CONFIGS = "topic_configs_are_those_that_a_topic_can_have"
_FAULTS = "what_is_wrong_with_configs_is_told"
_FORMAT, _ERRORS = _SPEC.topic_configs


def _registered(defect: str, caught_by: str, **changed: Any) -> None:
    """Register a plugin that differs from the one that is right in these fields of its registration."""
    name = f"mutant_{defect}"
    mutant(KIND, defect, caught_by, plugin=name)(type(defect, (), {}))
    spec = replace(_SPEC, name=name, summary=SUMMARY, **changed)

    @hookimpl(specname=LAKE_COMPACTOR.hook)
    def register() -> LakeCompactorSpec[Any]:
        return spec

    globals()[f"{LAKE_COMPACTOR.hook}_{defect}"] = register


def _of_policies(**configs: Mapping[str, str]) -> LakePolicies:
    assert _SPEC.policies is not None
    return replace(_SPEC.policies, configs=configs)


# --- topic configs

_registered("has_a_config_twice", _CONFIGS, topic_configs=(_FORMAT, _FORMAT, _ERRORS))
_registered(
    "has_a_config_of_the_kernel", _CONFIGS, topic_configs=(_FORMAT, _ERRORS, replace(_ERRORS, name="gap"))
)
_registered(
    "writes_names_in_camel_case", _CONFIGS, topic_configs=(_FORMAT, _ERRORS, replace(_ERRORS, name="onError"))
)
_registered("explains_no_config", _CONFIGS, topic_configs=(replace(_FORMAT, doc=""), _ERRORS))
_registered(
    "defaults_to_what_is_no_choice",
    _CONFIGS,
    topic_configs=(replace(_FORMAT, choices=("json", "text")), _ERRORS),
)
_registered(
    "defaults_to_a_number_in_words",
    _CONFIGS,
    topic_configs=(_FORMAT, _ERRORS, replace(_ERRORS, name="files", type="int", default="many", choices=())),
)
_registered(
    "has_a_third_truth",
    _CONFIGS,
    topic_configs=(
        _FORMAT,
        _ERRORS,
        replace(_ERRORS, name="strict", type="boolean", default="true", choices=("true", "false", "maybe")),
    ),
)
_registered("keeps_raw_values_as_json", _CONFIGS, raw_configs={"format": "bytes", "errors": "stop"})
_registered("keeps_raw_values_by_an_unknown_config", _CONFIGS, raw_configs={"raw": "true"})
_registered(
    "has_policies_that_contradict_each_other",
    _CONFIGS,
    policies=_of_policies(dead_letter={"errors": "dead_letter"}),
)
_registered(
    "refuses_its_own_defaults",
    _CONFIGS,
    fault_of=lambda configs: "set errors" if configs["errors"] == "stop" else "",
)

# --- what is wrong with them


def _fault_of(odd: Callable[[str], str]) -> Callable[[Mapping[str, str]], str]:
    """A ``fault_of`` that says ``odd`` of a text config, where nothing else is wrong."""
    return lambda configs: _SPEC.fault_of(configs) or odd(configs["place"])


_PLACE = replace(_FORMAT, name="place", default="here", choices=(), doc="Where the table's files are.")


def _with_place(defect: str, odd: Callable[[str], str]) -> None:
    _registered(defect, _FAULTS, topic_configs=(_FORMAT, _ERRORS, _PLACE), fault_of=_fault_of(odd))


def _raises(place: str) -> str:
    place.encode("ascii")
    return ""


def _splits(place: str) -> str:
    scheme, _, rest = place.partition("=")
    return "" if not rest else f"there is no such scheme: scheme={scheme}"[int(scheme) :]


_known: dict[str, str] = {}


def _remembers(place: str) -> str:
    before, _known["place"] = _known.get("place", place), place
    return "" if before == place else "another table has another place"


_with_place("raises_at_what_isnt_ascii", _raises)
_with_place("raises_at_what_it_splits", _splits)
_with_place(
    "quotes_lines_as_they_are", lambda place: f"there is no such place: {place}" if "\n" in place else ""
)
_with_place(
    "quotes_all_of_a_long_value", lambda place: f"it is too long: {place}" if len(place) > 1000 else ""
)
_with_place("says_true_of_what_is_wrong", lambda place: "(" in place or "")  # type: ignore[arg-type, return-value] # the lie
_with_place("compares_with_what_was_asked_before", _remembers)
