"""Clips of a training under way: short films, with an animated GIF for TensorBoard.

A separate low-priority process plays the current weights and films them to RUN/videos/<env step>-clip.mp4. Training
waits only while the weights are written. Errors in the environment, the encoder or the disk do not reach it.
"""

import contextlib
import dataclasses
import io
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from atari_dqn.agent.network import make_network
from atari_dqn.agent.weights import take_weights
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import register, registration
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec
from atari_dqn.envs.single import one_line
from atari_dqn.evaluation.references import with_human
from atari_dqn.policy.trained import TrainedNetwork
from atari_dqn.runs.checkpoint_files import load_tensors, tensor_bytes
from atari_dqn.system.processes import end_with_parent, quiet_spawn

GIF_HEIGHT, GIF_RATE = 240, 20
"""Maximum height in pixels, and approximate frame rate. Every third of 60 pictures is kept: an odd stride, so that a
sprite drawn only in every other picture still appears."""
SECONDS = 12
"""Length of a clip in seconds. It starts with a new game; if that ends early, another follows."""
DEADLINE, LAST_DEADLINE = 900.0, 300.0
"""Seconds after which an unfinished clip is given up: during the training, and at its end, when nothing else is left to
do. A clip takes 10 to 20 seconds of a core, and the training leaves it little."""


@dataclasses.dataclass(frozen=True)
class Order:
    """Everything the filming process needs."""

    file: Path
    weights: Path
    """The network's state dict, of `env_step`."""
    config: TrainConfig
    spec: EnvSpec
    env_step: int
    seconds: int
    seed: int
    """Seed of the first game."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """A finished clip."""

    order: Order
    scores: list[float]
    """Raw scores of the games that ended in it."""
    score: float
    """Raw score so far of the game that did not end."""
    gif: bytes
    gif_size: tuple[int, int]
    """Height and width of the GIF in pixels."""

    @property
    def env_step(self) -> int:
        return self.order.env_step

    def __str__(self) -> str:
        count, file = len(self.scores), self.order.file
        score = with_human(self.order.spec.env_id, round(float(np.mean(self.scores)), 2) if count else self.score)
        played = f"whole games: {count} of mean score {score}" if count else f"score {score} in {self.order.seconds} s"
        return f"{file}, {file.stat().st_size / 1e6:,.1f} MB, {played}"


def film_and_send(answer: Connection, order: Order, registered: bytes) -> None:
    """Entry point of the filming process: make a clip and send it, or a one-line reason for the failure."""
    os.nice(5)
    end_with_parent(hang_up_children=not order.spec.is_atari)
    torch.set_num_threads(1)
    try:
        register(registered)
        made: Clip | str = make_clip(order)
    except Exception as error:  # an env may raise anything
        made = _reason(error)
    answer.send(made)


def make_clip(order: Order) -> Clip:
    """Play the network from its weights, and film it."""
    # Imported here because the training, which imports this module too, draws nothing.
    from atari_dqn.envs.film import FilmedEnv, Picture
    from atari_dqn.evaluation.player import play
    from atari_dqn.render.overlay import Overlay
    from atari_dqn.render.video import VideoFile

    config, spec, protocol = order.config, order.spec, PROTOCOLS[order.config.env.protocol]
    network = make_network(spec, config.network)
    take_weights(network, load_tensors(order.weights), order.weights)
    policy = TrainedNetwork(config, spec, network.eval(), order.env_step)
    gif: list[Image.Image] = []

    def show(picture: Picture) -> None:
        if video.pictures < enough:
            if video.pictures % stride == 0:
                small = Image.fromarray(picture)
                small.thumbnail((picture.shape[1], GIF_HEIGHT), Image.Resampling.BOX)
                gif.append(small.quantize(256, dither=Image.Dither.NONE))
            video.add(overlay.beside(picture, env.score, env.lives))

    env = FilmedEnv(spec, protocol, show)
    enough, stride = order.seconds * env.fps, max(1, round(env.fps / GIF_RATE))
    scores: list[float] = []
    with contextlib.closing(env), VideoFile(order.file, env.fps) as video:
        while video.pictures < enough:
            overlay = Overlay.of(policy, protocol, env)
            seed = (order.seed + len(scores)) % 2**31
            for _ in play(network, env, config.run.eval_epsilon, seed, overlay.decide):
                if video.pictures == enough:
                    break
            else:
                scores.append(env.score)
    encoded = io.BytesIO()
    milliseconds = round(1000 * stride / env.fps)
    gif[0].save(encoded, "gif", save_all=True, append_images=gif[1:], duration=milliseconds, loop=0)
    return Clip(order, scores, env.score, encoded.getvalue(), (gif[0].height, gif[0].width))


def _reason(error: Exception) -> str:
    """The error as one line of at most 300 characters."""
    if isinstance(error, ConfigError):
        return str(error)[:300]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return one_line(error)[:300]


class Recorder:
    """Has clips of one run made, one at a time. Every clip shows the same seed, so that they can be compared.

    No method raises when a clip fails.
    """

    def __init__(self, run_dir: Path, config: TrainConfig, spec: EnvSpec, seed: int) -> None:
        self._directory, self._config, self._spec, self._seed = run_dir / "videos", config, spec, seed
        self._order: Order | None = None
        """The clip that is being made."""
        self._process: SpawnProcess
        self._answer: Connection
        self._give_up = 0.0
        self._clean_up()  # leftovers of a killed training

    @property
    def env_step(self) -> int | None:
        """Env step of the clip that is being made; None when there is none."""
        return self._order.env_step if self._order else None

    def begin(self, env_step: int, network: torch.nn.Module) -> str:
        """Start a clip of `network` as it is now. Returns why that is impossible, or an empty string."""
        if self._order:
            return f"the clip of {self.env_step:,} is not finished"
        weights = self._directory / f".{env_step}-clip.weights"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            weights.write_bytes(tensor_bytes(network.state_dict()))
            file = self._directory / f"{env_step}-clip.mp4"
            order = Order(file, weights, self._config, self._spec, env_step, SECONDS, self._seed)
            self._answer, theirs = multiprocessing.Pipe(duplex=False)
            self._process = multiprocessing.get_context("spawn").Process(
                target=film_and_send,
                args=(theirs, order, registration(self._spec, self._config.network.network)),
                name="clip",
            )
            with theirs, quiet_spawn():
                self._process.start()
        except (OSError, RuntimeError, ConfigError) as error:  # a GPU or a user's network cannot be handed over
            self._clean_up()
            return _reason(error)
        self._order, self._give_up = order, time.monotonic() + DEADLINE
        return ""

    def poll(self, seconds: float = 0.0) -> Clip | str | None:
        """Wait up to `seconds` for the clip. Returns it, or why it failed; None while it is being made."""
        if self._order is None:
            return None
        answer: Clip | str = "timed out"
        try:
            if self._answer.poll(seconds):
                answer = self._answer.recv()
            elif time.monotonic() < self._give_up:
                return None
        except (EOFError, OSError):
            self._process.join(1.0)
            answer = f"the process that films it ended with exit code {self._process.exitcode}"
        self.close()
        return answer

    def shorten_deadline(self) -> None:
        """Give up sooner: from now on the training waits for the clip."""
        self._give_up = min(self._give_up, time.monotonic() + LAST_DEADLINE)

    def close(self) -> None:
        """Give up the clip that is being made, if there is one."""
        if self._order is None:
            return
        self._answer.close()
        self._process.kill()  # it has answered, or its clip is not wanted any more
        self._process.join()
        self._order = None
        self._clean_up()

    def _clean_up(self) -> None:
        with contextlib.suppress(OSError):
            for leftover in self._directory.glob(".*-clip.*"):
                leftover.unlink(missing_ok=True)
