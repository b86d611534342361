"""What a peer's training script tells the race: progress, and its state and weights when it is asked to stop.

A script is run as `python -m benchmarks.race.peers.NAME RUN_DIR GAME SEED` in the peer's own environment. On SIGTERM or
SIGHUP it saves its state in RUN_DIR, so that the same command resumes, and its weights as `weights.npz`, named and laid
out as an exported policy's (`benchmarks.race.peers.evaluate` plays them); then it exits with code 3, with 0 when it has
come to its own end. Nothing but the standard library and numpy is imported here, for every peer's environment has it.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

DONE, STOPPED = 0, 3
ROW_SECONDS = 10.0
"""Seconds between two rows of `metrics.jsonl`."""


class Session:
    """`run_dir`, `game` and `seed` of this process, and whether it is asked to stop."""

    def __init__(self) -> None:
        place, self.game, seed = sys.argv[1:]
        self.run_dir, self.seed = Path(place), int(seed)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.stop = False
        self._due = 0.0
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGHUP, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.stop = True

    def tick(self, env_steps: int, updates: int, *, last: bool = False) -> None:
        """Note how far the training is; to be called often, and once with `last` when its weights are saved."""
        now = time.monotonic()
        if last or now >= self._due:
            self._due = now + ROW_SECONDS
            with (self.run_dir / "metrics.jsonl").open("a") as rows:
                rows.write(json.dumps({"env_step": env_steps, "update": updates}) + "\n")

    def save_weights(self, env_steps: int, layers: Mapping[str, Any]) -> None:
        """Write the tensors of conv1, conv2, conv3, hidden and q (`NAME.weight`, `NAME.bias`), torch's layouts."""
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in layers.items()}
        temporary = self.run_dir / "weights.partial.npz"
        np.savez(temporary, env_step=env_steps, **arrays)
        temporary.rename(self.run_dir / "weights.npz")
