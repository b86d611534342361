"""What a peer's training script tells the race: progress, and its state and weights when it is asked to stop.

A script is run as `python -m benchmarks.race.peers.NAME RUN_DIR GAME SEED` in the peer's own environment. On SIGTERM or
SIGHUP it saves its state in RUN_DIR, so that the same command resumes, and its weights as `weights.npz`, named and laid
out as an exported policy's (`benchmarks.race.peers.evaluate` plays them); then it exits with code 3, with 0 when it has
come to its own end. A resumed training begins with new games. Nothing but the standard library and numpy is imported
here, for every peer's environment has it.
"""

from __future__ import annotations

import json
import pickle
import signal
import sys
import time
from collections.abc import Callable, Mapping
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

    @property
    def env_id(self) -> str:
        """The game with frame skip 1 and without sticky actions, for the wrappers of OpenAI Baselines' line."""
        return "".join(word.capitalize() for word in self.game.split("_")) + "NoFrameskip-v4"

    def tick(self, env_steps: int, updates: int, *, last: bool = False) -> None:
        """Note how far the training is; to be called often, and once with `last` when its weights are saved."""
        now = time.monotonic()
        if last or now >= self._due:
            self._due = now + ROW_SECONDS
            with (self.run_dir / "metrics.jsonl").open("a") as rows:
                rows.write(json.dumps({"env_step": env_steps, "update": updates}) + "\n")

    def save_state(self, state: Any) -> None:
        """Write what a resumed training needs, as a pickle."""
        temporary = self.run_dir / "state.partial"
        with temporary.open("wb") as out:
            pickle.dump(state, out, protocol=5)  # writes large arrays without a copy
        temporary.rename(self.run_dir / "state.pkl")

    def load_state(self) -> Any:
        """What was saved; None at the first start."""
        file = self.run_dir / "state.pkl"
        if not file.exists():
            return None
        with file.open("rb") as state:
            return pickle.load(state)

    def save_weights(
        self,
        env_steps: int,
        weights: Mapping[str, Any],
        layers: Mapping[str, str],
        q_values: Callable[[np.ndarray], Any],
    ) -> None:
        """Write the network's weights as those of an exported policy.

        Args:
            env_steps: How far the training is.
            weights: The network's `state_dict`.
            layers: The name in `weights` of each layer: conv1, conv2, conv3, hidden and q, or with labml's dueling head
                shared, value_hidden, value, advantage_hidden and advantage in place of the last two.
            q_values: The peer's own network as it plays: observations [B, 4, 84, 84] uint8, newest frame last, to a
                tensor of Q values [B, actions]. A sample of its answers is written, too, to be compared with ours.
        """
        arrays = {
            f"{ours}.{part}": weights[f"{theirs}.{part}"].detach().cpu().numpy()
            for ours, theirs in layers.items()
            for part in ("weight", "bias")
        }
        observations = np.random.default_rng(0).integers(0, 256, (8, 4, 84, 84), np.uint8)
        answers = q_values(observations).detach().cpu().numpy()
        temporary = self.run_dir / "weights.partial.npz"
        np.savez(temporary, env_step=env_steps, observations=observations, q_values=answers, **arrays)
        temporary.rename(self.run_dir / "weights.npz")
