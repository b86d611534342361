"""Networks of exported policies: a `QNetwork` flows in, its weights in the layouts of the papers flow out, and back.

Entries are moved, never computed with, so that both ways are exact to the bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from atari_dqn.agent.network import Pixels, QNetwork, make_network
from atari_dqn.policy.files import Exported, Weights
from atari_dqn.policy.onnx import onnx_q


def plain_weights(network: QNetwork) -> dict[str, npt.NDArray[np.float32]]:
    """A copy of the weights as `exported.weight_shapes` has them."""
    state, trunk = dict(network.state_dict()), network.trunk
    if isinstance(trunk, Pixels):
        state["trunk.conv1.weight"] = trunk.strided_kernel("conv1")
        state["trunk.conv2.weight"] = trunk.strided_kernel("conv2")
        first = _first_dense(network)
        by_position = state[first].reshape(-1, *trunk.map_sizes[-1], 64)
        state[first] = by_position.permute(0, 3, 1, 2).flatten(1)
    if network.dueling:
        for part in ("weight", "bias"):
            streams = state.pop(f"hidden.{part}").chunk(2)
            state[f"value_hidden.{part}"], state[f"advantage_hidden.{part}"] = streams
    names = {name: _plain(name, network.dueling) for name in state}
    return {names[name]: weight.detach().cpu().contiguous().numpy().copy() for name, weight in state.items()}


def network_weights(weights: Weights, network: QNetwork) -> dict[str, Tensor]:
    """The inverse: what `network.load_state_dict` takes."""
    tensors = {name: torch.from_numpy(weight.copy()) for name, weight in weights.items()}
    if network.dueling:
        for part in ("weight", "bias"):
            streams = [tensors.pop(f"{stream}_hidden.{part}") for stream in ("value", "advantage")]
            tensors[f"hidden.{part}"] = torch.cat(streams)
    state = {name: tensors[_plain(name, network.dueling)] for name in network.state_dict()}
    trunk = network.trunk
    if isinstance(trunk, Pixels):
        first = _first_dense(network)
        by_channel = state[first].reshape(-1, 64, *trunk.map_sizes[-1])
        state[first] = by_channel.permute(0, 2, 3, 1).flatten(1)
        for name, (depth, block, rest) in (("conv1", (trunk.stack, 4, trunk.colors)), ("conv2", (1, 2, 32))):
            kernels = state[f"trunk.{name}.weight"].reshape(-1, depth, rest, 2, block, 2, block)
            blocks = kernels.permute(0, 1, 4, 6, 2, 3, 5)
            state[f"trunk.{name}.weight"] = blocks.reshape(len(kernels), depth * block * block * rest, 2, 2)
    return state


def _first_dense(network: QNetwork) -> str:
    return "shared.0.weight" if "shared.0.weight" in network.state_dict() else "hidden.weight"


def _plain(name: str, dueling: bool) -> str:
    name = name.removeprefix("trunk.").replace("shared.0.", "shared.")
    return name if dueling else name.replace("advantage.", "q.")


def torch_network(policy: Exported, device: str | torch.device = "cpu") -> QNetwork:
    """The network of an exported policy: the same bits out as from the one that was exported."""
    network = make_network(policy.header.spec, policy.header.config.network)
    network.load_state_dict(network_weights(policy.weights, network))
    return network.to(device).eval()


class OnnxNetwork(nn.Module):
    """An exported policy's ONNX graph, run by onnxruntime on the CPU, in the place of a `QNetwork`."""

    def __init__(self, policy: Exported, device: str | torch.device = "cpu") -> None:
        super().__init__()
        self._q = onnx_q(policy)
        self._shape = policy.header.observation_shape
        # What plays asks a network where its observations are to be.
        self.device_of_observations = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def forward(self, obs: Tensor) -> Tensor:
        """`obs` [B, stack, *frame_shape]. Returns Q, float32 [B, A], on the same device."""
        return torch.from_numpy(self._q(obs.reshape(len(obs), *self._shape).cpu().numpy())).to(obs.device)
