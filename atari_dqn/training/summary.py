"""The summary printed when a run starts: what its settings amount to."""

from pathlib import Path

from rich.table import Table

from atari_dqn.agent.schedules import epsilon_schedule
from atari_dqn.config.derived import Derived
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.envs.single import SMALLEST_IMAGE


def exploration_warning(config: TrainConfig, derived: Derived) -> list[str]:
    """A line where more than half of epsilon's way down is over before learning starts."""
    exploration, starts = config.exploration, config.learner.learning_starts
    if exploration.epsilon_ladder or starts >= config.run.total_env_steps:
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


def times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def summary(config: TrainConfig, spec: EnvSpec, derived: Derived, run_dir: Path) -> Table:
    """A table of the derived counts."""

    def knots(pairs: tuple[tuple[float, float], ...]) -> str:
        return " → ".join(f"{value:g} at {at:,.0f}" for at, value in pairs)

    env, learner, exploration = config.env, config.learner, config.exploration
    per_update = f"one per {float(derived.env_steps_per_update):g} env steps"
    if not derived.total_updates:
        per_update = "[none: the run is too short]"
    epsilon = f"{knots(derived.epsilon_knots)} env steps"
    if exploration.epsilon_decay:
        first, last = exploration.epsilon_values
        epsilon = f"{first:g} → {last:g}, {exploration.epsilon_decay:,.0f} env steps to 1/e of the way"
    if exploration.epsilon_ladder:
        epsilon = f"0.4 to {0.4**8:.2g}, one for each of {derived.num_envs} envs"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_row("run", str(run_dir))
    table.add_row("env", f"{env.env_id}, {env.num_workers} workers × {env.envs_per_worker} envs")
    hidden, shape = times(config.network.mlp_hidden), times(spec.frame_shape)
    table.add_row(
        "network",
        f"{config.network.network} on {spec.stack} images of {shape}"
        if spec.kind == "pixels"
        else f"MLP of {hidden} on {times(spec.flattened or spec.frame_shape)} numbers",
    )
    table.add_row("length", f"{config.run.total_env_steps:,} env steps, {derived.total_updates:,} updates")
    table.add_row(
        "replay",
        f"{config.replay.replay_capacity:,} transitions × {derived.bytes_per_transition:,.0f} bytes"
        f" = {derived.replay_bytes / 1e6:,.0f} MB",
    )
    table.add_row(
        "updates",
        f"{per_update} from env step {learner.learning_starts:,} on;"
        f" target every {learner.target_update_interval:,} updates"
        f" = {float(derived.target_sync_env_steps):,.0f} env steps",
    )
    table.add_row("epsilon", epsilon)
    table.add_row("beta", f"{knots(derived.beta_knots)} env steps")
    if len(derived.learning_rate_knots) > 1:
        rates = tuple((at, factor * learner.learning_rate) for at, factor in derived.learning_rate_knots)
        table.add_row("learning rate", f"{knots(rates)} env steps")
    return table
