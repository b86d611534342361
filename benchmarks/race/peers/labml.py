"""labml-nn's annotated DQN experiment: prioritized dueling double DQN with 8 worker processes, as its `main` sets it.

That is, in 0.5.1's `labml_nn/rl/dqn/experiment.py`: 4 steps of 8 workers, then 8 updates of 32 (once the replay of
2^14 is full), Adam of 1e-4, gradients clipped at 0.5, a target every 250 rounds (8,000 env steps), alpha 0.6, beta from
0.4 to 1 over a million rounds, epsilon from 1 to 0.1 over 25,000 rounds and to 0.01 at half a million, rewards as they
are, a game per life. It plays Breakout alone: game and number of actions are constants in its source.

Its own training loop runs. What differs: gym with that game, `tracker.set_queue` and a registered learning rate are
supplied as in `benchmarks.peers`, nothing is reported to a server, and its generator of rounds stops and resumes.
"""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.peers.contestants.old_gym import OldBreakout
from benchmarks.race.peers.session import DONE, STOPPED, Session

ROUNDS, WORKERS, WORKER_STEPS, EPOCHS = 1_000_000, 8, 4, 8
LAYERS = {
    "conv1": "conv.0",
    "conv2": "conv.2",
    "conv3": "conv.4",
    "shared": "lin",
    "value_hidden": "state_value.0",
    "value": "state_value.2",
    "advantage_hidden": "action_value.0",
    "advantage": "action_value.2",
}
"""Names of an exported policy's layers, and labml's."""


def main() -> int:
    session = Session()
    if session.game != "breakout":
        sys.exit(f"labml's experiment cannot play {session.game}: its game is a constant, Breakout")
    torch.set_num_threads(1)
    gym: Any = types.ModuleType("gym")
    gym.make = OldBreakout
    sys.modules["gym"] = gym

    from labml import tracker
    from labml.internal.configs.dynamic_hyperparam import FloatDynamicHyperParam
    from labml_nn.rl.dqn import experiment

    saved = session.load_state() or {"round": 0, "updates": 0}
    done, updates = saved["round"], saved["updates"]
    torch.manual_seed(session.seed + done)
    random.seed(session.seed + done)

    class Trainer(experiment.Trainer):
        def train(self, beta: float) -> None:
            nonlocal updates
            super().train(beta)
            updates += EPOCHS

    def rounds(count: int) -> Iterator[int]:
        nonlocal done
        if done:  # here, for the loop begins with a new target
            for name in ("model", "target_model", "optimizer"):
                getattr(trainer, name).load_state_dict(saved[name])
            trainer.replay_buffer.__dict__.update(saved.pop("replay_buffer"))
        while done < count and not session.stop:
            yield done
            done += 1
            session.tick(done * WORKERS * WORKER_STEPS, updates)

    experiment.monit = types.SimpleNamespace(loop=rounds)
    tracker.set_queue = lambda *_: None
    rate = FloatDynamicHyperParam(1e-4, (0, 1e-3))
    rate.register("learning_rate")
    trainer = Trainer(
        updates=ROUNDS,
        epochs=EPOCHS,
        n_workers=WORKERS,
        worker_steps=WORKER_STEPS,
        mini_batch_size=32,
        update_target_model=250,
        learning_rate=rate,
    )
    trainer.run_training_loop()
    trainer.destroy()
    state = {name: getattr(trainer, name).state_dict() for name in ("model", "target_model", "optimizer")}
    session.save_state(state | {"round": done, "updates": updates, "replay_buffer": vars(trainer.replay_buffer)})

    def q_values(obs: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return trainer.model(experiment.obs_to_torch(obs))

    env_steps = done * WORKERS * WORKER_STEPS
    session.save_weights(env_steps, trainer.model.state_dict(), LAYERS, q_values)
    session.tick(env_steps, updates, last=True)
    return STOPPED if session.stop else DONE


if __name__ == "__main__":
    sys.exit(main())
