"""Evaluates a peer's weights as ours are: `python -m benchmarks.race.peers.evaluate RUN_DIR GAME [flags of evaluate]`.

The weights of `RUN_DIR/weights.npz` become a run directory of ours, with the network of Mnih et al. 2015 or labml's
dueling one, in `RUN_DIR/as_ours`; its `evaluations.jsonl` is the peer's. The network must give the Q values that the
peer's own gave for the same observations.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from atari_dqn import evaluate
from atari_dqn.agent.network import QNetwork, make_network
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import resolve_env_id, spec_of
from atari_dqn.runs.checkpoint_files import Snapshot
from atari_dqn.runs.checkpoints import CheckpointStore


def main() -> int:
    run_dir, game, *rules = sys.argv[1:]
    place = Path(run_dir) / "as_ours"
    place.mkdir(exist_ok=True)
    with np.load(Path(run_dir) / "weights.npz") as file:
        arrays = {name: file[name] for name in file.files}
    env_step = int(arrays.pop("env_step"))
    config, network = as_ours(resolve_env_id(game), arrays)
    (place / "config.json").write_text(json.dumps(config.to_dict()))
    learner = {"online": network.state_dict()}
    CheckpointStore(place).save(env_step, Snapshot({}, learner, {}, torch.zeros(1, 1)), score=None)
    return evaluate.main([str(place), *rules])


def as_ours(env_id: str, arrays: dict[str, np.ndarray]) -> tuple[TrainConfig, QNetwork]:
    """Settings and network of a peer's `layers`, `observations` and `q_values` (see `Session.save_weights`).

    Raises `ValueError` if our network's Q values of the observations are others.
    """
    expected = arrays.pop("q_values")
    observations = torch.from_numpy(arrays.pop("observations"))
    config = TrainConfig().replace(env_id=env_id, dueling="value.weight" in arrays, head="shared")
    network = make_network(spec_of(config.env), config.network)
    plain = {("trunk." if name.startswith("conv") else "") + name: torch.from_numpy(w) for name, w in arrays.items()}
    network.load_state_dict(network.from_reference(plain))
    with torch.no_grad():
        q_values = network(observations).numpy()
    if not np.allclose(q_values, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max()):
        raise ValueError(f"the peer's network and ours differ by up to {np.abs(q_values - expected).max():g} in Q")
    return config, network


if __name__ == "__main__":
    sys.exit(main())
