"""Breakout with a network of one's own: `python -m examples.own_network`. See docs/python.md."""

from __future__ import annotations

from torch import nn

import atari_dqn


def network(shape: tuple[int, ...]) -> nn.Module:
    """Two convolutions with SiLU, on planes [B, C, 84, 84]."""
    channels, *_ = shape
    return nn.Sequential(
        nn.Conv2d(channels, 16, 8, stride=4), nn.SiLU(), nn.Conv2d(16, 32, 4, stride=2), nn.SiLU(), nn.Flatten()
    )


def main(total_env_steps: int = 200_000, **settings: int) -> atari_dqn.Run:
    """Train, or resume, and evaluate."""
    run = atari_dqn.train(
        "breakout",
        network="examples.own_network:network",
        run_dir="runs/own-network",
        total_env_steps=total_env_steps,
        verbose=True,
        **settings,  # type: ignore[arg-type]
    )
    print(run.evaluate(episodes=10).summary())
    return run


if __name__ == "__main__":
    main()
