"""Numbers that are numbers. Flow in: a run's tensors, by name. Flow out: the names of those that hold NaN or infinity,
a refusal to save them, and a dump for whoever wants to know where they came from.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NAMES_TOLD = 4
"""Of so many tensors at most the names are told in a line."""


class NotFiniteError(FloatingPointError):
    """A number of the training is NaN or infinite, and it cannot go on like this."""


def not_finite(tensors: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The names of the floating-point tensors that hold NaN or infinity.

    Mappings within are looked into, their names joined with dots; what is no tensor is passed over. Reads each tensor
    once and copies none.
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
    """`NaN or infinity is in a, b, c, d and 7 more`; empty when it is in none."""
    names = not_finite(tensors)
    more = len(names) - NAMES_TOLD
    rest = f" and {more:,} more" if more > 0 else ""
    return f"NaN or infinity is in {', '.join(names[:NAMES_TOLD])}{rest}" if names else ""


def refuse_not_finite(state: Mapping[str, Any]) -> None:
    """Raises `NotFiniteError`, naming what is broken, when `state` is not fit to be saved."""
    where = where_not_finite(state)
    if where:
        raise NotFiniteError(f"not saved: {where}")


def write_dump(file: Path, evidence: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Write to `file` what a learner's last update left behind (see `Learner.evidence`).

    `torch.load(file, weights_only=True)` gives a dict: `batch`, `td_errors` [B] and `targets` [B] (tensors on the CPU),
    `not_finite` (names, those of weights, moments and gradients too) and `config`. Returns where it is, or why it is
    not: a disk that is full must not hide why the run ended.
    """
    kept = {name: _to_cpu(evidence[name]) for name in ("batch", "td_errors", "targets") if name in evidence}
    buffer = io.BytesIO()
    torch.save({**kept, "not_finite": not_finite(evidence), "config": dict(config)}, buffer)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(buffer.getvalue())
    except OSError as error:
        return f"{file} cannot be written: {error.strerror}"
    return f"see {file}"


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _to_cpu(part) for name, part in value.items()}
    return value.detach().to("cpu", copy=True)
