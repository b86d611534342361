"""Recorder of a training under way: has clips of its network made in another process, one at a time.

The training only waits while its weights are written. Whatever happens to the environment, the encoder or the disk
stays in the process that films.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch

from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.render.clips import Clip, Order, one_line, serve
from atari_dqn.runs.checkpoint_files import tensor_bytes
from atari_dqn.system.processes import quiet_spawn

SECONDS = 12
"""Length of a clip, from the beginning of a game; where the game is shorter, the next one follows."""
DEADLINE, LAST_DEADLINE = 900.0, 300.0
"""Seconds after which an unfinished clip is given up: during the training, and at its end, when nothing else is left to
do. A clip takes 10 to 20 seconds of a core, and the training leaves it little."""


@dataclasses.dataclass
class _Making:
    """A clip that is being made."""

    order: Order
    process: SpawnProcess
    answer: Connection
    give_up: float
    """Time of the monotonic clock after which it is given up."""


class Recorder:
    """Has clips of one run made, one at a time. Every clip shows the same seed, so that they can be compared.

    No method raises when a clip fails.
    """

    def __init__(self, run_dir: Path, config: TrainConfig, spec: EnvSpec, seed: int) -> None:
        self._directory, self._config, self._spec, self._seed = run_dir / "videos", config, spec, seed
        self._making: _Making | None = None
        self._clean_up()  # leftovers of a killed training

    @property
    def env_step(self) -> int | None:
        """Env step of the clip that is being made; None when there is none."""
        return self._making.order.env_step if self._making else None

    def begin(self, env_step: int, network: torch.nn.Module) -> str:
        """Start a clip of `network` as it is now. Returns why that is impossible, or an empty string."""
        if self._making:
            return f"the clip of {self.env_step:,} is not finished"
        weights = self._directory / f".{env_step}-clip.weights"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            weights.write_bytes(tensor_bytes(network.state_dict()))
            file = self._directory / f"{env_step}-clip.mp4"
            order = Order(file, weights, self._config, self._spec, env_step, SECONDS, self._seed)
            answer, theirs = multiprocessing.Pipe(duplex=False)
            process = multiprocessing.get_context("spawn").Process(
                target=serve, args=(theirs, order), name="clip", daemon=True
            )
            with theirs, quiet_spawn():
                process.start()
        except (OSError, RuntimeError) as error:  # RuntimeError: a GPU cannot hand over the weights
            self._clean_up()
            return one_line(error)
        self._making = _Making(order, process, answer, time.monotonic() + DEADLINE)
        return ""

    def poll(self, seconds: float = 0.0) -> Clip | str | None:
        """Wait up to `seconds` for the clip. Returns it, or why it failed; None while it is being made."""
        if self._making is None:
            return None
        answer: Clip | str = "timed out"
        try:
            if self._making.answer.poll(seconds):
                answer = self._making.answer.recv()
            elif time.monotonic() < self._making.give_up:
                return None
        except (EOFError, OSError):
            self._making.process.join(1.0)
            answer = f"the process that films it ended with exit code {self._making.process.exitcode}"
        self.close()
        return answer

    def hurry(self) -> None:
        """Give up sooner: from now on the training waits for the clip."""
        if self._making:
            self._making.give_up = min(self._making.give_up, time.monotonic() + LAST_DEADLINE)

    def close(self) -> None:
        """Give up the clip that is being made, if there is one."""
        if self._making is None:
            return
        self._making.answer.close()
        self._making.process.kill()  # it has answered, or its clip is not wanted any more
        self._making.process.join()
        self._making = None
        self._clean_up()

    def _clean_up(self) -> None:
        with contextlib.suppress(OSError):
            for leftover in self._directory.glob(".*-clip.*"):
                leftover.unlink(missing_ok=True)
