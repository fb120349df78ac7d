"""The registration of the plugin."""

from __future__ import annotations

__all__ = ("Settings", "spec")

from penstock.spi.lake import LakeCompactorSpec
from penstock_iceberg_compactor._configs import RAW_CONFIGS, TOPIC_CONFIGS, fault_of
from penstock_iceberg_compactor._open import CAPABILITIES, open_compactor, watch
from penstock_iceberg_compactor._settings import Settings


def spec() -> LakeCompactorSpec[Settings]:
    """Register ``iceberg_compactor``."""
    return LakeCompactorSpec(
        name="iceberg_compactor",
        summary="Apache Iceberg tables, in any catalog that pyiceberg knows, in files or in any bucket",
        settings=Settings,
        capabilities=CAPABILITIES,
        open=open_compactor,
        topic_configs=TOPIC_CONFIGS,
        fault_of=fault_of,
        raw_configs=RAW_CONFIGS,
        watch=watch,
    )
