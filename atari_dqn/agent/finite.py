"""Checks for NaN and infinity in a run's tensors, and a dump of the update that produced them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_NAMES = 4
"""Number of tensors that a message names."""


class NotFiniteError(FloatingPointError):
    """The training cannot continue because one of its numbers is NaN or infinite."""


def not_finite(tensors: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names of the floating-point tensors with NaN or infinity.

    Nested mappings are searched, with their names joined by dots; values that are not tensors are ignored. Each tensor
    is read once and none is copied.
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


def refuse_not_finite(state: Mapping[str, Any]) -> None:
    """Raise `NotFiniteError`, naming the tensors, if `state` has NaN or infinity and must not be saved."""
    where = where_not_finite(state)
    if where:
        raise NotFiniteError(f"not saved: {where}")


def write_dump(file: Path, evidence: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """Write the inputs and results of a learner's last update, `Learner.evidence`, to a file.

    `torch.load(file, weights_only=True)` returns a dict: `batch`, `td_errors` [B] and `targets` [B] (tensors on the
    CPU), `not_finite` (names, including weights, moments and gradients) and `config`.

    Returns:
        Where the file is, or why it could not be written: a full disk must not hide why the run ended.
    """
    kept = {name: _to_cpu(evidence[name]) for name in ("batch", "td_errors", "targets") if name in evidence}
    buffer = io.BytesIO()
    torch.save({**kept, "not_finite": not_finite(evidence), "config": dict(config)}, buffer)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(buffer.getvalue())
    except OSError as error:
        return f"cannot write {file}: {error.strerror}"
    return f"see {file}"


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _to_cpu(part) for name, part in value.items()}
    return value.detach().to("cpu", copy=True)
