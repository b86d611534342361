"""What can be known of a run directory without torch: its settings and the rows it has logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from atari_dqn.config import ConfigError, TrainConfig, load_config


def read_config(run_dir: Path) -> TrainConfig:
    """The settings of a run. Raises `ConfigError` when `run_dir` is none."""
    if not (run_dir / "config.json").is_file():
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json")
    return load_config(run_dir / "config.json")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` or `evaluations.jsonl`; none when the file is absent. A torn last row is left out."""
    if not file.is_file():
        return []
    lines = file.read_text().splitlines()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise ConfigError(f"{file}, line {number}, is not JSON") from None
    return rows
