"""Runs to compare, as read from their directories, and configurations: groups of runs with the same settings.

A configuration is all settings except the game, the seed and those that cannot change learning.
"""

import dataclasses
import itertools
import json
import math
import string
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from atari_dqn.config.live import Edit
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, as_written
from atari_dqn.evaluation.episodes import WINDOW
from atari_dqn.evaluation.intervals import Array
from atari_dqn.evaluation.result import EvaluationRow
from atari_dqn.runs.directory import Named, read_config, read_system, runs_in
from atari_dqn.runs.edits import read_edits
from atari_dqn.runs.records import read_rows

SCORE, GAMES = "charts/episodic_return", "charts/episodes"
NOT_LEARNING = frozenset(
    {
        *("seed", "run_dir", "device", "torch_threads", "cuda_graph"),
        *("num_workers", "envs_per_worker", "worker_deadline", "worker_restarts"),  # their product counts: num_envs
        *("log_interval", "checkpoint_interval", "checkpoint_minutes", "keep_checkpoints"),
        *("eval_interval", "eval_episodes", "eval_epsilon", "stop_score", "record_interval"),
    }
)
"""Settings in which the runs of one configuration may differ."""
LABEL = 50
"""Most characters of the settings in a configuration's label."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, as far as it is compared."""

    name: str
    config: TrainConfig
    metrics: list[dict[str, Any]]
    """Rows of `metrics.jsonl` that have a score."""
    evaluations: list[EvaluationRow]
    edits: list[Edit]
    """Live edits that were accepted."""
    system: dict[str, Any]
    """The machine and the versions it ran on."""

    @property
    def env_id(self) -> str:
        return self.config.env.env_id

    @property
    def steps(self) -> npt.NDArray[np.int64]:
        """Env steps of `scores`, [rows]."""
        return np.array([row["env_step"] for row in self.metrics], dtype=np.int64)

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """Mean raw scores of the last games of training, as logged, [rows]."""
        return np.array([row[SCORE] for row in self.metrics], dtype=np.float64)

    @property
    def settled(self) -> int:
        """Index of the first score over `WINDOW` games; before it the shortest games of each env weigh most."""
        return next((i for i, row in enumerate(self.metrics) if row.get(GAMES, 0) >= WINDOW), len(self.metrics))

    @property
    def evaluation(self) -> EvaluationRow | None:
        """The latest evaluation with the run's own protocol and epsilon."""
        own = (self.config.env.protocol, self.config.run.eval_epsilon)
        rows = [row for row in self.evaluations if (row["protocol"], row["epsilon"]) == own]
        return max(rows, key=lambda row: row["env_step"], default=None)

    def score_at(self, env_steps: Array) -> Array:
        """The score at each of `env_steps`, linearly interpolated: every run has its rows at other env steps."""
        return np.interp(env_steps, self.steps, self.scores)

    def reached(self, threshold: float) -> tuple[float, float, float]:
        """Env steps, seconds and games until the mean of `WINDOW` games was `threshold` in a row; else infinite."""
        for row in self.metrics:
            if row[SCORE] >= threshold and row.get(GAMES, 0) >= WINDOW:
                return row["env_step"], row.get("time", math.nan), row[GAMES]
        return math.inf, math.inf, math.inf


def find_runs(places: Iterable[Named]) -> list[Path]:
    """The run directories among `places`, and those inside of a place that is not one itself; each once."""
    found: dict[Path, Path] = {}
    for place in places:
        inside = [place.path] if place.kind == "run" else sorted(runs_in(place.path))
        found.update({path.resolve(): path for path in inside if path.resolve() not in found})
    return list(found.values())


def names_of(run_dirs: Sequence[Path]) -> list[str]:
    """A name for each run: its directory's, preceded by the parent directory's if two are the same."""
    paths = [path.resolve() for path in run_dirs]
    same = len({path.name for path in paths}) < len(paths)
    return [f"{path.parent.name}/{path.name}" if same else path.name for path in paths]


def read_run(run_dir: Path, name: str = "") -> Run:
    """Read a run. Raises `ConfigError` when it is not a run directory, or has no score yet."""
    config = read_config(run_dir)
    metrics = read_rows(run_dir / "metrics.jsonl", SCORE)
    evaluations = read_rows(run_dir / "evaluations.jsonl", *EvaluationRow.__annotations__)
    if not metrics and not evaluations:
        raise ConfigError(f"{run_dir} has no score yet: no game of it is finished")
    edits = [edit for edit in read_edits(run_dir) if edit.taken]
    name = (name or run_dir.resolve().name).encode(errors="replace").decode()  # no font has a byte that is not UTF-8
    return Run(name, config, metrics, cast(list[EvaluationRow], evaluations), edits, read_system(run_dir))


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Runs that differ only in game, seed and settings that cannot change learning."""

    letter: str
    """`A`, `B`...; empty when there is only one configuration."""
    label: str
    """Text of the legend."""
    settings: dict[str, str]
    """Those in which it differs from the other configurations."""
    runs: list[Run]

    def on(self, env_id: str) -> list[Run]:
        """The runs of one game."""
        return [run for run in self.runs if run.env_id == env_id]

    def trained(self, env_id: str) -> list[Run]:
        """The runs of one game that have a score of training."""
        return [run for run in self.on(env_id) if run.metrics]


def configurations(runs: Sequence[Run]) -> list[Configuration]:
    """Group runs by all settings that may change learning, in the order given."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_learning(run), sort_keys=True), []).append(run)
    known = [_learning(group[0]) for group in groups.values()]
    differing = [name for name in known[0] if any(settings[name] != known[0][name] for settings in known)]
    found = []
    for index, (settings, group) in enumerate(zip(known, groups.values(), strict=True)):
        apart = {name: as_written(settings[name]) or "none" for name in differing}
        letter = _letter(index) if len(groups) > 1 else ""
        found.append(Configuration(letter, _label(letter, apart, group), apart, group))
    return found


def _learning(run: Run) -> dict[str, Any]:
    settings = {name: value for name, value in run.config.to_dict().items() if name not in NOT_LEARNING}
    del settings["env_id"]
    edits = [f"{edit.name} {edit.new} at {edit.env_step:,}" for edit in run.edits if edit.name not in NOT_LEARNING]
    return {"num_envs": run.config.num_envs, **settings, "live edits": edits}


def _letter(index: int) -> str:
    """A, B, ... Z, AA, AB..."""
    before, last = divmod(index, 26)
    return (_letter(before - 1) if before else "") + string.ascii_uppercase[last]


def _label(letter: str, apart: dict[str, str], runs: Sequence[Run]) -> str:
    if len(runs) == 1:
        text = runs[0].name
    else:
        settings = ", ".join(f"{name} {value}" for name, value in apart.items())
        text = f"{textwrap.shorten(settings, LABEL, placeholder=' …') or 'all'} ({len(runs)} runs)"
    return f"{letter}: {text}" if letter else text


def games_of(found: Sequence[Configuration]) -> list[str]:
    """The games of all runs, in the order first met."""
    return list(dict.fromkeys(run.env_id for each in found for run in each.runs))


def remarks(found: Sequence[Configuration]) -> list[str]:
    """Lines about runs of different code or precision, and about seeds used twice."""
    runs = [run for configuration in found for run in configuration.runs]
    lines = []
    for name, what in (("git_revision", "revisions of the code"), ("precision", "precisions")):
        values = list(dict.fromkeys(str(run.system[name]) for run in runs if name in run.system))
        if len(values) > 1:
            lines.append(f"The runs used different {what} ({', '.join(values)}).")
    for each, env_id in itertools.product(found, games_of(found)):
        seeds = [run.config.run.seed for run in each.on(env_id)]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            of = f"{each.letter}, {env_id}" if each.letter else env_id
            lines.append(f"{of}: several runs have seed {as_written(twice)}; they are not independent.")
    return lines
