"""Apache Iceberg tables of topics: exactly once, in any catalog and warehouse that pyiceberg and fsspec reach."""

from __future__ import annotations

__all__ = ("Settings", "penstock_register_lake_compactor")

from penstock.hookspecs import hookimpl
from penstock.spi.lake import LakeCompactorSpec, LakePolicies
from penstock_iceberg_compactor._configs import RAW_CONFIGS, TOPIC_CONFIGS, fault_of
from penstock_iceberg_compactor._open import open_compactor, watch
from penstock_iceberg_compactor._settings import CAPABILITIES, Settings

#: Rows are allocated and copied with the interpreter lock held, a millisecond for two megabytes or so, in which no
#: producer is served; more records in one go make decoding no cheaper.
_BATCH_BYTES = 2**20


@hookimpl
def penstock_register_lake_compactor() -> LakeCompactorSpec[Settings]:
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
        batch_bytes=_BATCH_BYTES,
        policies=LakePolicies(
            configs={
                policy: {"value.format": "json", "on.bad.record": policy}
                for policy in ("stop", "dead_letter", "null")
            },
            good=b'{"id": 1}',
            bad=b"{",
        ),
        watch=watch,
    )
