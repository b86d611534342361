"""The Q network. Flows in: observations as the replay holds them, uint8 pixels or float32 vectors. Flows out: float32
Q values, one per action.

Pixels are scaled to [0, 1] here and nowhere else. A network computes in the precision its weights are kept in;
`in_precision` makes one whose convolutions and hidden layers are bfloat16, while the last layers and the sum of value
and advantages stay float32, so that Q values which differ by a little still differ.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atari_dqn.config.schema import NetworkConfig
from atari_dqn.config.setting import ConfigError

MIN_PIXELS = 36
"""The least height and width that three unpadded convolutions leave something of."""
HIDDEN = 512
"""Width of the layer behind the convolutions (Mnih et al. 2015)."""

Activation = Literal["relu", "silu"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": functools.partial(nn.ReLU, inplace=True), "silu": nn.SiLU}
"""In place where the layer before does not need what it put out."""


class ObservationSpec(Protocol):
    """What a network must know of an env; `EnvSpec` is one."""

    @property
    def kind(self) -> str: ...
    @property
    def frame_shape(self) -> tuple[int, ...]: ...
    @property
    def stack(self) -> int: ...
    @property
    def num_actions(self) -> int: ...


def make_network(spec: ObservationSpec, config: NetworkConfig) -> QNetwork:
    """A freshly initialised network for observations [B, stack, *frame_shape] and `num_actions` actions.

    Raises `ConfigError` for frames too small to convolve and for an MLP without hidden layers.
    """
    trunk: Pixels | Mlp
    if spec.kind == "pixels":
        trunk, width = Pixels(spec.stack, spec.frame_shape, config.activation), HIDDEN
    elif config.mlp_hidden:
        *widths, width = config.mlp_hidden
        trunk = Mlp(spec.stack * int(torch.Size(spec.frame_shape).numel()), widths, config.activation)
    else:
        raise ConfigError("--mlp-hidden is empty; a network needs at least one hidden width")
    return QNetwork(trunk, width, spec.num_actions, dueling=config.dueling, head=config.head)


class QNetwork(nn.Module):
    """Trunk, hidden layer, and linear or dueling Q values.

    Dueling (Wang et al. 2016, eq. 9): `Q = V + A - mean(A)`. With the head `shared` one layer of `width` precedes two
    streams of half that width (the labml experiment's 512, then 256 and 256); with `two_stream` each stream has a
    layer of `width` of its own upon the trunk (the paper's). Without dueling there is one layer of `width` (Mnih 2015).
    """

    def __init__(
        self, trunk: Pixels | Mlp, width: int, num_actions: int, *, dueling: bool, head: Literal["shared", "two_stream"]
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.dueling = dueling
        features = trunk.features
        self.activation = trunk.activation
        self.shared: nn.Module = nn.Identity()
        if dueling and head == "shared":
            self.shared = nn.Sequential(Wide(features, width), self.activation)
            features, width = width, max(1, width // 2)
        # The hidden layers of both streams read the same features, so they are one matrix product.
        self.hidden = Wide(features, 2 * width if dueling else width)
        self.advantage = nn.Linear(width, num_actions)
        if dueling:
            self.value = nn.Linear(width, 1)

    def forward(self, obs: Tensor) -> Tensor:
        """`obs` [B, stack, *frame_shape], uint8 for pixels and float32 for vectors. Returns Q, float32 [B, A].

        Raises `ValueError` for another dtype or shape.
        """
        return self.q_values(self.prepare(obs))

    def prepare(self, obs: Tensor) -> Tensor:
        """The trunk's input, without weights or gradient: several networks may share one."""
        return self.trunk.prepare(obs)

    def q_values(self, prepared: Tensor) -> Tensor:
        """Q, float32 [B, A], of what `prepare` returned."""
        hidden = self.activation(self.hidden(self.shared(self.trunk(prepared)))).float()
        if not self.dueling:
            return self.advantage(hidden)
        of_value, of_advantage = hidden.chunk(2, dim=1)
        advantage = self.advantage(of_advantage)
        return self.value(of_value) + advantage - advantage.mean(1, keepdim=True)


class Wide(nn.Linear):
    """A linear layer that, when large, leaves its float32 products on a CPU to oneDNN.

    On AMD processors that takes half the time of MKL, torch's default there. For small ones the detour costs more.
    """

    def forward(self, x: Tensor) -> Tensor:
        large = self.weight.numel() >= 1 << 18
        if large and x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
            return F.linear(x.to_mkldnn(), self.weight, self.bias).to_dense()
        return super().forward(x)


class Pixels(nn.Module):
    """The convolutions of Mnih et al. 2015 (32 of 8x8/4, 64 of 4x4/2, 64 of 3x3/1) on stacks of (H, W) or (H, W, C).

    The strided ones are computed, and their weights kept, as 2x2/1 on blocks of 4x4 pixels and of 2x2 features: the
    same sums, but of whole cache lines, and quicker to differentiate. `strided_kernel` shows them as the paper does.
    """

    low_precision = True

    def __init__(self, stack: int, frame_shape: tuple[int, ...], activation: Activation = "relu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]()
        height, width, *rest = frame_shape
        if min(height, width) < MIN_PIXELS:
            raise ConfigError(
                f"frames of {height}x{width} are too small to convolve; the least is {MIN_PIXELS} each way"
            )
        self.stack, self.frame_shape, self.colors = stack, frame_shape, rest[0] if rest else 1
        self.conv1 = nn.Conv2d(stack * 4 * 4 * self.colors, 32, 2)
        self.conv2 = nn.Conv2d(2 * 2 * 32, 64, 2)
        self.conv3 = nn.Conv2d(64, 64, 3)
        first = (height // 4 - 1, width // 4 - 1)
        second = (first[0] // 2 - 1, first[1] // 2 - 1)
        third = (second[0] - 2, second[1] - 2)
        self.map_sizes = (first, second, third)
        """height and width of what each layer puts out"""
        self.features = 64 * third[0] * third[1]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def prepare(self, obs: Tensor) -> Tensor:
        """Pixels in [0, 1] as [B, stack * 16 * colors, H // 4, W // 4], channels last, in the weights' dtype."""
        if obs.dtype != torch.uint8 or obs.shape[1:] != (self.stack, *self.frame_shape):
            expected = [self.stack, *self.frame_shape]
            raise ValueError(f"pixels must be uint8 [B, {str(expected)[1:]}, not {obs.dtype} {list(obs.shape)}")
        high, wide = self.frame_shape[0] // 4, self.frame_shape[1] // 4
        # Rows and columns beyond a multiple of 4 are out of the strided kernel's reach anyway.
        words = obs[:, :, : 4 * high, : 4 * wide].contiguous().view(len(obs), self.stack, high, 4, -1).view(torch.int32)
        # Whole rows first, then words within a row: two copies that torch makes fast instead of one it makes slowly.
        rows = words.transpose(1, 2).reshape(len(obs), high, self.stack * 4, wide, self.colors)
        pixels = rows.transpose(2, 3).contiguous().view(len(obs), high, wide, -1).view(torch.uint8)
        return pixels.to(self.conv1.weight.dtype).mul_(1 / 255).permute(0, 3, 1, 2)

    def forward(self, prepared: Tensor) -> Tensor:
        """Features [B, rows * columns * 64], in that order, so that channels-last activations need no copy."""
        x = self.activation(self.conv1(prepared))
        x = self.activation(self.conv2(_blocks_of_2x2(x)))
        x = self.activation(self.conv3(x))
        return x.permute(0, 2, 3, 1).flatten(1)

    def strided_kernel(self, layer: Literal["conv1", "conv2"]) -> Tensor:
        """The weight of a strided layer, [32, stack * colors, 8, 8] or [64, 32, 4, 4]."""
        conv, (depth, block, rest) = {
            "conv1": (self.conv1, (self.stack, 4, self.colors)),
            "conv2": (self.conv2, (1, 2, 32)),
        }[layer]
        blocks = conv.weight.reshape(-1, depth, block, block, rest, 2, 2)
        return blocks.permute(0, 1, 4, 5, 2, 6, 3).reshape(len(blocks), depth * rest, 2 * block, 2 * block)


def _blocks_of_2x2(x: Tensor) -> Tensor:
    """[B, C, H, W] as [B, 4C, H // 2, W // 2], channels last; an odd row or column is out of a 4x4/2 kernel's reach."""
    high, wide = x.shape[2] // 2, x.shape[3] // 2
    pixels = x.permute(0, 2, 3, 1)[:, : 2 * high, : 2 * wide]
    blocks = pixels.unflatten(2, (wide, 2)).unflatten(1, (high, 2)).transpose(2, 3)
    return blocks.reshape(len(x), high, wide, -1).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Linear layers, each with its activation, on flattened vectors; without any, the vectors themselves."""

    low_precision = False

    def __init__(self, inputs: int, widths: list[int], activation: Activation = "relu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]()
        sizes = [inputs, *widths]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.inputs, self.features = inputs, sizes[-1]

    def prepare(self, obs: Tensor) -> Tensor:
        """Float32 [B, inputs]."""
        flat = obs.flatten(1)
        if obs.dtype != torch.float32 or flat.shape[1] != self.inputs:
            raise ValueError(f"vectors must be float32 with {self.inputs} numbers, not {obs.dtype} {list(obs.shape)}")
        return flat

    def forward(self, prepared: Tensor) -> Tensor:
        for layer in self.layers:
            prepared = self.activation(layer(prepared))
        return prepared
