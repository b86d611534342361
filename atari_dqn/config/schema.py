"""The settings of a run: meaning, unit, hard bounds, default and source of each.

A command line, a run's `config.json` or an experiment file becomes one frozen `TrainConfig`, whose sections go to the
packages that need them. The same `Setting` metadata writes `--help`, checks values, guards a resume (`structural`) and
says what may change while a run trains (`live`). What follows from the settings is computed in derived.py.
A new setting is a field here; then `python -m docs.settings_reference > docs/settings.md` updates its page.
This file must not import torch, gymnasium or ale_py: bad input is refused before any of them loads.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from atari_dqn.config.setting import ConfigError, Setting, help_from_settings, settings, shown

NETWORKS = ("nature", "narrow", "small", "impala")
WEIGHTS, REPLAY = "its saved weights would not fit", "its saved replay would not fit"
COLUMNS = "its saved replay has a column for each env"


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class EnvConfig:
    """Environment and workers"""

    env_id: Annotated[
        str,
        Setting(
            "a gymnasium id, or a game's bare name: breakout means ALE/Breakout-v5",
            structural="its saved replay comes from that environment",
        ),
    ] = "ALE/Breakout-v5"
    env_kwargs: Annotated[
        str,
        Setting(
            'arguments of a gymnasium environment as a JSON object, such as {"size": 8}',
            structural="its saved replay comes from that environment",
        ),
    ] = ""
    wrapper: Annotated[
        str,
        Setting(
            "wrapper of a gymnasium environment, as module:name: a class or function called with the environment",
            structural="its saved replay comes from that environment",
        ),
    ] = ""
    protocol: Annotated[
        Literal["nature", "machado"],
        Setting(
            "Atari preprocessing: nature (30 no-ops, no sticky actions, life loss is terminal in training) or"
            " machado (sticky 0.25, 18 actions, no life signal)",
            source="Mnih et al. 2015; Machado et al. 2018",
            structural="its saved replay was played under that protocol",
        ),
    ] = "nature"
    frame_stack: Annotated[
        int, Setting("frames in an observation of a pixel env", "frames", 1, 16, source="Mnih 2015", structural=WEIGHTS)
    ] = 4
    num_workers: Annotated[int, Setting("worker processes", "processes", 1, 1024, structural=COLUMNS)] = 8
    envs_per_worker: Annotated[int, Setting("envs stepped by each worker", "envs", 1, 1024, structural=COLUMNS)] = 2
    worker_deadline: Annotated[
        float, Setting("time without an answer after which a worker is killed and replaced", "seconds", 0.1, 86400)
    ] = 60.0
    worker_restarts: Annotated[
        int, Setting("consecutive failures of a worker (fewer than 100 ticks apart) before the run stops", "", 0, 1000)
    ] = 5

    def arguments(self) -> dict[str, Any]:
        """The arguments of the environment. Raises `ConfigError` unless they are a JSON object."""
        try:
            arguments = json.loads(self.env_kwargs or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            given = shown(self.env_kwargs)
            raise ConfigError(f'--env-kwargs is {given}; it must be a JSON object such as {{"size": 8}}')
        return arguments


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Replay"""

    replay: Annotated[
        Literal["prioritized", "uniform", "newest"],
        Setting(
            "how transitions are drawn; newest draws none and learns from the last batch_size in order",
            source="Schaul et al. 2016",
            structural=REPLAY,
        ),
    ] = "prioritized"
    replay_capacity: Annotated[
        int, Setting("transitions kept; a power of two if prioritized", "transitions", 2, 2**30, structural=REPLAY)
    ] = 2**17
    n_step: Annotated[
        int,
        Setting(
            "rewards summed before bootstrapping",
            "env steps",
            1,
            64,
            structural="its saved priorities are for windows of that length",
        ),
    ] = 1
    gamma: Annotated[float, Setting("discount per env step", "", 0, 1)] = 0.99
    clip_rewards: Annotated[
        bool, Setting("learn from rewards clipped to [-1, 1]; scores stay raw", source="Mnih 2015")
    ] = True
    alpha: Annotated[
        float,
        Setting(
            "priority = (|td_error| + 0.01)^alpha",
            "",
            0,
            1,
            source="Schaul 2016, eq. 1",
            structural="its saved priorities were computed with it",
        ),
    ] = 0.6
    beta_values: Annotated[
        tuple[float, ...],
        Setting("importance-weight exponent at its knots", "", 0, 1, source="Schaul 2016, 3.4", live="beta"),
    ] = (0.4, 1.0)
    beta_at: Annotated[
        tuple[float, ...], Setting("position of each knot of beta", "fraction of schedule_env_steps", 0, 1)
    ] = (0.0, 1.0)


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Network"""

    network: Annotated[
        str,
        Setting(
            "layers on pixels: nature (3 convolutions, 512 hidden), narrow (half of each), small (2 convolutions, 256)"
            " or impala (residual, 15 convolutions, 256); or, on any observation, your own as module:name"
            " (docs/python.md)",
            source="Mnih et al. 2015; Mnih et al. 2013; Espeholt et al. 2018",
            structural=WEIGHTS,
        ),
    ] = "nature"
    impala_width: Annotated[
        int, Setting("the channels of --network impala, 16 32 32, times this", "", 1, 16, structural=WEIGHTS)
    ] = 1
    dueling: Annotated[
        bool, Setting("separate value and advantage heads", source="Wang et al. 2016", structural=WEIGHTS)
    ] = True
    head: Annotated[
        Literal["shared", "two_stream"],
        Setting(
            "layers after the convolutions: shared (a hidden layer, then half its width each for value and advantages,"
            " as labml) or two_stream (a hidden layer for each, as the paper)",
            source="labml annotated DQN; Wang 2016",
            structural=WEIGHTS,
        ),
    ] = "shared"
    mlp_hidden: Annotated[
        tuple[int, ...],
        Setting("hidden widths for envs whose observation is not an image", "units", 1, 65536, structural=WEIGHTS),
    ] = (128, 128)
    activation: Annotated[
        Literal["relu", "silu"],
        Setting(
            "nonlinearity after every layer but the last",
            source="Mnih 2015; Elfwing et al. 2018",
            structural="its saved weights were trained with that activation",
        ),
    ] = "relu"


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Learner"""

    learning_rate: Annotated[
        float, Setting("Adam's step size", "per update", 0, 1, low_open=True, live="learning_rate", suggested=(0, 1e-3))
    ] = 1e-4
    learning_rate_factors: Annotated[
        tuple[float, ...], Setting("what --learning-rate is multiplied by at its knots", "", 0, 1)
    ] = (1.0,)
    learning_rate_at: Annotated[
        tuple[float, ...], Setting("position of each knot of the factor", "fraction of schedule_env_steps", 0, 1)
    ] = (0.0,)
    optimizer: Annotated[
        Literal["adam", "adamw"],
        Setting("adam, or adamw with amsgrad", source="Kingma & Ba 2015", structural="its saved moments would not fit"),
    ] = "adam"
    adam_epsilon: Annotated[float, Setting("added to Adam's denominator", "", 0, 1, low_open=True)] = 1e-8
    batch_size: Annotated[int, Setting("transitions drawn per update", "transitions", 1, 65536)] = 32
    replay_ratio: Annotated[
        float,
        Setting(
            "transitions drawn per env step: 8 with batches of 32 is one update per 4 env steps",
            "transitions per env step",
            0,
            1024,
            source="Mnih 2015",
            live="replay_ratio",
            suggested=(0, 32),
        ),
    ] = 8.0
    learning_starts: Annotated[int, Setting("random play before the first update", "env steps", 0, 2**40)] = 20_000
    target_update_interval: Annotated[
        int,
        Setting(
            "interval at which the target network follows the online one",
            "updates",
            1,
            2**40,
            live="target_update_interval",
            suggested=(100, 10_000),
        ),
    ] = 2_000
    target_tau: Annotated[
        float,
        Setting("share of the online weights it takes: 1 copies them, less averages (Polyak)", "", 0, 1, low_open=True),
    ] = 1.0
    loss: Annotated[
        Literal["huber", "mse"], Setting("loss of a TD error d: huber (d^2 / 2, linear beyond 1) or mse (d^2)")
    ] = "huber"
    double_q: Annotated[
        bool, Setting("the online network picks the target's action", source="van Hasselt et al. 2016")
    ] = True
    max_grad_norm: Annotated[
        float,
        Setting(
            "gradients are scaled down to this norm",
            "L2 norm",
            0,
            1e9,
            low_open=True,
            source="labml: 0.5",
            live="max_grad_norm",
            suggested=(0.1, 20),
        ),
    ] = 10.0
    max_grad_value: Annotated[
        float, Setting("then every entry is clipped to plus or minus this; 0: no clipping", "", 0, 1e9)
    ] = 0.0
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Setting("precision of all layers but the last; auto: bf16 where supported, fp32 with --deterministic"),
    ] = "auto"
    cuda_graph: Annotated[bool, Setting("on a GPU, launch each update as one captured graph: same numbers, faster")] = (
        True
    )


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplorationConfig:
    """Exploration"""

    epsilon_values: Annotated[
        tuple[float, ...], Setting("probability of a random action at its knots", "", 0, 1, live="epsilon")
    ] = (1.0, 0.1, 0.01)
    epsilon_at: Annotated[
        tuple[float, ...], Setting("position of each knot", "fraction of schedule_env_steps", 0, 1)
    ] = (0.0, 0.025, 0.5)
    epsilon_decay: Annotated[
        float,
        Setting(
            "time constant of an exponential decay from the first to the second of two --epsilon-values; 0: piecewise"
            " linear between knots",
            "env steps",
            0,
            1e12,
        ),
    ] = 0.0
    epsilon_ladder: Annotated[
        bool,
        Setting(
            "after --learning-starts, env i of N uses epsilon 0.4^(1 + 7 i / (N - 1)) instead of the schedule",
            source="Horgan et al. 2018",
        ),
    ] = False


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Run"""

    total_env_steps: Annotated[
        int, Setting("length of the run; one env step is 4 Atari frames", "env steps", 1, 2**40)
    ] = 10_000_000
    schedule_env_steps: Annotated[
        int,
        Setting(
            "positions of knots are fractions of this length, which a resumed run keeps; 0: of --total-env-steps",
            "env steps",
            0,
            2**40,
        ),
    ] = 0
    seed: Annotated[int, Setting("root seed of all random numbers of the run", "", 0, 2**31 - 1)] = 1
    device: Annotated[Literal["auto", "cpu", "cuda"], Setting("where replay, network and loss live")] = "auto"
    deterministic: Annotated[bool, Setting("same seed, same bits (on a CPU: for the same number of torch threads)")] = (
        False
    )
    torch_threads: Annotated[
        int,
        Setting(
            "threads of the learner's arithmetic; 0: OMP_NUM_THREADS where it is set, else 1 for an MLP, and for pixels"
            " 1 or all cores, whichever makes the run faster at the time (all cores with --deterministic)",
            "threads",
            0,
            4096,
        ),
    ] = 0
    run_dir: Annotated[
        Path | None, Setting("the run's directory; a run with a checkpoint is resumed; by default a new one in runs")
    ] = None
    log_interval: Annotated[int, Setting("interval between rows of metrics", "env steps", 1, 2**40)] = 500
    checkpoint_interval: Annotated[
        int,
        Setting(
            "interval between checkpoints",
            "env steps",
            1,
            2**40,
            live="checkpoint_interval",
            suggested=(10_000, 1_000_000),
        ),
    ] = 100_000
    checkpoint_minutes: Annotated[
        float, Setting("longest time between checkpoints, for slow runs; 0: no limit", "minutes", 0, 1e6)
    ] = 3.0
    keep_checkpoints: Annotated[int, Setting("number of newest checkpoints kept, besides the best", "", 1, 1000)] = 2
    eval_interval: Annotated[
        int,
        Setting(
            "interval between evaluations; 0: none during training",
            "env steps",
            0,
            2**40,
            live="eval_interval",
            suggested=(0, 1_000_000),
        ),
    ] = 0
    eval_episodes: Annotated[int, Setting("games per evaluation during training", "episodes", 1, 100_000)] = 16
    stop_score: Annotated[
        float | None,
        Setting(
            "the run ends when an evaluation's mean reaches this; with --eval-interval 0, when the mean of the last 100"
            " training games does",
            "raw score",
        ),
    ] = None
    eval_epsilon: Annotated[
        float, Setting("probability of a random action in evaluation", "", 0, 1, source="Mnih 2015: 0.05")
    ] = 0.01
    record_interval: Annotated[
        int,
        Setting(
            "interval between short films of a game (RUN/videos, TensorBoard), played with --eval-epsilon; 0: none",
            "env steps",
            0,
            2**40,
            live="record_interval",
            suggested=(0, 1_000_000),
        ),
    ] = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a prioritized, dueling, double DQN from many worker processes.

    Each flag shows its meaning and, in brackets, its unit, bounds and source.
    """

    env: Annotated[EnvConfig, tyro.conf.OmitArgPrefixes] = EnvConfig()
    replay: Annotated[ReplayConfig, tyro.conf.OmitArgPrefixes] = ReplayConfig()
    network: Annotated[NetworkConfig, tyro.conf.OmitArgPrefixes] = NetworkConfig()
    learner: Annotated[LearnerConfig, tyro.conf.OmitArgPrefixes] = LearnerConfig()
    exploration: Annotated[ExplorationConfig, tyro.conf.OmitArgPrefixes] = ExplorationConfig()
    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes] = RunConfig()

    @property
    def num_envs(self) -> int:
        return self.env.num_workers * self.env.envs_per_worker

    @property
    def schedule_length(self) -> int:
        """Env steps that positions of knots are fractions of."""
        return self.run.schedule_env_steps or self.run.total_env_steps

    def settings(self) -> TrainConfig:
        """The settings without what a command adds to them."""
        return TrainConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)})

    def to_dict(self) -> dict[str, Any]:
        """Flat and JSON-ready: `{"learning_rate": 1e-4, ...}`, with the command line's names."""
        flat: dict[str, Any] = {}
        for _, section in self._sections():
            for name, value in vars(section).items():
                if isinstance(value, Path):
                    value = str(value)
                flat[name] = list(value) if isinstance(value, tuple) else value
        return flat

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some settings changed, each by its flat name: `config.replace(seed=2)`."""
        left = dict(changes)
        sections = {
            key: dataclasses.replace(
                section, **{name: _like(old, left.pop(name)) for name, old in vars(section).items() if name in left}
            )
            for key, section in self._sections()
        }
        if left:
            raise ConfigError(f"unknown setting {sorted(left)[0]!r}; train --help lists them")
        return TrainConfig(**sections)

    def _sections(self) -> Iterator[tuple[str, Any]]:
        for field in dataclasses.fields(self):
            yield field.name, getattr(self, field.name)

    def validate(self) -> TrainConfig:
        """Return self; raise `ConfigError` for the first setting out of bounds or in conflict with another."""
        for _, section in self._sections():
            for name, setting in settings(type(section)).items():
                setting.check(name, getattr(section, name))
        check_capacity(self)
        self.env.arguments()
        network = self.network.network
        if network not in NETWORKS and ":" not in network:
            raise ConfigError(f"--network is {network!r}; it must be one of {', '.join(NETWORKS)}, or module:name")
        if self.exploration.epsilon_decay:
            _check_decay(self.exploration)
        else:
            _check_knots("epsilon-values", self.exploration.epsilon_values, self.exploration.epsilon_at)
        _check_knots("beta-values", self.replay.beta_values, self.replay.beta_at)
        _check_knots("learning-rate-factors", self.learner.learning_rate_factors, self.learner.learning_rate_at)
        if self.exploration.epsilon_ladder and self.num_envs < 2:
            raise ConfigError("--epsilon-ladder gives each env its own epsilon; it needs two envs or more")
        least = self.num_envs * (self.replay.n_step + 1)
        if self.learner.learning_starts < least:
            raise ConfigError(
                f"--learning-starts is {self.learner.learning_starts}; with {self.num_envs} envs and --n-step"
                f" {self.replay.n_step} nothing can be drawn before env step {least}, so it must be at least {least}"
            )
        return self


def _like(old: Any, new: Any) -> Any:
    """`new`, as a whole number if `old` is one: people write 1e6."""
    return int(new) if type(old) is int and type(new) is float and new.is_integer() else new


def check_capacity(config: TrainConfig) -> None:
    """Raise `ConfigError` unless the ring holds whole rows and, when prioritized, a power of two of leaves."""
    capacity, num_envs = config.replay.replay_capacity, config.num_envs
    if config.replay.replay == "prioritized" and capacity & (capacity - 1):
        below = 2 ** (capacity.bit_length() - 1)
        raise ConfigError(
            f"--replay-capacity is {capacity}; a prioritized replay needs a power of two: {below} or {2 * below}"
        )
    rows = config.env.frame_stack + config.replay.n_step + 1
    if capacity // num_envs < rows:
        raise ConfigError(
            f"--replay-capacity is {capacity}, which leaves {capacity // num_envs} rows for each of {num_envs} envs;"
            f" stacks and n-step windows need {rows}, so it must be at least {rows * num_envs}"
        )


def _check_decay(exploration: ExplorationConfig) -> None:
    if exploration.epsilon_ladder:
        raise ConfigError("--epsilon-ladder and --epsilon-decay exclude each other; give one of them")
    if len(exploration.epsilon_values) != 2:
        raise ConfigError(
            f"--epsilon-values has {len(exploration.epsilon_values)} numbers; with --epsilon-decay it needs two, from"
            " and to"
        )


def _check_knots(name: str, values: tuple[float, ...], at: tuple[float, ...]) -> None:
    positions = f"--{name.rpartition('-')[0]}-at"
    if len(values) != len(at) or not values:
        raise ConfigError(f"--{name} has {len(values)} numbers and {positions} {len(at)}; each knot needs one of both")
    if any(later <= earlier for earlier, later in itertools.pairwise(at)):
        raise ConfigError(f"{positions} must increase from knot to knot")
