"""Short films of a training under way: the weights of a moment flow in; RUN/videos/<env step>-clip.mp4 and an animated
GIF for TensorBoard flow out.

A process of its own plays and films, on a core's spare time: the training waits for the writing of its weights, and
nothing that happens to the env, the encoder or the disk reaches it. Every clip shows the same seed, so that they can be
compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from PIL import Image

from atari_dqn.agent.network import make_network
from atari_dqn.agent.weights import take_weights
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec
from atari_dqn.evaluation.references import with_human
from atari_dqn.policy.trained import TrainedNetwork
from atari_dqn.runs.archive import load_tensors
from atari_dqn.runs.checkpoint_files import MOST_TENSORS
from atari_dqn.system.processes import end_with_parent, quiet_spawn

if TYPE_CHECKING:  # the training itself draws nothing
    from atari_dqn.render.drawing import Picture

SECONDS = 12
"""of the beginning of a game; where it is over sooner, the next one follows"""
DEADLINE, LAST_DEADLINE = 900.0, 300.0
"""Seconds after which a clip that is not there is given up; and when nothing else is left to be done. It takes 10 to 20
of a core's time, of which the training leaves it little."""
GIF_HEIGHT, GIF_RATE = 240, 20
"""Pixels at most; pictures a second, about: at every third of 60 a sprite that is drawn every other time is seen."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """One that is made."""

    env_id: str
    env_step: int
    file: Path
    megabytes: float
    scores: list[float]
    """of the games that are over in it"""
    score: float
    """so far, of the one that is not"""
    gif: bytes
    gif_size: tuple[int, int]
    """height and width"""

    def __str__(self) -> str:
        count = len(self.scores)
        games = f"{count} whole games of mean score" if count > 1 else "a whole game of score"
        score = with_human(self.env_id, round(float(np.mean(self.scores)), 2) if count else self.score)
        played = f"{games} {score}" if count else f"score {score} in {SECONDS} s"
        return f"{self.file}, {self.megabytes:.1f} MB, {played}"


@dataclasses.dataclass(frozen=True)
class Order:
    """What the process that films is to know."""

    file: Path
    weights: Path
    config: TrainConfig
    spec: EnvSpec
    env_step: int
    seconds: int
    seed: int


class Recorder:
    """Has clips of one run made, one at a time. Nothing here raises for what goes wrong with one."""

    def __init__(self, run_dir: Path, config: TrainConfig, spec: EnvSpec, seed: int) -> None:
        self._directory, self._config, self._spec, self._seed = run_dir / "videos", config, spec, seed
        self._order: Order | None = None
        """the clip that is being made"""
        self._process: SpawnProcess | None = None
        self._answer: Connection | None = None
        self._give_up = 0.0
        self._clean_up()  # what a killed training left

    @property
    def env_step(self) -> int | None:
        """Of the clip that is being made; None while there is none."""
        return None if self._order is None else self._order.env_step

    def begin(self, env_step: int, network: torch.nn.Module) -> str:
        """Let a clip of `network` as it is now be made. Returns why it cannot be, or nothing."""
        if self._order is not None:
            return f"that of {self._order.env_step:,} is still being made"
        weights = self._directory / f".{env_step}-clip.weights"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            saved = io.BytesIO()  # on a full disk torch.save does not say that it is full
            torch.save({name: tensor.cpu() for name, tensor in network.state_dict().items()}, saved)
            weights.write_bytes(saved.getbuffer())
            file = self._directory / f"{env_step}-clip.mp4"
            order = Order(file, weights, self._config, self._spec, env_step, SECONDS, self._seed)
            self._answer, theirs = multiprocessing.Pipe(duplex=False)
            self._process = multiprocessing.get_context("spawn").Process(
                target=serve, args=(theirs, order), name="clip", daemon=True
            )
            with theirs, quiet_spawn():
                self._process.start()
        except (OSError, RuntimeError) as error:  # the latter of a GPU that cannot hand its weights over
            self._clean_up()
            return _reason(error)
        self._order, self._give_up = order, time.monotonic() + DEADLINE
        return ""

    def poll(self, seconds: float = 0.0) -> Clip | str | None:
        """The clip when it is made; why there will be none; or None, which is what there mostly is.

        `seconds`: how long to wait for it.
        """
        if self._order is None or self._answer is None or self._process is None:
            return None
        if not self._answer.poll(seconds):
            if time.monotonic() < self._give_up:
                return None
            answer: Clip | str = "it takes too long"
        else:
            try:
                answer = self._answer.recv()
            except (EOFError, OSError):
                self._process.join(1.0)
                answer = f"the process that films it ended with exit code {self._process.exitcode}"
        self.close()
        return answer

    def hurry(self) -> None:
        """From now on somebody waits for it."""
        self._give_up = min(self._give_up, time.monotonic() + LAST_DEADLINE)

    def close(self) -> None:
        """Give up the clip that is being made, if one is."""
        if self._order is None or self._answer is None or self._process is None:
            return
        self._answer.close()
        self._process.kill()  # it has answered, or is not wanted
        self._process.join()
        self._clean_up()
        self._order = None

    def _clean_up(self) -> None:
        with contextlib.suppress(OSError):
            for litter in self._directory.glob(".*-clip.*"):
                litter.unlink(missing_ok=True)


def serve(answer: Connection, order: Order) -> None:
    """In the process that films: make the clip and answer with it, or with the reason why there is none."""
    end_with_parent()
    os.nice(5)
    torch.set_num_threads(1)
    try:
        made: Clip | str = _make(order)
    except Exception as error:  # an env may raise anything
        made = _reason(error)
    answer.send(made)


def _make(order: Order) -> Clip:
    from atari_dqn.envs.film import FilmedEnv
    from atari_dqn.render.game import play
    from atari_dqn.render.overlay import Overlay
    from atari_dqn.render.video import VideoFile

    config, spec, protocol = order.config, order.spec, PROTOCOLS[order.config.env.protocol]
    network = make_network(spec, config.network)
    take_weights(network, load_tensors(order.weights, "cpu", MOST_TENSORS), order.weights)
    policy = TrainedNetwork(config, spec, network.eval(), order.env_step, [])
    gif: list[Picture] = []

    def show(picture: Picture) -> None:
        if video.pictures < enough:
            if video.pictures % stride == 0:
                gif.append(_small(picture))
            video.add(overlay.beside(picture, env.score, env.lives))

    env = FilmedEnv(spec, protocol, show)
    enough, stride = order.seconds * env.fps, max(1, round(env.fps / GIF_RATE))
    scores: list[float] = []
    with contextlib.closing(env), VideoFile(order.file, env.fps) as video:
        while video.pictures < enough:
            overlay = Overlay.of(policy, protocol, env)
            seed = (order.seed + len(scores)) % 2**31
            for _ in play(policy, env, config.run.eval_epsilon, seed, overlay.decide):
                if video.pictures == enough:
                    break
            else:
                scores.append(env.score)
    height, width, _ = gif[0].shape
    return Clip(
        env_id=spec.env_id,
        env_step=order.env_step,
        file=order.file,
        megabytes=order.file.stat().st_size / 1e6,
        scores=scores,
        score=env.score,
        gif=_encode(gif, stride / env.fps),
        gif_size=(height, width),
    )


def _small(picture: Picture) -> Picture:
    """At most `GIF_HEIGHT` high."""
    factor = GIF_HEIGHT / picture.shape[0]
    if factor >= 1:
        return picture.copy()  # the env draws the next one into the same memory
    return np.asarray(cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)


def _encode(pictures: list[Picture], seconds: float) -> bytes:
    """An animated GIF that is repeated for ever; each picture stays for `seconds`."""
    first, *others = (Image.fromarray(picture).quantize(256, dither=Image.Dither.NONE) for picture in pictures)
    file = io.BytesIO()
    first.save(file, "gif", save_all=True, append_images=others, duration=round(1000 * seconds), loop=0)
    return file.getvalue()


def _reason(error: Exception) -> str:
    """One line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
