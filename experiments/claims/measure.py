"""Did a run do what its source claims? A finished run's directory flows in; env steps, episodes and seconds until the
claim was met, and what the network was worth afterwards, flow out. No torch.
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
"""Games of the evaluation after a run: the field's number for a mean score."""
WINDOW = 100
"""Games of training in a mean."""
MASTERED = 475.0, 20
"""CartPole-v1 is, when so many games of training in a row have this mean, which is gymnasium's mark for it."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """What a source says of its settings, as something that a run does or does not."""

    says: str
    """in the source's words, one line"""
    event: Literal["game", "evaluation", "afterwards", "end"]
    """what meets it: a game of training of that score, an evaluation during training or the one afterwards with that
    mean; or that the run ends"""
    score: float = 0.0
    limit: tuple[Literal["episode", "update", "seconds"], float] | None = None
    """until when; None: at any time"""

    @property
    def is_timed(self) -> bool:
        """Whether seconds decide, so that no other run may share the machine."""
        return self.limit is not None and self.limit[0] == "seconds"


CLAIMS: dict[str, Claim] = {
    "cartpole_pytorch_tutorial": Claim("an episode of 500 within 600 episodes", "game", 500, ("episode", 600)),
    "cartpole_lightning": Claim("an episode of 200 after about 1,200 updates", "game", 200, ("update", 1_500)),
    "cartpole_no_replay": Claim("5,000 epochs in 3 minutes", "end", limit=("seconds", 180)),
    "cartpole_replay": Claim("5,000 epochs in 15 seconds", "end", limit=("seconds", 15)),
    "cartpole": Claim("ours: a mean of 475 over 100 games", "afterwards", 475),
    "lunarlander_di_engine": Claim("a mean of 200 over 5 games", "evaluation", 200),
}
"""By experiment. "About 1,200" is let pass until 1,500, which is what the article's own code says in another place."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """A point of a run."""

    env_step: int
    episode: int
    """finished games of training"""
    update: int
    seconds: float
    """of training, evaluations within it included"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run did; JSON-ready by `dataclasses.asdict`."""

    seed: int
    event: Moment | None
    """when that happened which the claim is about; None: never"""
    mastered: Moment | None
    """when the games of training first were as in `MASTERED`; None: never, or another game"""
    met: bool
    """and in time"""
    end: Moment
    highest: float
    """score of the best game of training"""
    last_games: float
    """mean of the last `WINDOW` games of training, those until the claim's limit where it is one of episodes"""
    afterwards: tuple[float, float, float]
    """mean, and its 95% interval, of the evaluation after the run, without exploration"""


def finished(run_dir: Path) -> bool:
    """Whether the evaluation that follows a run is there."""
    return _afterwards(run_dir) is not None


def measure(run_dir: Path, claim: Claim) -> Outcome:
    """What the finished run in `run_dir` did. Raises `ConfigError` where it is none."""
    config = read_config(run_dir)
    games, evaluations = read_rows(run_dir / "episodes.jsonl"), read_rows(run_dir / "evaluations.jsonl")
    last, after = read_rows(run_dir / "metrics.jsonl")[-1], _afterwards(run_dir)
    assert after is not None, "measured before it is finished"
    ended = Moment(last["env_step"], len(games), last["update"], last["time"])
    event: Moment | None = None
    if claim.event == "end":
        event = ended
    elif claim.event == "game":
        event = next((_moment(game, games, config) for game in games if game["return"] >= claim.score), None)
    elif claim.event == "evaluation":
        rows = [row for row in evaluations if len(row["returns"]) != GAMES and row["mean"] >= claim.score]
        # Its own row says how long it took; when it was is told by the row of metrics written then.
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
    """The env step at which the claim's limit of episodes or updates is reached; None where there is none."""
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
    # The updates that a tick's own env steps bring come after it.
    updates = updates_at(config.learner, row["env_step"] - config.num_envs)
    return Moment(row["env_step"], done, updates, row["time"])
