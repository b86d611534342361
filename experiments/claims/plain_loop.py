"""The PyTorch tutorial's CartPole in a plain loop: does our trainer, whose steps and updates overlap, learn as often?

For each seed it prints the first game of 500 within 600 games, if there is one. The settings are those of
`experiments.cartpole_pytorch_tutorial`. Everything else is what a reader of the tutorial would write: a deque, one env,
an update after every step, and nothing of this package's replay, learner or workers.

    python -m experiments.claims.plain_loop --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import math
import random
from collections import deque

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from experiments.cartpole_pytorch_tutorial import CONFIG

GAMES, MARK = 600, 500


def make_network() -> nn.Sequential:
    """A network from observations [B, 4] to Q values [B, 2]."""
    return nn.Sequential(nn.Linear(4, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))


def make_optimizer(online: nn.Module) -> torch.optim.Optimizer:
    """The tutorial's optimizer."""
    return torch.optim.AdamW(online.parameters(), lr=CONFIG.learner.learning_rate, amsgrad=True, fused=True)


def first_whole_game(seed: int, games: int = GAMES, mark: float = MARK) -> tuple[int, int] | None:
    """Play until a game has a return of `mark`: its number and the env steps at its end; None if no game has."""
    learner, schedule = CONFIG.learner, CONFIG.exploration
    random.seed(seed)
    torch.manual_seed(seed)
    env = gym.make("CartPole-v1")
    online, target = make_network(), make_network()
    target.load_state_dict(online.state_dict())
    optimizer = make_optimizer(online)
    replay: deque[tuple[np.ndarray, int, float, np.ndarray, bool]] = deque(maxlen=CONFIG.replay.replay_capacity)
    begin, end = schedule.epsilon_values
    env_steps = 0
    for game in range(games):
        obs, _ = env.reset(seed=seed * 100_000 + game)
        score, terminated, truncated = 0.0, False, False
        while not (terminated or truncated):
            epsilon = end + (begin - end) * math.exp(-env_steps / schedule.epsilon_decay)
            env_steps += 1
            if random.random() > epsilon:
                with torch.no_grad():
                    action = int(online(torch.from_numpy(obs)).argmax())
            else:
                action = random.randrange(2)
            next_obs, reward, terminated, truncated, _ = env.step(action)
            replay.append((obs, action, float(reward), next_obs, terminated))
            obs, score = next_obs, score + float(reward)
            if len(replay) >= learner.batch_size:
                update(online, target, optimizer, random.sample(replay, learner.batch_size))
        if score >= mark:
            return game + 1, env_steps
    return None


def update(
    online: nn.Module,
    target: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: list[tuple[np.ndarray, int, float, np.ndarray, bool]],
) -> None:
    """One step on the Huber loss, gradients clipped by value; then move `target` towards `online`."""
    learner = CONFIG.learner
    obs, actions, rewards, next_obs, terminated = zip(*batch, strict=True)
    discounts = torch.tensor([0.0 if over else CONFIG.replay.gamma for over in terminated])
    with torch.no_grad():
        aims = torch.tensor(rewards) + discounts * target(torch.from_numpy(np.array(next_obs))).max(1).values
    q = online(torch.from_numpy(np.array(obs))).gather(1, torch.tensor(actions)[:, None])[:, 0]
    optimizer.zero_grad()
    nn.functional.smooth_l1_loss(q, aims).backward()
    nn.utils.clip_grad_value_(online.parameters(), learner.max_grad_value)
    optimizer.step()
    with torch.no_grad():
        for slow, weight in zip(target.parameters(), online.parameters(), strict=True):
            slow.lerp_(weight, learner.target_tau)


def main() -> None:
    """Print a line for each seed."""
    parser = argparse.ArgumentParser(description="the PyTorch tutorial's CartPole in a plain loop")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 21)), help="default: 1 to 20, an hour")
    seeds = parser.parse_args().seeds
    if min(seeds) < 0:
        parser.error(f"--seeds {min(seeds)}: a seed must be at least 0")
    torch.set_num_threads(1)
    met = 0
    for tried, seed in enumerate(seeds, 1):
        found = first_whole_game(seed)
        met += found is not None
        what = f"game {found[0]}, env step {found[1]:,}" if found else f"no game of {MARK} within {GAMES}"
        print(f"seed {seed}: {what}; {met} of {tried}", flush=True)


if __name__ == "__main__":
    main()
