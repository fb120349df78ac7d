"""Plain implementations of every contract: what serves a plugin under test, and what the mutants are made from.

They are written to be read, not to be fast. ``penstock plugin new`` copies them, so each module is whole in itself.
As plugins they are called ``reference``::

    penstock conformance run wal -p penstock_conformance.reference --plugin reference
"""

from __future__ import annotations

__all__ = (
    "DirectoryStore",
    "JsonLinesCompactor",
    "PlainAllocator",
    "PlainBlockCache",
    "PlainLogCache",
    "PlainMetadataLog",
    "PlainPartitioner",
    "murmur2",
)

from penstock_conformance._hooks import hooks_in
from penstock_conformance.reference._allocator import PlainAllocator
from penstock_conformance.reference._block_cache import PlainBlockCache
from penstock_conformance.reference._lake_compactor import JsonLinesCompactor
from penstock_conformance.reference._log_cache import PlainLogCache
from penstock_conformance.reference._metadata_log import PlainMetadataLog
from penstock_conformance.reference._object_store import DirectoryStore
from penstock_conformance.reference._partitioner import PlainPartitioner, murmur2

# a plugin's hooks are its module's attributes; each kind's module has its own
globals().update(hooks_in(__name__, __path__))
