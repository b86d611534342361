"""A plain fp32 DQN learner: the baseline of the benchmarks, and the oracle of tests.

It updates the reference network by contiguous NCHW convolutions, three forward passes, `smooth_l1_loss`,
`clip_grad_norm_` and the default `torch.optim.Adam`. Run it to see the updates/s of both, measured in alternation:

    python -m benchmarks.plain_learner
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atari_dqn.agent.device import resolve_precision
from atari_dqn.agent.learner import Learner
from atari_dqn.agent.network import make_network
from atari_dqn.config.schema import LearnerConfig, NetworkConfig
from atari_dqn.replay.base import Batch


class PlainLearner:
    """Prioritized double DQN with hard target copies, on batches of `replay`."""

    def __init__(self, online: nn.Module, replay: FixedReplay, config: LearnerConfig) -> None:
        self.online, self.target = online, copy.deepcopy(online)
        self.replay, self.config = replay, config
        self.optimizer = torch.optim.Adam(online.parameters(), lr=config.learning_rate, eps=config.adam_epsilon)
        self.updates = 0

    def update(self) -> None:
        batch = self.replay.sample(self.config.batch_size)
        with torch.no_grad():
            best = self.online(batch.next_obs).argmax(dim=1, keepdim=True)
            bootstrap = self.target(batch.next_obs).gather(1, best).squeeze(1)
            target = batch.returns + batch.discounts * bootstrap
        q = self.online(batch.obs).gather(1, batch.actions.unsqueeze(1)).squeeze(1)
        loss = (batch.weights * F.smooth_l1_loss(q, target, reduction="none")).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.online.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.replay.update_priorities(batch.ids, (target - q).detach())
        self.updates += 1
        if self.updates % self.config.target_update_interval == 0:
            self.target.load_state_dict(self.online.state_dict())


class FixedReplay:
    """A replay of a few given batches, drawn in turn, that keeps the last TD errors."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches
        self.drawn = 0
        self.td_errors: list[Tensor] = []

    def sample(self, batch_size: int) -> Batch:
        batch = self.batches[self.drawn % len(self.batches)]
        assert len(batch.ids) == batch_size
        self.drawn += 1
        return batch

    def update_priorities(self, ids: Tensor, td_errors: Tensor) -> None:
        self.td_errors = [*self.td_errors[-99:], td_errors]


def random_batch(
    generator: torch.Generator, batch_size: int, obs_shape: tuple[int, ...] = (4, 84, 84), num_actions: int = 4
) -> Batch:
    """A batch of random transitions: uint8 pixels for images, float32 vectors otherwise."""

    def observations() -> Tensor:
        if len(obs_shape) < 3:
            return torch.randn((batch_size, *obs_shape), generator=generator)
        return torch.randint(256, (batch_size, *obs_shape), dtype=torch.uint8, generator=generator)

    return Batch(
        obs=observations(),
        actions=torch.randint(num_actions, (batch_size,), generator=generator),
        returns=torch.randn(batch_size, generator=generator).clamp(-1, 1),
        discounts=0.99 * torch.randint(2, (batch_size,), generator=generator).float(),
        next_obs=observations(),
        weights=torch.rand(batch_size, generator=generator) * 0.9 + 0.1,
        ids=torch.arange(batch_size),
    )


@dataclasses.dataclass(frozen=True)
class Spec:
    """What `make_network` needs to know about an environment; Breakout by default."""

    kind: str = "pixels"
    frame_shape: tuple[int, ...] = (84, 84)
    stack: int = 4
    num_actions: int = 4


def measure(rounds: int = 100, updates_per_round: int = 2, batch_size: int = 32) -> dict[str, float]:
    """Median seconds per update of each learner, measured in short turns in alternation.

    `keep_freed_memory` holds for the whole process, so the plain learner benefits from it too.
    """
    config = LearnerConfig(batch_size=batch_size)
    generator = torch.Generator().manual_seed(1)
    replay = FixedReplay([random_batch(generator, batch_size) for _ in range(8)])
    spec, device = Spec(), torch.device("cpu")
    learners: dict[str, Callable[[], None]] = {}
    for precision in ("fp32", "bf16"):
        resolved = resolve_precision(precision, device, deterministic=False)
        ours = Learner(
            lambda: make_network(spec, NetworkConfig()), replay, config, seed=1, device=device, precision=resolved
        )
        learners[precision] = ours.update
    learners["plain"] = PlainLearner(ours.online.reference(), replay, config).update
    times: dict[str, list[float]] = {name: [] for name in learners}
    for round_ in range(rounds + 5):
        for name, update in learners.items():
            start = time.perf_counter()
            for _ in range(updates_per_round):
                update()
            if round_ >= 5:
                times[name].append((time.perf_counter() - start) / updates_per_round)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="updates/s of our learner and of a plain one")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)  # as `set_up_torch`
    torch.set_num_threads(arguments.threads)
    seconds = measure(arguments.rounds, batch_size=arguments.batch_size)
    for name, value in seconds.items():
        print(
            f"{name:6} {1e3 * value:7.2f} ms/update {1 / value:8.1f} updates/s {seconds['plain'] / value:6.2f} x plain"
        )


if __name__ == "__main__":
    main()
