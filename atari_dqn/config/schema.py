"""Every setting of a run, once: its meaning, unit, hard bounds, default and source.

Flows in: a command line, a former run's `config.json`, or an experiment file. Flows out: one frozen `TrainConfig`
whose sections are handed to the rooms that need them; what follows from it is derived.py's.
The same `Setting` metadata writes `--help`, checks values, guards a resume (`structural` ones) and says what may be
changed while a run is on (`live` ones).
This file must stay importable without torch, gymnasium or ale_py: bad input is refused before any of them loads.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from atari_dqn.config.setting import ConfigError, Setting, help_from_settings, settings

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
            structural="its saved replay was played there",
        ),
    ] = "ALE/Breakout-v5"
    protocol: Annotated[
        Literal["nature", "machado"],
        Setting(
            "Atari preprocessing: nature (30 no-ops, no sticky actions, life loss is terminal in training) or"
            " machado (sticky 0.25, 18 actions, no life signal)",
            source="Mnih et al. 2015; Machado et al. 2018",
            structural="its saved replay was played under that one",
        ),
    ] = "nature"
    frame_stack: Annotated[
        int, Setting("frames in an observation of a pixel env", "frames", 1, 16, source="Mnih 2015", structural=WEIGHTS)
    ] = 4
    num_workers: Annotated[int, Setting("worker processes", "processes", 1, 1024, structural=COLUMNS)] = 8
    envs_per_worker: Annotated[int, Setting("envs stepped by each worker", "envs", 1, 1024, structural=COLUMNS)] = 2
    worker_deadline: Annotated[
        float, Setting("a worker that has not answered for so long is killed and replaced", "seconds", 0.1, 86400)
    ] = 60.0
    worker_restarts: Annotated[
        int,
        Setting("a worker that fails oftener than this, less than 100 ticks apart, ends the run", "", 0, 1000),
    ] = 5


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Replay"""

    replay: Annotated[
        Literal["prioritized", "uniform", "newest"],
        Setting(
            "how transitions are drawn; newest: none is, the last batch_size are learned from in their order",
            source="Schaul et al. 2016",
            structural=REPLAY,
        ),
    ] = "prioritized"
    replay_capacity: Annotated[
        int,
        Setting("transitions kept; a power of two when prioritized", "transitions", 2, 2**30, structural=REPLAY),
    ] = 2**17
    n_step: Annotated[
        int,
        Setting(
            "rewards summed before bootstrapping",
            "env steps",
            1,
            64,
            structural="its saved priorities are of windows of that length",
        ),
    ] = 1
    gamma: Annotated[float, Setting("discount per env step", "", 0, 1)] = 0.99
    clip_rewards: Annotated[
        bool, Setting("learn from rewards clipped to [-1, 1]; scores stay raw", source="Mnih 2015")
    ] = True
    alpha: Annotated[
        float,
        Setting(
            "priority = (|td_error| + 1e-6)^alpha",
            "",
            0,
            1,
            source="Schaul 2016, eq. 1",
            structural="its saved priorities were made with it",
        ),
    ] = 0.6
    beta_values: Annotated[
        tuple[float, ...],
        Setting("importance-weight exponent at the knots", "", 0, 1, source="Schaul 2016, 3.4", live="beta"),
    ] = (0.4, 1.0)
    beta_at: Annotated[tuple[float, ...], Setting("its knots", "fraction of total_env_steps", 0, 1)] = (0.0, 1.0)


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Network"""

    dueling: Annotated[
        bool, Setting("separate value and advantage heads", source="Wang et al. 2016", structural=WEIGHTS)
    ] = True
    head: Annotated[
        Literal["shared", "two_stream"],
        Setting(
            "after the convolutions: shared (512, then 256 to value and 256 to advantages, as labml) or"
            " two_stream (512 to each, as the paper)",
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
            "after every layer but the last",
            source="Mnih 2015; Elfwing et al. 2018",
            structural="its saved weights were trained with that one",
        ),
    ] = "relu"


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """Learner"""

    learning_rate: Annotated[
        float,
        Setting("Adam's step size", "per update", 0, 1, low_open=True, live="learning_rate", suggested=(0, 1e-3)),
    ] = 1e-4
    optimizer: Annotated[
        Literal["adam", "adamw"],
        Setting(
            "adam, or adamw with amsgrad",
            source="Kingma & Ba 2015",
            structural="its saved moments would not fit",
        ),
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
            "the target network follows every so many updates",
            "updates",
            1,
            2**40,
            live="target_update_interval",
            suggested=(100, 10_000),
        ),
    ] = 2_000
    target_tau: Annotated[
        float,
        Setting("how far it follows: 1 copies, less averages (Polyak)", "", 0, 1, low_open=True),
    ] = 1.0
    loss: Annotated[
        Literal["huber", "mse"], Setting("of a TD error d: huber (d^2 / 2, from 1 on linear) or mse (d^2)")
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
        float, Setting("and each of their numbers is then clipped to plus or minus this; 0: none is", "", 0, 1e9)
    ] = 0.0
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        Setting("arithmetic of the convolutions; auto takes bf16 where it pays, and fp32 with --deterministic"),
    ] = "auto"
    cuda_graph: Annotated[
        bool, Setting("on a GPU, launch each update as one recorded graph: the same numbers, sooner")
    ] = True


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplorationConfig:
    """Exploration"""

    epsilon_values: Annotated[
        tuple[float, ...], Setting("probability of a random action at the knots", "", 0, 1, live="epsilon")
    ] = (1.0, 0.1, 0.01)
    epsilon_at: Annotated[tuple[float, ...], Setting("its knots", "fraction of total_env_steps", 0, 1)] = (
        0.0, 0.025, 0.5,
    )  # fmt: skip
    epsilon_decay: Annotated[
        float,
        Setting(
            "epsilon nears the last of two --epsilon-values exponentially, to 1/e of the way in so many; 0: it goes by"
            " the knots",
            "env steps",
            0,
            1e12,
        ),
    ] = 0.0
    epsilon_ladder: Annotated[
        bool,
        Setting(
            "from --learning-starts on, env i of N plays at 0.4^(1 + 7 i / (N - 1)) in place of that schedule",
            source="Horgan et al. 2018",
        ),
    ] = False


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Run"""

    total_env_steps: Annotated[
        int, Setting("the run's length; one env step is 4 Atari frames", "env steps", 1, 2**40)
    ] = 10_000_000
    seed: Annotated[int, Setting("root of every random number of the run", "", 0, 2**31 - 1)] = 1
    device: Annotated[Literal["auto", "cpu", "cuda"], Setting("where replay, network and loss live")] = "auto"
    deterministic: Annotated[bool, Setting("same seed, same bits (on a CPU: for the same number of torch threads)")] = (
        False
    )
    torch_threads: Annotated[
        int, Setting("threads of the learner's arithmetic; 0: one per core this process may use", "threads", 0, 4096)
    ] = 0
    run_dir: Annotated[
        Path | None, Setting("the run's directory; one with a checkpoint is continued; None: a new one in runs")
    ] = None
    log_interval: Annotated[int, Setting("a row of metrics every so many", "env steps", 1, 2**40)] = 500
    checkpoint_interval: Annotated[
        int,
        Setting(
            "a checkpoint every so many",
            "env steps",
            1,
            2**40,
            live="checkpoint_interval",
            suggested=(10_000, 1_000_000),
        ),
    ] = 100_000
    checkpoint_minutes: Annotated[
        float,
        Setting("and at the latest after so long, for a run may be slow; 0: never by the clock", "minutes", 0, 1e6),
    ] = 3.0
    keep_checkpoints: Annotated[int, Setting("the newest so many are kept, and the best", "", 1, 1000)] = 2
    eval_interval: Annotated[
        int,
        Setting(
            "an evaluation every so many; 0: none during training",
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
            "the run is done when an evaluation's mean is this or more; with --eval-interval 0, when that of the last"
            " 100 training games is",
            "raw score",
        ),
    ] = None
    eval_epsilon: Annotated[
        float, Setting("probability of a random action in evaluation", "", 0, 1, source="Mnih 2015: 0.05")
    ] = 0.01
    record_interval: Annotated[
        int,
        Setting(
            "a short film of a game every so many, for RUN/videos and TensorBoard, with --eval-epsilon; 0: none",
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

    Each flag tells its meaning and, in brackets, its unit, bounds and source.
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

    def to_dict(self) -> dict[str, Any]:
        """Flat and JSON-ready: `{"learning_rate": 1e-4, ...}`, every name as on the command line."""
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
            key: dataclasses.replace(section, **{name: left.pop(name) for name in vars(section) if name in left})
            for key, section in self._sections()
        }
        if left:
            raise ConfigError(f"unknown setting {sorted(left)[0]!r}; train --help lists them")
        return TrainConfig(**sections)

    def _sections(self) -> Iterator[tuple[str, Any]]:
        for field in dataclasses.fields(self):
            yield field.name, getattr(self, field.name)

    def validate(self) -> TrainConfig:
        """Return self, or raise `ConfigError` for the first setting out of bounds or at odds with another."""
        for name, setting in settings(TrainConfig).items():
            for _, section in self._sections():
                if hasattr(section, name):
                    setting.check(name, getattr(section, name))
        check_capacity(self)
        if self.exploration.epsilon_decay:
            _check_decay(self.exploration)
        else:
            _check_knots("epsilon", self.exploration.epsilon_values, self.exploration.epsilon_at)
        _check_knots("beta", self.replay.beta_values, self.replay.beta_at)
        if self.exploration.epsilon_ladder and self.num_envs < 2:
            raise ConfigError("--epsilon-ladder is for several envs, each with an epsilon of its own; here is one")
        least = self.num_envs * (self.replay.n_step + 1)
        if self.learner.learning_starts < least:
            raise ConfigError(
                f"--learning-starts is {self.learner.learning_starts}; with {self.num_envs} envs and --n-step"
                f" {self.replay.n_step} nothing can be drawn before env step {least}, so it must be at least {least}"
            )
        return self


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
        raise ConfigError("--epsilon-ladder and --epsilon-decay both say how epsilon goes; give one of them")
    if len(exploration.epsilon_values) != 2:
        raise ConfigError(
            f"--epsilon-values has {len(exploration.epsilon_values)} numbers; with --epsilon-decay it needs two, from"
            " and to"
        )


def _check_knots(name: str, values: tuple[float, ...], at: tuple[float, ...]) -> None:
    if len(values) != len(at) or not values:
        raise ConfigError(
            f"--{name}-values has {len(values)} numbers and --{name}-at {len(at)}; each knot needs one of both"
        )
    if any(later <= earlier for earlier, later in itertools.pairwise(at)):
        raise ConfigError(f"--{name}-at must increase from knot to knot")
