"""The claims, and what a finished run did about its claim: when it was met, and the score of the network afterwards.

It imports no torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atari_dqn.config.derived import updates_at
from atari_dqn.config.schema import TrainConfig
from atari_dqn.runs.directory import read_config
from atari_dqn.runs.records import read_rows

GAMES = 100
"""Number of games of the evaluation after a run, the usual one for a mean score."""
WINDOW = 100
"""Number of training games in the mean at the end of a run."""
MASTERED = 475.0, 20
"""Mean score, and number of consecutive training games that must have it, for CartPole-v1 to count as mastered; the
score is gymnasium's own threshold."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of a source about its settings, in a form that a run meets or does not."""

    says: str
    """The claim in the source's words, one line."""
    event: Literal["game", "evaluation", "afterwards", "end"]
    """What meets it: a training game with that score, an evaluation during training or the one afterwards with that
    mean, or the end of the run."""
    score: float = 0.0
    limit: tuple[Literal["episode", "update", "seconds"], float] | None = None
    """Unit and value of the latest moment; None: any time."""

    @property
    def is_timed(self) -> bool:
        """Whether the limit is in seconds, so that no other run may share the machine."""
        return self.limit is not None and self.limit[0] == "seconds"


CLAIMS: dict[str, Claim] = {
    "cartpole_pytorch_tutorial": Claim("an episode of 500 within 600 episodes", "game", 500, ("episode", 600)),
    "cartpole_lightning": Claim("an episode of 200 after about 1,200 updates", "game", 200, ("update", 1_500)),
    "cartpole_no_replay": Claim("5,000 epochs in 3 minutes", "end", limit=("seconds", 180)),
    "cartpole_replay": Claim("5,000 epochs in 15 seconds", "end", limit=("seconds", 15)),
    "cartpole": Claim("ours: a mean of 475 over 100 games", "afterwards", 475),
    "lunarlander_di_engine": Claim("a mean of 200 over 5 games", "evaluation", 200),
}
"""By experiment. "About 1,200" is accepted up to 1,500, the number in another place of the article's own code."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """A moment of a run."""

    env_step: int
    episode: int
    """Number of finished training games."""
    update: int
    seconds: float
    """Duration of the training so far, evaluations included."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Result of one run; `dataclasses.asdict` makes it JSON-ready."""

    seed: int
    event: Moment | None
    """When the claimed event happened; None: never."""
    mastered: Moment | None
    """When the training games first met `MASTERED`; None: never, or not CartPole."""
    met: bool
    """Whether the event happened within the claim's limit."""
    end: Moment
    highest: float
    """Score of the best training game."""
    last_games: float
    """Mean score of the last `WINDOW` training games, up to the claim's limit if that is in episodes."""
    afterwards: tuple[float, float, float]
    """Mean score and 95% interval of the evaluation after the run, without exploration."""


def finished(run_dir: Path) -> bool:
    """Whether the run and the evaluation after it are finished."""
    return _afterwards(run_dir) is not None


def measure(run_dir: Path, claim: Claim) -> Outcome:
    """Result of the finished run in `run_dir`. Raises `ConfigError` if it is not a run directory."""
    config = read_config(run_dir)
    games, evaluations = read_rows(run_dir / "episodes.jsonl"), read_rows(run_dir / "evaluations.jsonl")
    last, after = read_rows(run_dir / "metrics.jsonl")[-1], _afterwards(run_dir)
    assert after is not None, "the run is not finished"
    ended = Moment(last["env_step"], len(games), last["update"], last["time"])
    event: Moment | None = None
    if claim.event == "end":
        event = ended
    elif claim.event == "game":
        event = next((_moment(game, games, config) for game in games if game["return"] >= claim.score), None)
    elif claim.event == "evaluation":
        rows = [row for row in evaluations if len(row["returns"]) != GAMES and row["mean"] >= claim.score]
        # An evaluation's own row holds its duration; its moment is in the row of metrics of that env step.
        times = {row["env_step"]: row for row in read_rows(run_dir / "metrics.jsonl")}
        event = _moment(times[rows[0]["env_step"]], games, config) if rows else None
    elif after["mean"] >= claim.score:
        event = ended
    counted = games[: int(claim.limit[1])] if claim.limit and claim.limit[0] == "episode" else games
    return Outcome(
        seed=config.run.seed,
        event=event,
        mastered=_mastered(games, config),
        met=event is not None and (claim.limit is None or getattr(event, claim.limit[0]) <= claim.limit[1]),
        end=ended,
        highest=max(game["return"] for game in games),
        last_games=float(np.mean([game["return"] for game in counted[-WINDOW:]])),
        afterwards=(after["mean"], *after["ci95"]),
    )


def limit_step(claim: Claim, run_dir: Path) -> float | None:
    """Env step at which the claim's limit of episodes or updates is reached; None if there is no such limit."""
    kind, limit = claim.limit or ("none", 0)
    if kind == "update":
        learner = read_config(run_dir).learner
        return learner.learning_starts + limit * learner.batch_size / learner.replay_ratio
    games = read_rows(run_dir / "episodes.jsonl")
    return float(games[int(limit) - 1]["env_step"]) if kind == "episode" and len(games) >= limit else None


def _mastered(games: Sequence[dict[str, Any]], config: TrainConfig) -> Moment | None:
    mark, count = MASTERED
    if "CartPole" not in config.env.env_id or len(games) < count:
        return None
    sums = np.convolve([game["return"] for game in games], np.ones(count), mode="valid")
    first = int(np.argmax(sums >= mark * count))
    return _moment(games[first + count - 1], games, config) if sums[first] >= mark * count else None


def _afterwards(run_dir: Path) -> dict[str, Any] | None:
    rows = [row for row in read_rows(run_dir / "evaluations.jsonl") if len(row["returns"]) == GAMES]
    return rows[-1] if rows else None


def _moment(row: dict[str, Any], games: Sequence[dict[str, Any]], config: TrainConfig) -> Moment:
    done = sum(game["env_step"] <= row["env_step"] for game in games)
    # Updates due after a tick are made during the next one.
    updates = updates_at(config.learner, row["env_step"] - config.num_envs)
    return Moment(row["env_step"], done, updates, row["time"])
