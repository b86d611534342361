"""Our own training loop: one environment in each of 8 workers, default settings except for those of the work."""

from __future__ import annotations

import json
import sys

from atari_dqn.agent.device import set_up_torch
from atari_dqn.agent.schedules import Piecewise
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import spec_of
from atari_dqn.training.assembly import local_trainer
from benchmarks.peers.turns import Turns


def main() -> None:
    settings = json.loads(sys.argv[2])
    with Turns("atari-dqn") as turns:
        work = turns.work
        config = TrainConfig().replace(
            env_id="ALE/Breakout-v5",
            num_workers=work.num_envs,
            envs_per_worker=1,
            replay_capacity=work.replay_capacity,
            learning_starts=work.learning_starts,
            batch_size=work.batch_size,
            replay_ratio=work.batch_size / work.env_steps_per_update,
            target_update_interval=work.target_update_interval,
            learning_rate=work.learning_rate,
            seed=work.seed,
            device="cpu",
            torch_threads=work.torch_threads,
            **settings,
        )
        set_up_torch(config)
        trainer = local_trainer(config, spec_of(config.env))
        trainer.epsilon = Piecewise(((0, work.epsilon),))
        trainer.start()
        while True:
            trainer.iterate()
            turns.tick(trainer.env_steps, trainer.learner.updates)


if __name__ == "__main__":
    main()
