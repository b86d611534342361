"""Rows of metrics: every scalar of a training at one moment.

A new metric is an entry of `row_of`. Means over updates come from `METRICS` in agent/learner.py, scores from
evaluation/episodes.py.
"""

import numpy as np

from atari_dqn.evaluation.references import human_normalized
from atari_dqn.training.trainer import Trainer


def row_of(trainer: Trainer, workers_replaced: int, failed_saves: int) -> dict[str, float]:
    """A row of `metrics.jsonl`. Waits for the device; means cover the time since the previous row."""
    learner, run_learner = trainer.learner, trainer.config.learner
    scores = trainer.episodes.metrics()
    learning = learner.pop_metrics()
    if learner.updates:
        learning["learner/skipped_updates"] = learner.skipped().in_all
    return {
        "env_step": trainer.env_steps,
        "update": learner.updates,
        "time": round(trainer.clock.elapsed(), 3),
        **scores,
        **human(trainer, "charts", scores.get("charts/episodic_return")),
        "charts/SPS": round(trainer.clock.steps_per_second(trainer.env_steps), 1),
        "settings/learning_rate": float(str(np.float32(learner.learning_rate.item()))),
        "settings/epsilon": trainer.current_epsilon(),
        "settings/beta": trainer.beta(trainer.env_steps),
        "settings/replay_ratio": run_learner.replay_ratio,
        "settings/target_update_interval": float(run_learner.target_update_interval),
        "settings/max_grad_norm": run_learner.max_grad_norm,
        "run/workers_replaced": float(workers_replaced),
        "run/replay_fill": trainer.replay.fill / (trainer.derived.rows * trainer.derived.num_envs),
        "run/failed_saves": float(failed_saves),
        **learning,
    }


def human(trainer: Trainer, group: str, score: float | None) -> dict[str, float]:
    """`group/human_normalized`; empty without a score or a reference for the game."""
    normalized = None if score is None else human_normalized(trainer.spec.env_id, score)
    return {} if normalized is None else {f"{group}/human_normalized": normalized}
