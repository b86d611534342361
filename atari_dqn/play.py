"""`python -m atari_dqn.play RUN`: a run directory in, one game as a video in RUN/videos, or in a window, out."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from atari_dqn import cli
from atari_dqn.config import Setting, help_from_settings, settings
from atari_dqn.runs import read_config

if TYPE_CHECKING:  # the real imports wait until the input is known to be right: they take seconds
    from atari_dqn.checkpoint import Policy
    from atari_dqn.envs.film import FilmedEnv, Picture


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayCommand:
    """Film one whole game of a trained network.

    Writes RUN/videos/<env step>-<protocol>-seed<seed>.mp4: every picture of the game, also those the network does not
    see, in colour and at its natural speed (Atari: 60 a second). Ctrl-C ends the video early and keeps it.
    """

    run: Annotated[Path, tyro.conf.Positional, Setting("a run directory, such as runs/Breakout-1-...")]
    window: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, Setting("show the game in a window too (q or Escape closes it)")
    ] = False
    protocol: Annotated[
        Literal["trained", "nature", "machado"],
        Setting("how Atari games are presented; the actions stay those of training"),
    ] = "trained"
    epsilon: Annotated[float, Setting("probability of a random action", "", 0, 1)] = 0.01
    checkpoint: Annotated[str, Setting("latest, best, or an env step of RUN/checkpoints")] = "latest"
    seed: Annotated[int, Setting("of the game and the random actions", "", 0, 2**31 - 1)] = 0
    device: Annotated[Literal["auto", "cpu", "cuda"], Setting("where the network runs")] = "auto"


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.play") -> int:
    """Play as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = cli.parse(PlayCommand, argv, prog=prog)
    for name, setting in settings(PlayCommand).items():
        setting.check(name, getattr(command, name))
    read_config(command.run)

    from atari_dqn.video import VideoFile, Window, check_display

    if command.window:
        check_display()

    import torch

    from atari_dqn.checkpoint import load_policy
    from atari_dqn.envs.film import FilmedEnv
    from atari_dqn.evaluate import protocol_for
    from atari_dqn.learner import resolve_device
    from atari_dqn.status import StatusLine

    torch.set_num_threads(1)  # one observation at a time: more only wait for each other, and long on a busy machine
    console = cli.console()
    policy = load_policy(command.run, command.checkpoint, resolve_device(command.device))
    for line in policy.skipped:
        console.print(line, highlight=False, soft_wrap=True)
    protocol = protocol_for(command.protocol, policy.config.env.protocol)
    screens: list[VideoFile | Window] = []

    def show(picture: Picture) -> None:
        for screen in screens:
            screen.add(picture)

    env = FilmedEnv(policy.spec, protocol, show)
    file = command.run / "videos" / f"{policy.env_step}-{protocol.name}-seed{command.seed}.mp4"
    ending, score, env_steps = "game over", 0.0, 0
    try:
        with contextlib.closing(env), VideoFile(file, env.fps) as video, StatusLine(console, "filming") as status:
            screens.append(video)
            if command.window:
                window = Window(policy.spec.env_id, env.fps)
                screens.append(window)
            for score, env_steps in play(policy, env, command.epsilon, command.seed):
                status.update(f"score {score:g}  {env_steps:,} env steps  {video.pictures / env.fps:.0f} s of film")
                if command.window and window.closed:
                    ending = "window closed"
                    break
    except KeyboardInterrupt:
        ending = "interrupted"
    console.print(f"{ending}: score {score:g} after {env_steps:,} env steps", highlight=False, soft_wrap=True)
    film = f"{video.pictures / env.fps:.1f} s of film, {env.fps} pictures a second"
    console.print(f"{file}: {film}", highlight=False, soft_wrap=True)
    return cli.INTERRUPTED if ending == "interrupted" else cli.DONE


def play(policy: Policy, env: FilmedEnv, epsilon: float, seed: int) -> Iterator[tuple[float, int]]:
    """Play one game epsilon-greedily. Yields the raw score so far and the env steps, after each of them."""
    import numpy as np
    import torch

    from atari_dqn.actor import Actor
    from atari_dqn.replay.ring import FrameRing

    spec, device = policy.spec, next(policy.network.parameters()).device
    actor = Actor(policy.network, spec.num_actions, seed=seed)
    dtype = torch.from_numpy(np.empty(0, dtype=spec.frame_dtype)).dtype
    # The stacks are those of training because the ring that makes them is.
    ring = FrameRing(spec.stack + 2, 1, spec.frame_shape, dtype, spec.stack, 1, device)
    ring.append(env.reset(seed)[None], last=[False])
    score = 0.0
    for env_step in itertools.count(1):
        actions = actor.act(ring.latest_observation(), epsilon)
        frame, reward, over = env.step(int(actions[0]))
        ring.append(frame[None], last=[over], actions=actions, rewards=[reward], terminal=[over])
        score += reward
        yield score, env_step
        if over:
            return


if __name__ == "__main__":
    cli.run_command(main)
