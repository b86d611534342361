"""Checks for NaN and infinity in a run's tensors."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

MAX_NAMES = 4
"""Number of tensors that a message names."""


class NotFiniteError(FloatingPointError):
    """The training cannot continue because one of its numbers is NaN or infinite."""


def not_finite(tensors: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the floating-point tensors with NaN or infinity.

    Nested mappings are searched, with their names joined by dots; values that are not tensors are ignored.
    """
    found = []
    for name, value in tensors.items():
        if isinstance(value, Mapping):
            found += not_finite(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and value.is_floating_point():
            extremes = torch.stack(torch.aminmax(value.detach()))  # NaN if anything is
            if not extremes.isfinite().all():
                found.append(prefix + name)
    return found


def where_not_finite(tensors: Mapping[str, Any]) -> str:
    """`NaN or infinity is in a, b, c, d and 7 more`; empty if all are finite."""
    names = not_finite(tensors)
    more = len(names) - MAX_NAMES
    rest = f" and {more:,} more" if more > 0 else ""
    return f"NaN or infinity is in {', '.join(names[:MAX_NAMES])}{rest}" if names else ""
