"""The summary printed when a run starts: what its settings amount to."""

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from atari_dqn.agent.network import QNetwork, make_network
from atari_dqn.agent.reference import ReferenceNetwork
from atari_dqn.agent.schedules import epsilon_schedule
from atari_dqn.cli.command import typed
from atari_dqn.cli.format import plural
from atari_dqn.config.derived import Derived
from atari_dqn.config.presets import ABOVE_RANDOM, cpu
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.ids import is_atari, short_name
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.envs.single import SMALLEST_IMAGE


def exploration_warning(config: TrainConfig, derived: Derived) -> list[str]:
    """A line where more than half of epsilon's way down is over before learning starts, or its end is never reached.

    The preset cpu has such an end by intent: a short run of it explores as a long one begins.
    """
    exploration, starts = config.exploration, config.learner.learning_starts
    total = config.run.total_env_steps
    if exploration.epsilon_ladder:
        return []
    last = derived.epsilon_knots[-1][0] if derived.epsilon_knots else 0
    if last > total and exploration != cpu(1, total).exploration:
        return [
            f"warning: epsilon reaches its last value at env step {last:,.0f}, after the end of the run: --epsilon-at"
            f" are fractions of --schedule-env-steps {config.schedule_length}; 0 makes them fractions of"
            " --total-env-steps"
        ]
    if starts >= total:
        return []
    epsilon, first = epsilon_schedule(exploration, derived)(starts), exploration.epsilon_values[0]
    if first - epsilon <= (first - min(exploration.epsilon_values)) / 2:
        return []
    remedy = "a larger --epsilon-decay" if exploration.epsilon_decay else "later knots (--epsilon-at)"
    return [
        f"warning: epsilon is down to {epsilon:.2g} when learning starts at env step {starts:,}: little will be"
        f" explored; try a smaller --learning-starts or {remedy}"
    ]


def image_warning(spec: EnvSpec) -> list[str]:
    """A line where an MLP gets what looks like an image."""
    if sum(size >= 7 for size in spec.flattened) < 2:  # 7x7x3 is MiniGrid's view
        return []
    return [
        f"warning: observations of {times(spec.flattened)} look like images, but an MLP gets them as numbers: only"
        f" images of at least {SMALLEST_IMAGE} pixels each way are convolved, and only those that are uint8 or have"
        " an axis of 1, 3 or 4 channels and bounds of 0 to 1, -1 to 1 or 0 to 255"
    ]


def above_random(config: TrainConfig) -> tuple[int, int] | None:
    """The first and the last env step at which the training score may rise above random play.

    They are one for a game of `ABOVE_RANDOM`, and the bounds of those for another. None where what learns is not the
    preset cpu.
    """
    preset = cpu(1, config.run.total_env_steps)
    parts = "network", "learner", "exploration"
    if not is_atari(config.env.env_id) or any(getattr(config, part) != getattr(preset, part) for part in parts):
        return None
    measured = ABOVE_RANDOM.get(config.env.env_id)
    first, last = (measured, measured) if measured else (min(ABOVE_RANDOM.values()), max(ABOVE_RANDOM.values()))
    if config.schedule_length != preset.schedule_length or first > config.run.total_env_steps:
        return None
    return first, last


def layers(spec: EnvSpec, config: TrainConfig) -> str:
    """The layers of the network in words, as the papers have them, and the number of its parameters."""

    def words(network: nn.Module) -> Iterator[str]:
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d):
                size, stride = layer.kernel_size[0], layer.stride[0]
                yield f"conv {size}×{size}{f'/{stride}' if stride > 1 else ''} {layer.out_channels}"
            elif isinstance(layer, nn.Linear):
                last = name.rpartition(".")[2]
                yield f"{'dense' if last.isdecimal() else last.replace('_', ' ')} {layer.out_features}"

    # A user's layers may not work on the device meta; what they draw is drawn again by the training.
    place: Any = torch.random.fork_rng(devices=[]) if ":" in config.network.network else torch.device("meta")
    with place:
        network = make_network(spec, config.network)
        plain = ReferenceNetwork(spec, config.network) if isinstance(network, QNetwork) else network
    counted = [(word, len(list(same))) for word, same in itertools.groupby(words(plain))]
    shown = ", ".join(f"{count} of {word}" if count > 1 else word for word, count in counted)
    return f"{shown}; {sum(weights.numel() for weights in network.parameters()):,} parameters"


def times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def summary(config: TrainConfig, spec: EnvSpec, derived: Derived, run_dir: Path, preset: str = "") -> Table:
    """A table of the derived counts; `preset` is what its settings began with, in words."""

    def knots(pairs: tuple[tuple[float, float], ...]) -> str:
        return " → ".join(f"{value:g} at {at:,.0f}" for at, value in pairs)

    env, learner, exploration, run = config.env, config.learner, config.exploration, config.run
    epsilon = f"{knots(derived.epsilon_knots)} env steps"
    if exploration.epsilon_decay:
        first, last = exploration.epsilon_values
        epsilon = f"{first:g} → {last:g}, {exploration.epsilon_decay:,.0f} env steps to 1/e of the way"
    if exploration.epsilon_ladder:
        epsilon = f"0.4 to {0.4**8:.2g}, one for each of {derived.num_envs} envs"
    fixed = len(derived.beta_knots) == 1
    beta = f"{derived.beta_knots[0][1]:g}" if fixed else f"{knots(derived.beta_knots)} env steps"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("run", str(run_dir))
    if preset:
        table.add_row("preset", preset)
    table.add_row("env", f"{env.env_id}, {plural(env.num_workers, 'worker')} × {plural(env.envs_per_worker, 'env')}")
    hidden, shape = times(config.network.mlp_hidden), times(spec.frame_shape)
    own, mlp = config.network.network if ":" in config.network.network else "", f"MLP of {hidden}"
    kind = (
        f"{config.network.network} on {spec.stack} images of {shape}"
        if spec.kind == "pixels"
        else f"{own or mlp} on {times(spec.flattened or spec.frame_shape)} numbers"
    )
    table.add_row("network", f"{kind}: {layers(spec, config)}")
    table.add_row(
        "replay",
        f"{config.replay.replay_capacity:,} transitions × {derived.bytes_per_transition:,.0f} bytes"
        f" = {derived.replay_bytes / 1e6:,.0f} MB; beta {beta}",
    )
    per_update, per_sync = float(derived.env_steps_per_update), float(derived.target_sync_env_steps)
    updates = (
        f"random play until {learner.learning_starts:,}, then {derived.total_updates:,} updates (one per"
        f" {per_update:.4g} env steps, target every {per_sync:,.0f})"
    )
    if not derived.total_updates:
        updates = "random play; no update: the run is too short"
    table.add_row("length", f"{run.total_env_steps:,} env steps: {updates}")
    table.add_row("epsilon", epsilon)
    if len(derived.learning_rate_knots) > 1:
        rates = tuple((at, factor * learner.learning_rate) for at, factor in derived.learning_rate_knots)
        table.add_row("learning rate", f"{knots(rates)} env steps")
    every = (f"{run.eval_episodes} games of evaluation", run.eval_interval), ("a clip", run.record_interval)
    if shown := [f"{what} every {interval:,} env steps" for what, interval in every if interval]:
        table.add_row("shown", ", ".join(shown))
    if known := above_random(config):
        steps = f"{known[0]:,}"
        if known[0] < known[1]:
            steps = " to ".join(f"{step:,} ({short_name(game)})" for game, step in ABOVE_RANDOM.items())
        table.add_row("expect", f"a score above random play after about {steps} env steps")
    table.add_row("watch", f"{typed('tensorboard')} --logdir {shlex.quote(str(run_dir))}")
    table.add_row("stop", f"Ctrl-C: the state is saved, and --run-dir {shlex.quote(str(run_dir))} resumes")
    return table
