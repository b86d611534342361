"""Evaluates a peer's weights as ours are: `python -m benchmarks.race.peers.evaluate RUN_DIR GAME [flags of evaluate]`.

The weights of `RUN_DIR/weights.npz` become a run directory of ours, with the network of Mnih et al. 2015, in
`RUN_DIR/as_ours`; its `evaluations.jsonl` is the peer's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from atari_dqn import evaluate
from atari_dqn.agent.network import make_network
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import resolve_env_id, spec_of
from atari_dqn.runs.checkpoint_files import Snapshot
from atari_dqn.runs.checkpoints import CheckpointStore


def main() -> int:
    run_dir, game, *rules = sys.argv[1:]
    place = Path(run_dir) / "as_ours"
    place.mkdir(exist_ok=True)
    config = TrainConfig().replace(env_id=resolve_env_id(game), dueling=False)
    (place / "config.json").write_text(json.dumps(config.to_dict()))
    spec = spec_of(config.env)
    network = make_network(spec, config.network)
    with np.load(Path(run_dir) / "weights.npz") as file:
        weights = {name: file[name] for name in file.files}
    env_step = int(weights.pop("env_step"))
    plain = {("trunk." if name.startswith("conv") else "") + name: torch.from_numpy(w) for name, w in weights.items()}
    network.load_state_dict(network.from_reference(plain))
    learner = {"online": network.state_dict()}
    CheckpointStore(place).save(env_step, Snapshot({}, learner, {}, torch.zeros(1, 1)), score=None)
    return evaluate.main([str(place), *rules])


if __name__ == "__main__":
    sys.exit(main())
