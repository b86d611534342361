"""The annotated DQN experiment of labml-nn in its own training loop: prioritized dueling double DQN, 8 worker
processes.

The libraries it was written for have changed, so this supplies what is missing: gym with an Atari game,
`tracker.set_queue`, and a registered learning rate, as in its `main`. Nothing is reported to a labml server, and replay
size and epsilon are the benchmark's. Everything else is its own, the settings in `main` included (four env steps of 8
workers, then 8 updates of 32).
"""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.peers.contestants.old_gym import OldBreakout
from benchmarks.peers.turns import Turns

WORKER_STEPS, EPOCHS = 4, 8


def main() -> None:
    with Turns("labml-nn") as turns:
        work = turns.work
        torch.set_num_threads(work.torch_threads)
        torch.manual_seed(work.seed)
        gym: Any = types.ModuleType("gym")
        gym.make = OldBreakout
        sys.modules["gym"] = gym

        from labml import monit, tracker
        from labml.internal.configs.dynamic_hyperparam import FloatDynamicHyperParam
        from labml_nn.rl.dqn import experiment

        class Trainer(experiment.Trainer):
            trained = 0

            def train(self, beta: float) -> None:
                super().train(beta)
                self.trained += EPOCHS

        def loop(iterations: int) -> Iterator[int]:
            for iteration in monit.loop(iterations):
                yield iteration
                turns.tick((iteration + 1) * WORKER_STEPS * work.num_envs, trainer.trained)

        # The experiment's own capacity is a constant in its source.
        replay = experiment.ReplayBuffer
        experiment.ReplayBuffer = lambda capacity, alpha: replay(work.replay_capacity, alpha)
        experiment.monit = types.SimpleNamespace(loop=loop)
        tracker.set_queue = lambda *_: None
        rate = FloatDynamicHyperParam(work.learning_rate, (0, 1e-3))
        rate.register("learning_rate")
        trainer = Trainer(
            updates=1_000_000,
            epochs=EPOCHS,
            n_workers=work.num_envs,
            worker_steps=WORKER_STEPS,
            mini_batch_size=work.batch_size,
            update_target_model=work.target_update_interval // EPOCHS,
            learning_rate=rate,
        )
        trainer.exploration_coefficient = lambda _: work.epsilon
        trainer.run_training_loop()


if __name__ == "__main__":
    main()
