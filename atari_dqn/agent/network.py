"""The Q network that plays and trains: a trunk, a hidden layer, Q values.

`reference.py` shows the architectures plainly, and is where to add one; here they are arranged for speed. Pixels are
scaled to [0, 1] by the trunk and nowhere else. A network computes in the precision of its weights.
`weights.in_precision` makes one whose trunk and hidden layers are bfloat16; the last layers and the sum of value and
advantages stay float32, so that Q values with small differences keep them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atari_dqn.agent.reference import ObservationSpec, ReferenceNetwork
from atari_dqn.agent.trunks import make_trunk
from atari_dqn.config.schema import NetworkConfig


def make_network(spec: ObservationSpec, config: NetworkConfig) -> QNetwork:
    """A freshly initialised network. Raises `ConfigError` as `trunks.make_trunk`."""
    return QNetwork(spec, config)


class QNetwork(nn.Module):
    """Trunk, hidden layer, and plain or dueling Q values; see `ReferenceNetwork` for the heads.

    Both streams of a dueling head read the same features, so their hidden layers are one matrix product.
    """

    is_own = False
    """Whether some layers are a user's, which may act differently in training mode"""

    def __init__(self, spec: ObservationSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        self.trunk = trunk = make_trunk(spec, config)
        self.activation = trunk.activation
        self.is_own = ":" in config.network
        self.dueling = config.dueling
        features, width = trunk.features, trunk.hidden
        self.shared: nn.Module = nn.Identity()
        if config.dueling and config.head == "shared":
            self.shared = nn.Sequential(Wide(features, width), self.activation)
            features, width = width, max(1, width // 2)
        self.hidden = Wide(features, 2 * width if config.dueling else width)
        self.advantage = nn.Linear(width, spec.num_actions)
        if config.dueling:
            self.value = nn.Linear(width, 1)

    def forward(self, obs: Tensor) -> Tensor:
        """Q values, float32 [B, num_actions].

        `obs` is [B, stack, *frame_shape], uint8 for pixels and float32 for vectors; `ValueError` otherwise.
        """
        return self.q_values(self.prepare(obs))

    def prepare(self, obs: Tensor) -> Tensor:
        """The trunk's input, which several networks may share: it depends on no weights and has no gradient."""
        return self.trunk.prepare(obs)

    def q_values(self, prepared: Tensor) -> Tensor:
        """Q values, float32 [B, num_actions], from the result of `prepare`."""
        hidden = self.activation(self.hidden(self.shared(self.trunk(prepared)))).float()
        if not self.dueling:
            q: Tensor = self.advantage(hidden)
            return q
        of_value, of_advantage = hidden.chunk(2, dim=1)
        value: Tensor = self.value(of_value)
        advantage: Tensor = self.advantage(of_advantage)
        return value + advantage - advantage.mean(1, keepdim=True)

    @torch.no_grad()
    def reference(self) -> ReferenceNetwork:
        """The plain network with a copy of these weights, on the CPU."""
        plain = ReferenceNetwork(self.spec, self.config)
        plain.load_state_dict(self.to_reference(self.state_dict()))
        return plain.train(self.training)

    def to_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state_dict of this network, or gradients by name, as the reference network names and arranges them."""
        has_shared = not isinstance(self.shared, nn.Identity)
        result = {}
        for name, value in state.items():
            layer, _, part = name.rpartition(".")
            if layer.startswith("trunk."):
                result[name] = self.trunk.to_reference(name.removeprefix("trunk."), value)
                continue
            if name == ("shared.0.weight" if has_shared else "hidden.weight"):
                value = self.trunk.to_reference("columns", value)
            if layer == "hidden" and self.dueling:
                result[f"value_hidden.{part}"], result[f"advantage_hidden.{part}"] = value.chunk(2)
            elif layer == "advantage" and not self.dueling:
                result[f"q.{part}"] = value
            else:
                result[name.replace("shared.0.", "shared.")] = value
        return result

    def from_reference(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `to_reference`. That only moves entries, so moving their indices shows where each one goes."""
        own = self.state_dict()
        sizes = [value.numel() for value in own.values()]
        numbers = dict(zip(own, torch.arange(sum(sizes)).split(sizes), strict=True))
        flat = torch.empty(sum(sizes))
        for name, places in self.to_reference({name: n.view_as(own[name]) for name, n in numbers.items()}).items():
            flat[places.flatten()] = state[name].flatten()
        return {name: flat[n].view_as(own[name]) for name, n in numbers.items()}


class Wide(nn.Linear):
    """A linear layer that computes large float32 products on a CPU by oneDNN.

    On AMD processors that takes half the time of MKL, torch's default there. For small products it is slower.
    """

    def forward(self, x: Tensor) -> Tensor:
        large = self.weight.numel() >= 1 << 18
        if large and x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            return F.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()
        return super().forward(x)
