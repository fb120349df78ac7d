"""How long tests wait for what must happen: one number, that only what hangs reaches.

A deadline here guards against hanging and measures nothing: on a machine with other work, everything takes several
times as long. Waits that must *not* end (nothing is sent, nobody is woken) are short, and in the tests that make
them.
"""

from __future__ import annotations

__all__ = ("HANG_S",)

#: Seconds. Less than pytest's own ``timeout``, so that what hung is named by the wait and not by a stack dump.
HANG_S = 300.0
