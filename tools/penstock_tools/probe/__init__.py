"""The probe: what an object store really does, shown against the store itself.

``run`` conducts it: ``checks`` asks one question after the other, ``races`` lets processes of their own (``worker``)
compete, through a ``relay`` that can hold back the last byte of a request, and ``report`` says what follows.
"""

from __future__ import annotations
