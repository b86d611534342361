"""Comparison of exported files with the network they were made from, on observations of real play."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import numpy.typing as npt

from atari_dqn.cli.command import CommandFailed
from atari_dqn.policy.files import ONNX, SAFETENSORS
from atari_dqn.policy.policy import Policy

COMPARED = 256
"""Number of observations on which the files are compared."""
EPSILON = 0.1
"""Probability of a random action in that play, for some variety."""
TOLERANCE = 1e-4
"""Largest difference in Q of the ONNX file, relative to the largest Q if that is above 1: float32 sums of thousands of
products differ with their order."""


def real_play(policy: Policy, steps: int) -> npt.NDArray[Any]:
    """Observations of `steps` steps in the environment it was trained in, [steps, *observation_shape]."""
    seen = []
    with contextlib.closing(policy.make_env()) as env:
        over = True
        for step in range(steps):
            if over:
                observation, _ = env.reset(seed=step)
            seen.append(np.array(observation))
            observation, _, terminated, truncated, _ = env.step(policy.act(observation, EPSILON))
            over = terminated or truncated
    return np.stack(seen)


def compare(network: Policy, safetensors: Policy, onnx: Policy) -> str:
    """Compare the files with the network on real play. Returns a sentence for the model card.

    Raises `CommandFailed` if the safetensors file is not bit-identical, or the ONNX file not within `TOLERANCE`.
    """
    observations = real_play(safetensors, COMPARED)
    q, exact, near = (policy.q_values(observations) for policy in (network, safetensors, onnx))
    if not np.array_equal(q, exact):
        raise CommandFailed(f"{SAFETENSORS} does not reproduce the network's Q values")
    bound = TOLERANCE * max(1.0, float(np.abs(q).max()))
    difference = float(np.abs(q - near).max())
    if not difference <= bound:
        raise CommandFailed(f"{ONNX} differs from the network by {difference:.2g} in Q; at most {bound:.2g} is allowed")
    same = (q.argmax(1) == near.argmax(1)).sum()
    return (
        f"Run by onnxruntime on {len(q)} observations of real play, its Q values differ from the network's by at most"
        f" {difference:.1e} (tolerance {bound:.1e}); the best action is the same in {same} of them."
    )
