"""Tools that read a broker's data from outside: verification and inspection. They change nothing."""

from __future__ import annotations
