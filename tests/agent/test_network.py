"""Q networks against the plain reference networks, for every architecture, head and activation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from atari_dqn.agent.network import QNetwork, make_network
from atari_dqn.agent.reference import Mlp, Residual
from atari_dqn.agent.weights import Precision, follow, in_precision
from atari_dqn.config.schema import NetworkConfig
from atari_dqn.config.setting import ConfigError
from benchmarks.plain_learner import Spec

CPU = torch.device("cpu")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
BREAKOUT = Spec()
VECTOR = Spec(kind="vector", frame_shape=(5,), stack=1, num_actions=3)


def make(spec: Spec = BREAKOUT, **settings: Any) -> QNetwork:
    torch.manual_seed(1)
    return make_network(spec, NetworkConfig(**settings))


def pixels(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


HEADS: list[dict[str, Any]] = [{"head": "shared"}, {"head": "two_stream"}, {"dueling": False}]
PIXEL_NETWORKS = ("nature", "narrow", "small", "impala")
CASES = [
    *((Spec(frame_shape=(44, 37), stack=2), {"network": name, **head}) for name in PIXEL_NETWORKS for head in HEADS),
    *((VECTOR, {"mlp_hidden": (7, 6), **head}) for head in HEADS),
]
"""Every network with every head."""


def observations(spec: Spec, batch: int) -> Tensor:
    if spec.kind == "pixels":
        return pixels(batch, spec.stack, *spec.frame_shape)
    return torch.randn(batch, spec.stack, *spec.frame_shape, generator=torch.Generator().manual_seed(1))


def gradients(network: nn.Module, obs: Tensor) -> dict[str, Tensor]:
    """Of a sum that weighs each Q value differently."""
    q = network(obs)
    weights = torch.linspace(-1, 1, q.numel()).view(q.shape)
    (weights * q.square()).sum().backward()
    return {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize(("spec", "settings"), CASES)
def test_the_fast_network_computes_what_the_papers_draw(spec: Spec, settings: dict[str, Any], activation: str) -> None:
    network, obs = make(spec, activation=activation, **settings), observations(spec, 5)
    plain = network.reference()
    torch.testing.assert_close(network(obs), plain(obs), atol=1e-6, rtol=1e-5)
    ours, theirs = network.to_reference(gradients(network, obs)), gradients(plain, obs)
    assert ours.keys() == theirs.keys() == dict(plain.named_parameters()).keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("spec", "settings"), CASES)
def test_weights_move_to_the_plain_layout_and_back_to_the_bit(spec: Spec, settings: dict[str, Any]) -> None:
    network = make(spec, **settings)
    own, plain = network.state_dict(), network.reference().state_dict()
    back = network.from_reference(plain)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)
    entries = [torch.cat([weight.flatten() for weight in state.values()]).sort().values for state in (own, plain)]
    assert torch.equal(*entries), "the same numbers"
    other = make_network(spec, network.config)
    other.load_state_dict(back)
    obs = observations(spec, 2)
    assert torch.equal(other(obs), network(obs))


@settings(max_examples=30)
@given(
    height=st.integers(36, 70),
    width=st.integers(36, 70),
    colors=st.sampled_from([0, 1, 2, 3, 4]),
    stack=st.integers(1, 5),
    batch=st.integers(1, 3),
    name=st.sampled_from(PIXEL_NETWORKS),
)
def test_any_image_shape_gives_the_plain_features(
    height: int, width: int, colors: int, stack: int, batch: int, name: str
) -> None:
    shape = (height, width, colors) if colors else (height, width)
    network = make(Spec(frame_shape=shape, stack=stack), network=name)
    obs = pixels(batch, stack, *shape)
    features, plain = network.trunk(network.prepare(obs)), network.reference().trunk
    assert features.shape == (batch, network.trunk.features)
    assert plain.features == network.trunk.features
    # Rounded, as the order of the features may be another one.
    for one, other in zip(features, plain(plain.prepare(obs)), strict=True):
        torch.testing.assert_close(one.sort().values, other.sort().values, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(network(obs), network.reference()(obs), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "trunk", "heads"),
    [
        # Mnih et al. 2015: 32 of 8x8, 64 of 4x4, 64 of 3x3 on 4 planes; 512; 4 actions
        ({"dueling": False}, 8224 + 32832 + 36928, 3136 * 512 + 512 + 512 * 4 + 4),
        # half of each
        ({"dueling": False, "network": "narrow"}, 4112 + 8224 + 9248, 1568 * 256 + 256 + 256 * 4 + 4),
        # Mnih et al. 2013: 16 of 8x8, 32 of 4x4; 256
        ({"dueling": False, "network": "small"}, 4112 + 8224, 2592 * 256 + 256 + 256 * 4 + 4),
        # Espeholt et al. 2018: 16, 32, 32 channels, 5 convolutions 3x3 each; 11x11 positions; 256
        (
            {"dueling": False, "network": "impala"},
            (4 * 16 + 4 * 16 * 16 + 16 * 32 + 4 * 32 * 32 + 5 * 32 * 32) * 9 + 5 * 16 + 10 * 32,
            3872 * 256 + 256 + 256 * 4 + 4,
        ),
        ({"network": "small"}, 12336, 2592 * 256 + 256 + 2 * (256 * 128 + 128) + 128 * 5 + 5),
        ({"head": "two_stream"}, 77984, 2 * (3136 * 512 + 512) + 512 * 5 + 5),
    ],
)
def test_sizes_are_those_of_the_papers(settings: dict[str, Any], trunk: int, heads: int) -> None:
    network = make(**settings)
    for each in (network, network.reference()):
        assert sum(p.numel() for p in each.trunk.parameters()) == trunk
        assert sum(p.numel() for p in each.parameters()) == trunk + heads


def test_the_width_of_impala_multiplies_its_channels() -> None:
    network = make(network="impala", impala_width=2)
    sizes = [module.out_channels for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert sizes == [32] * 5 + [64] * 10
    assert network.trunk.features == 64 * 11 * 11
    assert network(pixels(1, 4, 84, 84)).shape == (1, 4)


def test_a_residual_block_adds_to_its_unchanged_input() -> None:
    block = Residual(3, nn.ReLU)
    x = torch.randn(2, 3, 5, 5)
    before = x.clone()
    nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(block.conv2.bias)  # type: ignore[arg-type]
    assert torch.equal(block(x), before)
    assert torch.equal(x, before)


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
    with pytest.raises(ConfigError, match="cannot convolve frames of 35x84"):
        make(Spec(frame_shape=(35, 84)))
    with pytest.raises(ConfigError, match="mlp-hidden"):
        make(VECTOR, mlp_hidden=())


@pytest.mark.parametrize("name", PIXEL_NETWORKS)
def test_bf16_is_for_convolutions_and_near_fp32(name: str) -> None:
    network, obs, vectors, numbers = make(network=name), pixels(8, 4, 84, 84), make(VECTOR), torch.randn(8, 1, 5)
    exact, small = network(obs), vectors(numbers)
    rough, same = in_precision(network, "bf16")(obs), in_precision(vectors, "bf16")(numbers)
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=2e-3, rtol=2e-2)
    assert torch.equal(same, small)


@pytest.mark.parametrize("settings", [{}, {"head": "two_stream"}, {"dueling": False}, {"network": "small"}])
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
