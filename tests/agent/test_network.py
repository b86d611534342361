"""The Q network against the same network written plainly, at every shape it promises to take."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atari_dqn.agent.network import Mlp, Pixels, QNetwork, make_network
from atari_dqn.agent.weights import Precision, follow, in_precision
from atari_dqn.config.schema import NetworkConfig
from atari_dqn.config.setting import ConfigError
from benchmarks.plain_learner import PlainNet, Spec

CPU = torch.device("cpu")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
BREAKOUT = Spec()
VECTOR = Spec(kind="vector", frame_shape=(5,), stack=1, num_actions=3)


def make(spec: Spec = BREAKOUT, **settings: Any) -> QNetwork:
    torch.manual_seed(1)
    return make_network(spec, NetworkConfig(**settings))


def pixels(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def plain_features(trunk: Pixels, obs: Tensor) -> Tensor:
    """The convolutions as the paper draws them, on planes ordered (stack, color)."""
    planes = obs.float() / 255
    if planes.ndim == 5:
        planes = planes.permute(0, 1, 4, 2, 3).flatten(1, 2)
    planes = F.relu(F.conv2d(planes, trunk.strided_kernel("conv1"), trunk.conv1.bias, stride=4))
    planes = F.relu(F.conv2d(planes, trunk.strided_kernel("conv2"), trunk.conv2.bias, stride=2))
    planes = F.relu(F.conv2d(planes, trunk.conv3.weight.contiguous(), trunk.conv3.bias))
    return planes.permute(0, 2, 3, 1).flatten(1)


def test_equals_the_plain_network() -> None:
    network, obs = make(), pixels(8, 4, 84, 84)
    plain = PlainNet(4, 4).take(network)
    torch.testing.assert_close(network(obs), plain(obs), atol=1e-6, rtol=1e-5)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in plain.parameters())


@settings(max_examples=30)
@given(
    height=st.integers(36, 70),
    width=st.integers(36, 70),
    colors=st.sampled_from([0, 1, 2, 3, 4]),
    stack=st.integers(1, 5),
    batch=st.integers(1, 3),
)
def test_any_image_shape_gives_the_plain_convolutions(
    height: int, width: int, colors: int, stack: int, batch: int
) -> None:
    shape = (height, width, colors) if colors else (height, width)
    network = make(Spec(frame_shape=shape, stack=stack))
    trunk = network.trunk
    assert isinstance(trunk, Pixels)
    obs = pixels(batch, stack, *shape)
    features = trunk(trunk.prepare(obs))
    assert features.shape == (batch, trunk.features)
    torch.testing.assert_close(features, plain_features(trunk, obs), atol=1e-6, rtol=1e-5)
    assert network(obs).shape == (batch, 4)


def test_gradients_equal_the_plain_ones() -> None:
    network, obs = make(), pixels(8, 4, 84, 84)
    trunk = network.trunk
    assert isinstance(trunk, Pixels)
    weights = [trunk.conv1.weight, trunk.conv2.weight, trunk.conv3.weight]
    ours = torch.autograd.grad(trunk(trunk.prepare(obs)).square().sum(), weights)
    plain = torch.autograd.grad(plain_features(trunk, obs).square().sum(), weights)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_pixels_are_scaled_once_to_the_unit_interval(precision: Precision) -> None:
    obs = torch.arange(256, dtype=torch.uint8).repeat(28 * 4 * 4 * 2)[: 4 * 84 * 84].view(1, 4, 84, 84)
    prepared = in_precision(make(), precision).prepare(obs)
    assert prepared.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)
    assert prepared.min() == 0
    assert prepared.max() == 1
    assert prepared.float().sort().values.sum().item() == pytest.approx(obs.float().sum().item() / 255, rel=2e-3)


def test_other_inputs_are_refused() -> None:
    network, vectors = make(), make(VECTOR)
    for wrong in (pixels(2, 4, 84, 84).float(), pixels(2, 84, 84, 4), pixels(4, 84, 84)):
        with pytest.raises(ValueError, match=r"uint8 \[B, 4, 84, 84\]"):
            network(wrong)
    for wrong in (torch.zeros(2, 1, 5, dtype=torch.float64), torch.zeros(2, 1, 4), pixels(2, 1, 5)):
        with pytest.raises(ValueError, match="float32 with 5 numbers"):
            vectors(wrong)


def test_a_view_into_a_larger_array_is_as_good_as_a_copy() -> None:
    network, store = make(), pixels(5, 6, 84, 84)
    view = store[1:4:2, 1:5]
    assert not view.is_contiguous()
    assert torch.equal(network(view), network(view.clone()))


@pytest.mark.parametrize("num_actions", [2, 6, 18])
@pytest.mark.parametrize("settings", [{}, {"head": "two_stream"}, {"dueling": False}])
@pytest.mark.parametrize("spec", [Spec(), VECTOR])
def test_q_is_float32_for_any_number_of_actions(spec: Spec, settings: dict[str, Any], num_actions: int) -> None:
    network = make(dataclasses.replace(spec, num_actions=num_actions), **settings)
    obs = pixels(2, 4, 84, 84) if spec.kind == "pixels" else torch.randn(2, 1, 5)
    for precision in PRECISIONS:
        q = in_precision(network, precision)(obs)
        assert q.shape == (2, num_actions)
        assert q.dtype == torch.float32


@pytest.mark.parametrize("head", ["shared", "two_stream"])
@pytest.mark.parametrize("spec", [Spec(), VECTOR])
def test_advantages_are_centred(spec: Spec, head: str) -> None:
    network = make(spec, head=head)
    obs = pixels(2, 4, 84, 84) if spec.kind == "pixels" else torch.randn(2, 1, 5)
    with torch.no_grad():
        before = network(obs)
        network.advantage.bias.add_(100)
        torch.testing.assert_close(network(obs), before, atol=1e-4, rtol=0)
        network.value.bias.add_(100)
        torch.testing.assert_close(network(obs), before + 100, atol=1e-4, rtol=0)
        network.advantage.bias[0].add_(1)
        change = network(obs) - before - 100
    share = 1 / spec.num_actions
    assert change.mean(0).tolist() == pytest.approx([1 - share] + [-share] * (spec.num_actions - 1), abs=1e-3)


def test_each_stream_of_the_papers_head_has_a_layer_of_its_own() -> None:
    network, obs = make(head="two_stream"), pixels(2, 4, 84, 84)
    convolutions = sum(p.numel() for p in network.trunk.parameters())
    heads = 2 * (3136 * 512 + 512) + (512 + 1) * (4 + 1)
    assert sum(p.numel() for p in network.parameters()) == convolutions + heads
    trunk = network.trunk
    hidden = F.relu(F.linear(trunk(trunk.prepare(obs)), network.hidden.weight, network.hidden.bias))
    value = F.linear(hidden[:, :512], network.value.weight, network.value.bias)
    advantage = F.linear(hidden[:, 512:], network.advantage.weight, network.advantage.bias)
    torch.testing.assert_close(network(obs), value + advantage - advantage.mean(1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_without_dueling_it_is_mnihs_network() -> None:
    network, obs = make(dueling=False), pixels(2, 4, 84, 84)
    assert not hasattr(network, "value")
    hidden = F.relu(network.hidden(network.trunk(network.prepare(obs))))
    assert hidden.shape == (2, 512)
    torch.testing.assert_close(network(obs), network.advantage(hidden))


@pytest.mark.parametrize("head", ["shared", "two_stream"])
def test_silu_stands_after_every_layer_but_the_last(head: Any) -> None:
    network, obs = make(VECTOR, activation="silu", head=head, mlp_hidden=(7, 6)), torch.randn(4, 1, 5)
    assert isinstance(network.trunk, Mlp)
    x = F.silu(network.trunk.layers[0](obs.flatten(1)))
    if isinstance(network.shared, nn.Sequential):
        x = F.silu(network.shared[0](x))
    value, advantage = F.silu(network.hidden(x)).chunk(2, dim=1)
    advantage = network.advantage(advantage)
    torch.testing.assert_close(network(obs), network.value(value) + advantage - advantage.mean(1, keepdim=True))


def test_silu_stands_after_convolutions_too(monkeypatch: pytest.MonkeyPatch) -> None:
    network, obs = make(activation="silu"), pixels(2, 4, 84, 84)
    plain = PlainNet(4, 4).take(network)
    monkeypatch.setattr(F, "relu", F.silu)  # by which the plain network is written
    torch.testing.assert_close(network(obs), plain(obs), atol=1e-6, rtol=1e-5)


def test_mlp_is_a_plain_chain() -> None:
    network, obs = make(VECTOR, dueling=False, mlp_hidden=(7, 6, 5)), torch.randn(4, 1, 5)
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert sorted((layer.in_features, layer.out_features) for layer in linear) == [(5, 3), (5, 7), (6, 5), (7, 6)]
    chain = [linear[i] for i in (0, 1, 2, 3)]
    x = obs.flatten(1)
    for layer in chain[:-1]:
        x = F.relu(F.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(network(obs), F.linear(x, chain[-1].weight, chain[-1].bias))


def test_sizes_no_network_fits_are_refused() -> None:
    with pytest.raises(ConfigError, match="35x84"):
        make(Spec(frame_shape=(35, 84)))
    with pytest.raises(ConfigError, match="mlp-hidden"):
        make(VECTOR, mlp_hidden=())


def test_bf16_is_for_convolutions_and_near_fp32() -> None:
    network, obs, vectors, numbers = make(), pixels(8, 4, 84, 84), make(VECTOR), torch.randn(8, 1, 5)
    exact, small = network(obs), vectors(numbers)
    rough, same = in_precision(network, "bf16")(obs), in_precision(vectors, "bf16")(numbers)
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=2e-3, rtol=2e-2)
    assert torch.equal(same, small)


@pytest.mark.parametrize("settings", [{}, {"head": "two_stream"}, {"dueling": False}])
def test_bf16_weights_give_the_features_and_gradients_of_autocast(settings: dict[str, Any]) -> None:
    network, obs = make(**settings), pixels(8, 4, 84, 84)
    low = in_precision(network, "bf16")
    features = low.hidden(low.shared(low.trunk(low.prepare(obs))))
    with torch.autocast("cpu", torch.bfloat16):
        expected = network.hidden(network.shared(network.trunk(network.prepare(obs))))
    assert features.dtype == torch.bfloat16
    assert torch.equal(features, expected)
    features.float().square().sum().backward()
    expected.float().square().sum().backward()
    for mine, theirs in zip(low.parameters(), network.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None and theirs.grad is not None:
            assert torch.equal(mine.grad.float(), theirs.grad)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_network_in_low_precision_follows_the_exact_one(precision: Precision) -> None:
    network, obs = make(), pixels(2, 4, 84, 84)
    low = in_precision(network, precision)
    assert (low is network) == (precision == "fp32")
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.01)
    follow(low, network)
    assert torch.equal(low(obs), in_precision(network, precision)(obs))
