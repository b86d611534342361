"""A trained network with what is needed to act with it, from a run's checkpoint or from an exported file."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from atari_dqn.agent.network import make_network
from atari_dqn.agent.reference import ReferenceNetwork
from atari_dqn.agent.weights import check_fit
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import spec_of
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.policy.files import Exported, Header, QFunction
from atari_dqn.policy.source import check_modules
from atari_dqn.runs.checkpoints import CheckpointStore, read_weights
from atari_dqn.runs.directory import LEARNER, check_checkpoint, read_config


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
    """A trained network with its settings and its env."""

    config: TrainConfig
    spec: EnvSpec
    network: nn.Module
    """Observations [B, stack, *frame_shape] to Q values, float32 [B, num_actions]."""
    env_step: int

    def q(self, observations: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Q values, float32 [B, num_actions], of observations [B, *observation_shape] as the env shows them."""
        device = next(self.network.parameters()).device
        stacks = torch.from_numpy(observations).reshape(len(observations), self.spec.stack, *self.spec.frame_shape)
        with torch.inference_mode():
            values: npt.NDArray[np.float32] = self.network(stacks.to(device)).cpu().numpy()
        return values

    def header(self, git_revision: str | None = None) -> Header:
        """The header of a file with this network."""
        return Header(
            config=self.config.replace(run_dir=None),
            env_id=self.spec.env_id,
            kind=self.spec.kind,
            observation_shape=self.spec.observation_shape,
            num_actions=self.spec.num_actions,
            first_action=self.spec.first_action,
            env_step=self.env_step,
            git_revision=git_revision,
        )


def load_policy(
    run_dir: Path,
    which: str = "latest",
    device: str | torch.device = "cpu",
    say: Callable[[str], None] = lambda line: None,
) -> TrainedNetwork:
    """The online network of checkpoint `which` of a run: "best", an env step, or "latest" for the newest valid one.

    `say` is told of each newer checkpoint that is corrupt. Raises `ConfigError` if the run or the checkpoint does not
    exist.
    """
    config = read_config(run_dir)
    check_checkpoint(run_dir, which)
    store = CheckpointStore(run_dir)
    newest, corrupt = store.newest_valid() if which == "latest" else (None, {})
    path = newest or store.find(which)
    for name, reason in corrupt.items():
        say(f"checkpoint {name} skipped: {reason}")
    spec = spec_of(config.env)
    weights = read_weights(path / LEARNER)
    with torch.device("meta"):  # no memory before the shapes are known to be right
        check_fit(make_network(spec, config.network), weights, path)
    network = make_network(spec, config.network)
    network.load_state_dict(weights)
    network.to(device).eval()
    return TrainedNetwork(config, spec, network, int(re.sub(r"\D", "", path.name)))


def load_exported(exported: Exported, file: Path, device: str | torch.device = "cpu") -> TrainedNetwork:
    """The network of an exported file: bit-identical to the one that was exported, or the file's ONNX graph.

    Raises `ConfigError`, naming `file`, if the weights are not those of the network that the header describes.
    """
    header, spec = exported.header, exported.header.spec
    network: nn.Module
    if exported.q is not None:
        network = OnnxNetwork(exported.q, header, device)
    else:
        check_modules(header.config.network.network)
        weights = {name: torch.from_numpy(weight.copy()) for name, weight in exported.weights.items()}
        with torch.device("meta"):  # no memory before the shapes are known to be right
            check_fit(ReferenceNetwork(spec, header.config.network), weights, file)
        network = make_network(spec, header.config.network)
        network.load_state_dict(network.from_reference(weights))
        network.to(device).eval()
    return TrainedNetwork(header.config, spec, network, header.env_step)


class OnnxNetwork(nn.Module):
    """An ONNX graph, run by onnxruntime on the CPU."""

    def __init__(self, q: QFunction, header: Header, device: str | torch.device = "cpu") -> None:
        super().__init__()
        self._q = q
        self._shape = header.observation_shape
        # Callers look at a network's parameters to see on which device its observations must be.
        self.device_of_observations = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def forward(self, obs: Tensor) -> Tensor:
        """Q values, float32 [B, A], of `obs` [B, stack, *frame_shape], on the same device."""
        return torch.from_numpy(self._q(obs.reshape(len(obs), *self._shape).cpu().numpy())).to(obs.device)
