"""Plain implementations of every contract: what serves a plugin under test, and what the mutants are made from.

They are written to be read, not to be fast. As plugins they are called ``reference``::

    penstock conformance run wal -p penstock_conformance.reference --plugin reference
"""

from __future__ import annotations

__all__ = ()

from penstock_conformance._hooks import hooks_in

# a plugin's hooks are its module's attributes; each kind's module has its own
globals().update(hooks_in(__name__, __path__))
