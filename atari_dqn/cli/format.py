"""Numbers as text for people."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`3725` -> `1h02m`; `59` -> `59s`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    if seconds < 86_400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
    return f"{seconds // 86_400}d{seconds % 86_400 // 3600:02}h"


def short(score: float) -> str:
    """`12.345` -> `12.35`; `1234.5` -> `1,234`, for of so many points no fraction tells anything."""
    return f"{score:,.0f}" if abs(score) >= 1000 else f"{score:,.2f}"
