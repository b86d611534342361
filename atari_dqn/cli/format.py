"""Number formats: durations, scores and counts as text for people."""

import math


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


def score(value: float) -> str:
    """`12.345` -> `12.35`, `1234.5` -> `1,234`: of thousands of points nobody reads the fraction.

    Infinity, a score that was never reached, is `never`; NaN, an unknown one, is `–`.
    """
    return _special(value) or (f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}")


def count(value: float) -> str:
    """`1234.5` -> `1,234`; infinity and NaN as in `score`."""
    return _special(value) or f"{value:,.0f}"


def plural(number: int, noun: str) -> str:
    """`1, "worker"` -> `1 worker`; `2, "worker"` -> `2 workers`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _special(value: float) -> str:
    return "never" if math.isinf(value) else "–" if math.isnan(value) else ""


def thousands(value: float, position: float | None = None) -> str:
    """`2500000` -> `2.5M`. `position` is for matplotlib, which takes this function as a tick formatter."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def q_value(value: float, digits: int = 3) -> str:
    """`1.5` -> `1.500`, `1234.5` -> `1234.5`: a width that hardly changes from one frame to the next."""
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:.5g}"
