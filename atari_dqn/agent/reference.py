"""Q networks as the papers draw them, in plain torch layers: the place to read an architecture, or to add one.

`network.make_network` builds the networks that train. They compute the same functions, with their weights rearranged
where that is faster (`trunks.py`), and `QNetwork.reference` returns this plain twin with the same weights. Exported
files hold the plain one, operations are counted on it, and tests hold both to each other.

A new network is a `PixelTrunk` in this file, its entry in `TRUNKS`, and its name in the setting `--network`; a user's
own is an `nn.Module` elsewhere, for `own_trunk`.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from atari_dqn.config.objects import named
from atari_dqn.config.schema import NetworkConfig
from atari_dqn.config.setting import ConfigError

MIN_PIXELS = 36
"""Smallest height and width of an image: the three convolutions of Mnih et al. 2015 have no padding."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


class ObservationSpec(Protocol):
    """Shapes of observations and actions; `EnvSpec` is one."""

    @property
    def kind(self) -> str: ...
    @property
    def frame_shape(self) -> tuple[int, ...]: ...
    @property
    def stack(self) -> int: ...
    @property
    def num_actions(self) -> int: ...


class Trunk(nn.Module):
    """The layers up to the hidden one: observations in, features [B, features] out."""

    activation: nn.Module
    features: int
    hidden: int
    """Width of the hidden layer that follows."""
    low_precision: ClassVar[bool] = True
    """Whether bfloat16 makes it faster."""
    own: nn.Module
    """The layers of an `own_trunk`."""

    def forward(self, prepared: Tensor) -> Tensor:
        """Features [B, features] of what `prepare` returned."""
        features: Tensor = self.own(prepared)
        return features

    def prepare(self, obs: Tensor) -> Tensor:
        """The input of `forward`: `obs` [B, stack, *frame_shape], checked, scaled and laid out. Uses no weights."""
        raise NotImplementedError

    def to_reference(self, name: str, weight: Tensor) -> Tensor:
        """A weight, or its gradient, in the layout of the reference network: entries moved, nothing computed.

        Its `name` is that in the trunk, or "columns" for the layer which reads the features, [out, features].
        """
        return weight


class PixelTrunk(Trunk):
    """A trunk for stacks of frames (H, W) or (H, W, C)."""

    def __init__(self, spec: ObservationSpec) -> None:
        super().__init__()
        self.stack, self.frame_shape = spec.stack, spec.frame_shape
        self.height, self.width, *rest = spec.frame_shape
        self.colors = math.prod(rest)
        if min(self.height, self.width) < MIN_PIXELS:
            raise ConfigError(
                f"cannot convolve frames of {self.height}x{self.width}: they must have at least {MIN_PIXELS} pixels"
                " each way"
            )

    def check(self, obs: Tensor) -> None:
        """Raise `ValueError` unless `obs` is uint8 [B, stack, *frame_shape]."""
        if obs.dtype != torch.uint8 or obs.shape[1:] != (self.stack, *self.frame_shape):
            expected = ", ".join(map(str, (self.stack, *self.frame_shape)))
            raise ValueError(f"pixels must be uint8 [B, {expected}], not {obs.dtype} {list(obs.shape)}")

    def prepare(self, obs: Tensor) -> Tensor:
        """Planes in [0, 1], [B, stack * colors, H, W], in the dtype of the weights."""
        self.check(obs)
        if obs.ndim == 5:
            obs = obs.permute(0, 1, 4, 2, 3).flatten(1, 2)
        return obs.to(next(self.parameters()).dtype) / 255

    @torch.no_grad()
    def feature_count(self) -> int:
        """Number of features, by a forward pass; to be called once the layers are there."""
        return int(self(torch.zeros(1, self.stack * self.colors, self.height, self.width)).shape[1])


class Nature(PixelTrunk):
    """Mnih et al. 2015, "Human-level control through deep reinforcement learning"."""

    channels = 32, 64, 64
    hidden = 512

    def __init__(self, spec: ObservationSpec, config: NetworkConfig) -> None:
        super().__init__(spec)
        first, second, third = self.channels
        self.conv1 = nn.Conv2d(self.stack * self.colors, first, 8, stride=4)
        self.conv2 = nn.Conv2d(first, second, 4, stride=2)
        self.conv3 = nn.Conv2d(second, third, 3)
        self.activation = ACTIVATIONS[config.activation]()
        self.features = self.feature_count()

    def forward(self, planes: Tensor) -> Tensor:
        x: Tensor = self.activation(self.conv1(planes))
        x = self.activation(self.conv2(x))
        x = self.activation(self.conv3(x))
        return x.flatten(1)


class Narrow(Nature):
    """Half the channels and half the hidden units of Mnih et al. 2015, for a CPU."""

    channels = 16, 32, 32
    hidden = 256


class Small(PixelTrunk):
    """Mnih et al. 2013, "Playing Atari with deep reinforcement learning"."""

    hidden = 256

    def __init__(self, spec: ObservationSpec, config: NetworkConfig) -> None:
        super().__init__(spec)
        self.conv1 = nn.Conv2d(self.stack * self.colors, 16, 8, stride=4)
        self.conv2 = nn.Conv2d(16, 32, 4, stride=2)
        self.activation = ACTIVATIONS[config.activation]()
        self.features = self.feature_count()

    def forward(self, planes: Tensor) -> Tensor:
        x: Tensor = self.activation(self.conv1(planes))
        x = self.activation(self.conv2(x))
        return x.flatten(1)


class Impala(PixelTrunk):
    """The residual network of Espeholt et al. 2018, "IMPALA", figure 3, right, with its channels times a width."""

    hidden = 256

    def __init__(self, spec: ObservationSpec, config: NetworkConfig) -> None:
        super().__init__(spec)
        channels = [self.stack * self.colors, *(config.impala_width * base for base in (16, 32, 32))]
        activation = ACTIVATIONS[config.activation]
        self.blocks = nn.Sequential(*(ImpalaBlock(a, b, activation) for a, b in itertools.pairwise(channels)))
        self.activation = activation()
        self.features = self.feature_count()

    def forward(self, planes: Tensor) -> Tensor:
        x: Tensor = self.activation(self.blocks(planes))
        return x.flatten(1)


class ImpalaBlock(nn.Module):
    """Convolution 3x3, max pooling 3x3/2, two residual blocks."""

    def __init__(self, inputs: int, channels: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.residual1 = Residual(channels, activation)
        self.residual2 = Residual(channels, activation)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.conv(x))
        return self.residual2(self.residual1(pooled))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """`x + conv(activation(conv(activation(x))))`."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.conv2(self.activation(self.conv1(self.activation(x))))
        return x + change


class VectorTrunk(Trunk):
    """A trunk for flattened vectors."""

    low_precision = False

    def __init__(self, spec: ObservationSpec, config: NetworkConfig) -> None:
        super().__init__()
        if not config.mlp_hidden:
            raise ConfigError("--mlp-hidden is empty; a network needs at least one hidden width")
        self.hidden = config.mlp_hidden[-1]
        self.inputs = spec.stack * math.prod(spec.frame_shape)

    def prepare(self, obs: Tensor) -> Tensor:
        """Float32 [B, inputs]."""
        flat = obs.flatten(1)
        if obs.dtype != torch.float32 or flat.shape[1] != self.inputs:
            raise ValueError(f"vectors must be float32 with {self.inputs} numbers, not {obs.dtype} {list(obs.shape)}")
        return flat


class Mlp(VectorTrunk):
    """Linear layers of all but the last of the widths `--mlp-hidden`, on flattened vectors."""

    def __init__(self, spec: ObservationSpec, config: NetworkConfig) -> None:
        super().__init__(spec, config)
        sizes = [self.inputs, *config.mlp_hidden[:-1]]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.activation = ACTIVATIONS[config.activation]()
        self.features = sizes[-1]

    def forward(self, vectors: Tensor) -> Tensor:
        for layer in self.layers:
            vectors = self.activation(layer(vectors))
        return vectors


TRUNKS: dict[str, Callable[[ObservationSpec, NetworkConfig], Trunk]] = {
    "nature": Nature,
    "narrow": Narrow,
    "small": Small,
    "impala": Impala,
}
"""Networks for pixels by the names of the setting `--network`; vectors take the `Mlp`."""


def own_trunk(spec: ObservationSpec, config: NetworkConfig) -> Trunk:
    """The trunk whose layers are a user's own, from the function or class that `--network` names.

    It is called with the shape of an observation: (C, H, W) for pixels, whose planes in [0, 1] come as [B, C, H, W], or
    (N,) for vectors [B, N]. What it returns maps these to features [B, F]; a hidden layer (512 units for pixels) and
    the heads follow. Raises `ConfigError` unless it does that and has only weights that the features depend on.
    """
    trunk = PixelTrunk(spec) if spec.kind == "pixels" else VectorTrunk(spec, config)
    if isinstance(trunk, PixelTrunk):
        trunk.hidden = 512
        shape: tuple[int, ...] = (trunk.stack * trunk.colors, trunk.height, trunk.width)
    else:
        shape = (trunk.inputs,)
    make = named("network", config.network)
    trunk.activation = ACTIVATIONS[config.activation]()
    try:
        trunk.own = make(shape)
        with torch.enable_grad():
            features = trunk(torch.zeros(2, *shape))
            total = features.sum()
    except Exception as error:  # whatever a user's function may do
        raise ConfigError(
            f"--network {config.network}, called with {shape} and its layers with {[2, *shape]}:"
            f" {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if features.ndim != 2 or len(features) != 2:
        raise ConfigError(
            f"--network {config.network} maps {[2, *shape]} to {list(features.shape)}; it must return features [2, F]"
        )
    if list(trunk.buffers()):
        raise ConfigError(
            f"--network {config.network} has buffers (a BatchNorm?), which a target network cannot follow"
        )
    trunk.features = features.shape[1]
    weights = dict(trunk.named_parameters())
    if frozen := [name for name, weight in weights.items() if not weight.requires_grad]:
        raise ConfigError(f"--network {config.network}: {frozen[0]} is frozen; all weights are trained")
    if not weights:
        raise ConfigError(f"--network {config.network} has no weights")
    gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, gradients, strict=True):
        if gradient is None:
            raise ConfigError(f"--network {config.network}: the features do not depend on {name}; remove it")
    return trunk


MakeTrunk = Callable[[ObservationSpec, NetworkConfig], Trunk]


def trunk_maker(spec: ObservationSpec, config: NetworkConfig, known: Mapping[str, MakeTrunk] = TRUNKS) -> MakeTrunk:
    """What makes the trunk of these settings; `known` are those for pixels by name."""
    if ":" in config.network:
        return own_trunk
    return known[config.network] if spec.kind == "pixels" else Mlp


class ReferenceNetwork(nn.Module):
    """A trunk, then one of three heads that end in Q values.

    - Plain (Mnih et al. 2015): a hidden layer, then Q.
    - Dueling, `two_stream` (Wang et al. 2016): value and advantages have a hidden layer each.
    - Dueling, `shared` (labml's annotated experiment): a hidden layer, then two streams of half that width.
    """

    def __init__(self, spec: ObservationSpec, config: NetworkConfig) -> None:
        super().__init__()
        self.trunk = trunk = trunk_maker(spec, config)(spec, config)
        self.activation = ACTIVATIONS[config.activation]()
        self.dueling = config.dueling
        features, width = trunk.features, trunk.hidden
        self.shared: nn.Linear | None = None
        if not config.dueling:
            self.hidden, self.q = nn.Linear(features, width), nn.Linear(width, spec.num_actions)
            return
        if config.head == "shared":
            self.shared = nn.Linear(features, width)
            features, width = width, max(1, width // 2)
        self.value_hidden, self.value = nn.Linear(features, width), nn.Linear(width, 1)
        self.advantage_hidden, self.advantage = nn.Linear(features, width), nn.Linear(width, spec.num_actions)

    def forward(self, observation: Tensor) -> Tensor:
        """Q values, float32 [B, num_actions].

        `observation` is [B, stack, *frame_shape], uint8 for pixels and float32 for vectors.
        """
        x = self.trunk(self.trunk.prepare(observation))
        if not self.dueling:
            q: Tensor = self.q(self.activation(self.hidden(x)))
            return q
        if self.shared is not None:
            x = self.activation(self.shared(x))
        value: Tensor = self.value(self.activation(self.value_hidden(x)))
        advantage: Tensor = self.advantage(self.activation(self.advantage_hidden(x)))
        return value + (advantage - advantage.mean(1, keepdim=True))  # Wang et al. 2016, eq. 9
