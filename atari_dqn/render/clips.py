"""Clips of a training under way: short films with an animated GIF for TensorBoard, and the process that makes one.

The weights of a moment are played and filmed to RUN/videos/<env step>-clip.mp4 by a process of its own, on the spare
time of a core.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from atari_dqn.agent.network import make_network
from atari_dqn.agent.weights import take_weights
from atari_dqn.cli.format import megabytes
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec
from atari_dqn.evaluation.references import with_human
from atari_dqn.policy.trained import TrainedNetwork
from atari_dqn.runs.checkpoint_files import load_tensors
from atari_dqn.system.processes import end_with_parent

GIF_HEIGHT, GIF_RATE = 240, 20
"""Largest height in pixels; approximate pictures a second, every third of 60: then a sprite that is drawn in every
other picture is seen."""


@dataclasses.dataclass(frozen=True)
class Order:
    """What the process that films needs to know."""

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
        games = f"{count} whole games of mean score" if count > 1 else "a whole game of score"
        played = f"{games} {score}" if count else f"score {score} in {self.order.seconds} s"
        return f"{file}, {megabytes(file.stat().st_size)}, {played}"


def serve(answer: Connection, order: Order) -> None:
    """Make a clip, in a process of its own, and send it, or a line that says why it failed."""
    end_with_parent()
    os.nice(5)
    torch.set_num_threads(1)
    try:
        made: Clip | str = make_clip(order)
    except Exception as error:  # an env may raise anything
        made = one_line(error)
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


def one_line(error: Exception) -> str:
    """What happened, as one line of at most 300 characters."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
