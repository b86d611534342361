"""A trained network of a run, with what is needed to act with it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch

from atari_dqn.agent.network import make_network
from atari_dqn.agent.weights import take_weights
from atari_dqn.config.file import load_config
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec
from atari_dqn.runs.checkpoints import CheckpointStore, load_weights


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A trained network with what is needed to act with it."""

    config: TrainConfig
    spec: EnvSpec
    network: torch.nn.Module
    env_step: int
    skipped: list[str]
    """a line about each newer checkpoint that is none"""


def load_policy(run_dir: Path, which: str = "latest", device: str | torch.device = "cpu") -> TrainedNetwork:
    """The online network of a run's checkpoint; "latest" is the newest whole one.

    Raises `ConfigError` when the run or the checkpoint is not there.
    """
    if not (run_dir / "config.json").is_file():
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json")
    config = load_config(run_dir / "config.json")
    store = CheckpointStore(run_dir)
    try:
        newest, faults = store.newest_whole() if which == "latest" else (None, {})
    except OSError as error:
        raise ConfigError(f"{store.directory}: {error.strerror}") from None
    path = newest or store.find(which)
    skipped = [f"checkpoint {damaged} skipped: {reason}" for damaged, reason in faults.items()]
    spec = env_spec(config.env.env_id, PROTOCOLS[config.env.protocol], config.env.frame_stack)
    network = make_network(spec, config.network).to(device)
    take_weights(network, load_weights(path / "learner.pt", device), path)
    network.eval()
    step = int(re.sub(r"\D", "", path.name))
    return TrainedNetwork(config=config, spec=spec, network=network, env_step=step, skipped=skipped)
