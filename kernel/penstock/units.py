"""Sizes and durations as people write them: ``512MiB``, ``250ms``, ``7d``."""

from __future__ import annotations

__all__ = ("format_duration", "format_size", "parse_duration_ms", "parse_size")

import re

_SIZE = re.compile(r"\s*(\d{1,18})(?:\.(\d{1,18}))?\s*([kmgt]i?)?b?\s*", re.IGNORECASE | re.ASCII)
_SIZE_FACTORS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_DURATION = re.compile(r"\s*(\d{1,18})(?:\.(\d{1,18}))?\s*(ms|s|m|min|h|d)\s*", re.IGNORECASE | re.ASCII)
_DURATION_FACTORS_MS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}


def _times(whole: str, fraction: str | None, factor: int) -> int:
    """``whole.fraction * factor``, rounded to the nearest; exact, which floats are not past 2**53."""
    digits = fraction or ""
    scale: int = 10 ** len(digits)
    return (int(whole + digits) * factor + scale // 2) // scale


def parse_size(text: str | int) -> int:
    """Bytes in ``text``: an integer, or a number with B, kB, MB, GB, TB (1000) or KiB, MiB, GiB, TiB (1024).

    Raises ValueError with a sentence that shows a valid example.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"not a size, write it like 512MiB or 1048576: value={text!r}")
    return _times(match[1], match[2], _SIZE_FACTORS[(match[3] or "").lower()])


def parse_duration_ms(text: str | int) -> int:
    """Milliseconds in ``text``: ``250ms``, ``1.5s``, ``5m``, ``7d``; ``-1`` means without limit.

    Raises ValueError with a sentence that shows a valid example.
    """
    if text == -1 or text == "-1":
        return -1
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"not a duration, write it with its unit, like 250ms, 30s or 7d: value={text!r}")
    return _times(match[1], match[2], _DURATION_FACTORS_MS[match[3].lower()])


def format_size(size: int) -> str:
    """``size`` bytes in the largest binary unit that keeps it readable."""
    if abs(size) >= 2**80:  # beyond what a float can take, sooner or later
        return f"{size // 2**40}TiB"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f}{unit}" if value == int(value) else f"{value:.1f}{unit}"
        value /= 1024
    return f"{value:.0f}TiB" if value == int(value) else f"{value:.1f}TiB"


def format_duration(duration_ms: int) -> str:
    """``duration_ms`` milliseconds in the largest unit that divides it."""
    if duration_ms == -1:
        return "-1"
    for unit, factor in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if duration_ms and duration_ms % factor == 0:
            return f"{duration_ms // factor}{unit}"
    return f"{duration_ms}ms"
