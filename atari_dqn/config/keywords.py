"""The settings of a run as keyword arguments, for `typing.Unpack`; a test keeps them in step with schema.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict


class Settings(TypedDict, total=False):
    """Every setting by its flag's name; `train --help` and docs/settings.md explain them."""

    protocol: Literal["nature", "machado"]
    frame_stack: int
    num_workers: int
    envs_per_worker: int
    worker_deadline: float
    worker_restarts: int
    replay: Literal["prioritized", "uniform", "newest"]
    replay_capacity: int
    n_step: int
    gamma: float
    clip_rewards: bool
    alpha: float
    beta_values: Sequence[float]
    beta_at: Sequence[float]
    impala_width: int
    dueling: bool
    head: Literal["shared", "two_stream"]
    mlp_hidden: Sequence[int]
    activation: Literal["relu", "silu"]
    learning_rate: float
    learning_rate_factors: Sequence[float]
    learning_rate_at: Sequence[float]
    optimizer: Literal["adam", "adamw"]
    adam_epsilon: float
    batch_size: int
    replay_ratio: float
    learning_starts: int
    target_update_interval: int
    target_tau: float
    loss: Literal["huber", "mse"]
    double_q: bool
    max_grad_norm: float
    max_grad_value: float
    precision: Literal["auto", "fp32", "bf16"]
    cuda_graph: bool
    epsilon_values: Sequence[float]
    epsilon_at: Sequence[float]
    epsilon_decay: float
    epsilon_ladder: bool
    total_env_steps: int
    schedule_env_steps: int
    seed: int
    device: Literal["auto", "cpu", "cuda"]
    deterministic: bool
    torch_threads: int
    run_dir: str | Path | None
    log_interval: int
    checkpoint_interval: int
    checkpoint_minutes: float
    keep_checkpoints: int
    eval_interval: int
    eval_episodes: int
    stop_score: float | None
    eval_epsilon: float
    record_interval: int
