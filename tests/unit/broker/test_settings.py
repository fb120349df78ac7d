"""What the parts are told of the configuration."""

from __future__ import annotations

from penstock.api.broker_configs import BROKER_CONFIGS
from penstock.broker._settings import _broker_configs
from penstock.config import load_config


def test_types_and_defaults_of_all_broker_configs_that_are_described_are_known() -> None:
    assert set(_broker_configs(load_config().tree)) <= set(BROKER_CONFIGS)
