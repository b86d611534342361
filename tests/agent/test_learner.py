"""The learner against a plain one and tables made by hand; live settings, target syncs, exact repetition."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from atari_dqn.agent.device import resolve_device, resolve_precision
from atari_dqn.agent.learner import Learner
from atari_dqn.agent.network import QNetwork, make_network
from atari_dqn.agent.trunks import Blocked
from atari_dqn.agent.weights import Precision, in_precision
from atari_dqn.config.schema import LearnerConfig, NetworkConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.replay.base import Batch
from benchmarks.plain_learner import FixedReplay, PlainLearner, Spec, random_batch

CPU = torch.device("cpu")
BREAKOUT = Spec()
SMALL = Spec(frame_shape=(36, 36))
"""The least frame the convolutions take: a network of all kinds of layers that learns in a millisecond."""
VECTOR = Spec(kind="vector", frame_shape=(4,), stack=1)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
BATCH = 8


def batches(spec: Spec, count: int = 4, seed: int = 1) -> FixedReplay:
    generator = torch.Generator().manual_seed(seed)
    shape = (spec.stack, *spec.frame_shape)
    return FixedReplay([random_batch(generator, BATCH, shape, spec.num_actions) for _ in range(count)])


def make_learner(
    spec: Spec = SMALL,
    network: NetworkConfig | None = None,
    *,
    replay: FixedReplay | None = None,
    seed: int = 1,
    precision: Precision = "fp32",
    **settings: Any,
) -> Learner:
    return Learner(
        lambda: make_network(spec, network or NetworkConfig()),
        replay or batches(spec),
        LearnerConfig(**({"batch_size": BATCH} | settings)),
        seed=seed,
        device=CPU,
        precision=precision,
    )


def run(learner: Learner, updates: int) -> Learner:
    for _ in range(updates):
        learner.update()
    return learner


def bits(learner: Learner) -> list[bytes]:
    nets = (learner.online, learner.target)
    return [tensor.contiguous().numpy().tobytes() for net in nets for tensor in net.state_dict().values()]


# ---------------------------------------------------------------------- a network whose Q values are a table


class Table(QNetwork):
    """Q values looked up by state number: observations [B, 1] hold the number."""

    def __init__(self, q: Tensor) -> None:
        nn.Module.__init__(self)
        self.q = nn.Parameter(q.clone())
        self.grad_modes: list[bool] = []

    def prepare(self, obs: Tensor) -> Tensor:
        return obs

    def q_values(self, prepared: Tensor) -> Tensor:
        self.grad_modes.append(torch.is_grad_enabled())
        return self.q[prepared[:, 0]]


ONLINE = torch.tensor([[1.0, 2.0, 0.0], [3.0, 9.0, 4.0], [8.0, 5.0, 6.0], [0.0, 0.0, 0.0]])
TARGET = torch.tensor([[0.0, 0.0, 0.0], [10.0, 20.0, 30.0], [40.0, 50.0, 60.0], [5.0, 5.0, 5.0]])
TRANSITIONS = Batch(
    obs=torch.tensor([[0], [0], [3]]),
    actions=torch.tensor([0, 1, 2]),
    returns=torch.tensor([1.0, -1.0, 0.5]),
    discounts=torch.tensor([0.1, 0.01, 0.0]),
    next_obs=torch.tensor([[1], [2], [2]]),
    weights=torch.tensor([1.0, 0.5, 0.25]),
    ids=torch.tensor([7, 8, 9]),
)
"""Online's favourites are action 1 in state 1 and 0 in state 2; target's are action 2 in both."""


def table_learner(batch: Batch = TRANSITIONS, **settings: Any) -> tuple[Learner, FixedReplay]:
    replay = FixedReplay([batch])
    settings = {"batch_size": 3, "max_grad_norm": 1e6, "learning_rate": 0.1} | settings
    learner = Learner(lambda: Table(ONLINE), replay, LearnerConfig(**settings), seed=1, device=CPU)
    learner.target.load_state_dict({"q": TARGET})
    return learner, replay


@pytest.mark.parametrize(
    ("double_q", "errors"),
    [
        (True, [1 + 0.1 * 20 - 1, -1 + 0.01 * 40 - 2, 0.5]),
        (False, [1 + 0.1 * 30 - 1, -1 + 0.01 * 60 - 2, 0.5]),
    ],
)
def test_online_chooses_and_target_values(double_q: bool, errors: list[float]) -> None:
    learner, replay = table_learner(double_q=double_q)
    learner.update()
    assert replay.td_errors[0].tolist() == pytest.approx(errors)


def test_only_the_taken_actions_pass_builds_a_graph() -> None:
    learner, _ = table_learner()
    learner.update()
    assert isinstance(learner.online, Table)
    assert isinstance(learner.target, Table)
    assert learner.online.grad_modes == [False, True]
    assert learner.target.grad_modes == [False]
    assert not learner.target.q.requires_grad


def gradient(learner: Learner) -> Tensor:
    """Of the table, as the last update left it."""
    (taken,) = learner._gradients
    return taken.clone()


def test_gradient_is_each_samples_weighted_clipped_error_and_nothing_else() -> None:
    learner, _ = table_learner()
    learner.update()
    expected = torch.zeros(4, 3)
    expected[0, 0], expected[0, 1], expected[3, 2] = -1.0 / 3, 0.5 / 3, -0.25 * 0.5 / 3
    torch.testing.assert_close(gradient(learner), expected)


def test_doubling_one_importance_weight_changes_the_gradient_by_that_samples_share() -> None:
    learner, _ = table_learner()
    learner.update()
    for sample, entry in enumerate([(0, 0), (0, 1), (3, 2)]):
        weights = TRANSITIONS.weights.clone()
        weights[sample] *= 2
        heavier, _ = table_learner(Batch(**(vars(TRANSITIONS) | {"weights": weights})))
        heavier.update()
        change = gradient(heavier) - gradient(learner)
        assert change[entry] == gradient(learner)[entry]
        assert change.count_nonzero() == 1


def test_gradient_agrees_with_finite_differences_while_targets_stay_fixed() -> None:
    learner, _ = table_learner(target_update_interval=1)
    target = torch.tensor([1 + 0.1 * 20, -1 + 0.01 * 40, 0.5], dtype=torch.float64)

    def loss(q: Tensor) -> float:
        error = (target - q[TRANSITIONS.obs[:, 0], TRANSITIONS.actions]).abs()
        return float((TRANSITIONS.weights * torch.where(error <= 1, error**2 / 2, error - 0.5)).mean())

    learner.update()
    step = 1e-6
    for index in range(ONLINE.numel()):
        up, down = ONLINE.double().clone(), ONLINE.double().clone()
        up.view(-1)[index] += step
        down.view(-1)[index] -= step
        slope = (loss(up) - loss(down)) / (2 * step)
        assert gradient(learner).view(-1)[index].item() == pytest.approx(slope, abs=1e-6)


# ---------------------------------------------------------------------- the plain twin


def test_equals_the_plain_learner() -> None:
    # A large epsilon in Adam's denominator keeps rounding noise in tiny gradients from being blown up to whole steps.
    config: dict[str, Any] = {"target_update_interval": 3, "adam_epsilon": 1e-2, "learning_rate": 1e-2}
    learner, replay = make_learner(BREAKOUT, max_grad_norm=0.1, **config), batches(BREAKOUT)
    plain = PlainLearner(
        learner.online.reference(),
        replay,
        LearnerConfig(max_grad_norm=0.1, **(config | {"batch_size": BATCH})),
    )
    start = learner.online.reference()
    for _ in range(7):
        learner.update()
        plain.update()
        assert isinstance(learner.replay, FixedReplay)
        torch.testing.assert_close(learner.replay.td_errors[-1], replay.td_errors[-1], atol=1e-5, rtol=1e-4)
    for ours, theirs in ((learner.online, plain.online), (learner.target, plain.target)):
        taken = ours.reference()
        for one, other, before in zip(taken.parameters(), theirs.parameters(), start.parameters(), strict=True):
            assert (one - other).norm() <= 1e-3 * (other - before).norm()


# ---------------------------------------------------------------------- the target network


def test_target_gets_no_gradient_and_moves_only_at_a_sync() -> None:
    learner = make_learner(target_update_interval=4)
    before = [param.clone() for param in learner.target.parameters()]
    run(learner, 3)
    assert all(param.grad is None for param in learner.target.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, learner.target.parameters(), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(before, learner.online.parameters(), strict=True))


@pytest.mark.parametrize("interval", [1, 3])
def test_target_syncs_at_its_interval(interval: int) -> None:
    learner = make_learner(target_update_interval=interval)
    synced = []
    for update in range(1, 11):
        before = [param.clone() for param in learner.target.parameters()]
        learner.update()
        assert learner.updates == update
        if not all(torch.equal(*pair) for pair in zip(before, learner.target.parameters(), strict=True)):
            synced.append(update)
            equal = zip(learner.online.parameters(), learner.target.parameters(), strict=True)
            assert all(torch.equal(*pair) for pair in equal)
    assert synced == list(range(interval, 11, interval))


def test_tau_averages() -> None:
    learner, _ = table_learner(target_tau=0.25, target_update_interval=1)
    learner.update()
    (online,), (target,) = learner.online.parameters(), learner.target.parameters()
    torch.testing.assert_close(target, 0.75 * TARGET + 0.25 * online)


# ---------------------------------------------------------------------- live values


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_each_update_uses_the_live_learning_rate(optimizer: str) -> None:
    learner, _ = table_learner(optimizer=optimizer)
    (table,) = learner.online.parameters()
    entry = (0, 0)  # its error stays far above 1, so Adam moves it by the learning rate each time
    for rate in (0.1, 0.0, 0.01, 0.002):
        learner.learning_rate.fill_(rate)
        before = table[entry].item()
        learner.update()
        assert learner.optimizer.param_groups[0]["lr"] is learner.learning_rate
        assert table[entry].item() - before == pytest.approx(rate, rel=0.03, abs=1e-6)


def test_after_a_load_the_learning_rate_is_live_and_the_configs() -> None:
    learner, stored = make_learner(learning_rate=0.125), run(make_learner(learning_rate=0.5), 2).state()
    learner.load(stored)
    assert learner.optimizer.param_groups[0]["lr"] is learner.learning_rate
    assert learner.learning_rate.item() == 0.125
    learner.learning_rate.fill_(0)
    before = bits(learner)
    learner.update()
    assert bits(learner) == before


def test_gradients_are_scaled_down_to_the_live_norm() -> None:
    learner, _ = table_learner()
    learner.update()
    whole = gradient(learner)
    for limit, expected in ((0.1, 0.1), (1e-3, 1e-3), (1e6, None)):
        learner, _ = table_learner(max_grad_norm=5.0)
        learner.max_grad_norm.fill_(limit)
        learner.update()
        scale = 1.0 if expected is None else expected / float(whole.norm())
        torch.testing.assert_close(gradient(learner), whole * scale, rtol=1e-4, atol=0)
        assert learner.pop_metrics()["losses/grad_norm"] == pytest.approx(float(whole.norm())), "before clipping"


def test_gradient_values_are_clipped_after_the_norm() -> None:
    learner, _ = table_learner(max_grad_norm=0.5)
    learner.update()
    scaled = gradient(learner)
    learner, _ = table_learner(max_grad_norm=0.5, max_grad_value=0.1)
    learner.update()
    assert scaled.abs().max() > 0.1
    torch.testing.assert_close(gradient(learner), scaled.clamp(-0.1, 0.1))


def test_the_loss_is_that_of_the_setting() -> None:
    learner, replay = table_learner(loss="mse")
    learner.update()
    errors, weights = replay.td_errors[0], TRANSITIONS.weights
    assert learner.pop_metrics()["losses/td_loss"] == pytest.approx(float((weights * errors**2).mean()))


class NoReading(TorchDispatchMode):
    """Fails when an operation has to know a tensor's value: a wait on a GPU, and an error inside a CUDA graph."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")
        assert func.overloadpacket.__name__ not in forbidden, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("settings", [{}, {"optimizer": "adamw", "max_grad_value": 1.0}, {"double_q": False}])
def test_an_update_reads_no_tensor_back(precision: Precision, settings: dict[str, Any]) -> None:
    learner = run(make_learner(precision=precision, target_update_interval=1, **settings), 1)
    with NoReading():
        learner.update()
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            learner.learning_rate.item()


# ---------------------------------------------------------------------- metrics


def test_metrics_are_means_since_the_last_pop() -> None:
    learner, replay = table_learner(learning_rate=1e-9, target_update_interval=100)
    assert learner.pop_metrics() == {}
    run(learner, 3)
    errors = torch.tensor([2.0, -2.6, 0.5])
    huber = torch.tensor([1.5, 2.1, 0.125])
    expected = {
        "losses/td_loss": float((huber * TRANSITIONS.weights).mean()),
        "losses/q_values": 1.0,
        "losses/grad_norm": float(torch.tensor([1.0, 0.5, 0.125]).norm() / 3),
        "losses/abs_td_error": float(errors.abs().mean()),
    }
    assert learner.pop_metrics() == pytest.approx(expected, rel=1e-5)
    assert learner.pop_metrics() == {}
    learner.update()
    assert learner.pop_metrics() == pytest.approx(expected, rel=1e-5), "nothing left over from before"
    assert torch.equal(replay.td_errors[-1].sign(), errors.sign())


# ---------------------------------------------------------------------- repetition


@pytest.mark.parametrize("spec", [SMALL, VECTOR])
def test_same_seed_same_bits(spec: Spec) -> None:
    first, second, other = (run(make_learner(spec, seed=seed, target_update_interval=50), 200) for seed in (1, 1, 2))
    assert bits(first) == bits(second)
    assert bits(first) != bits(other)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_same_bits_at_full_size(precision: Precision) -> None:
    first, second = (run(make_learner(BREAKOUT, precision=precision), 10) for _ in range(2))
    assert bits(first) == bits(second)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_after_2000_updates_at_full_size(threads: int) -> None:
    torch.set_num_threads(threads)
    first, second = (run(make_learner(BREAKOUT, target_update_interval=100), 2_000) for _ in range(2))
    assert bits(first) == bits(second)


def test_the_seed_alone_decides_the_initial_weights() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = make_learner(seed=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    assert bits(first) == bits(make_learner(seed=3))
    assert bits(first) != bits(make_learner(seed=4))
    assert all(torch.equal(*pair) for pair in zip(first.online.parameters(), first.target.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_state_continues_to_the_bit(optimizer: str) -> None:
    learner = run(make_learner(optimizer=optimizer, target_update_interval=3), 5)
    file = io.BytesIO()
    torch.save(learner.state(), file)
    run(learner, 5)
    file.seek(0)
    other = run(make_learner(optimizer=optimizer, target_update_interval=3, seed=9), 2)
    other.load(torch.load(file, weights_only=True))
    assert other.updates == 5
    assert isinstance(other.replay, FixedReplay)
    other.replay.drawn = 5
    assert bits(run(other, 5)) == bits(learner)
    assert other.updates == 10


def test_loading_copies() -> None:
    learner, other = run(make_learner(), 2), make_learner(seed=2)
    other.load(learner.state())
    before = bits(learner)
    run(other, 2)
    assert bits(learner) == before


def test_weights_of_another_network_are_refused_by_name() -> None:
    learner, file = make_learner(), Path("runs/x/learner.pt")
    source = make_learner(seed=2)
    learner.load_weights(source.online.state_dict(), file)
    assert bits(learner) == bits(source)
    for wrong in (
        make_learner(network=NetworkConfig(dueling=False)),
        make_learner(Spec(frame_shape=(36, 36), num_actions=6)),
    ):
        with pytest.raises(ConfigError, match=r"runs/x/learner.pt.* there and .* here") as caught:
            learner.load_weights(wrong.online.state_dict(), file)
        assert "\n" not in str(caught.value)
        with pytest.raises(ConfigError, match=r"the weights in the checkpoint .* there and .* here"):
            learner.load(wrong.state())


# ---------------------------------------------------------------------- every shape of network learns


@pytest.mark.parametrize(
    ("spec", "network"),
    [
        (Spec(frame_shape=(36, 36), num_actions=6), NetworkConfig()),
        (Spec(frame_shape=(36, 36), num_actions=18), NetworkConfig()),
        (Spec(frame_shape=(36, 36), num_actions=18), NetworkConfig(head="two_stream")),
        (Spec(frame_shape=(36, 36), num_actions=6), NetworkConfig(dueling=False)),
        (Spec(frame_shape=(40, 37, 3), stack=2, num_actions=6), NetworkConfig()),
        (VECTOR, NetworkConfig()),
        (VECTOR, NetworkConfig(head="two_stream", mlp_hidden=(512, 64))),
    ],
)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_learns_the_returns_of_a_fixed_batch(spec: Spec, network: NetworkConfig, precision: Precision) -> None:
    replay = batches(spec, count=1)
    replay.batches[0].discounts.zero_()
    learner = make_learner(spec, network, replay=replay, precision=precision, learning_rate=1e-3)
    errors = []
    for _ in range(80):
        learner.update()
        errors.append(float(replay.td_errors[-1].abs().mean()))
    assert errors[-1] < 0.1 * errors[0]


def test_bf16_steps_in_the_direction_of_fp32() -> None:
    grads = []
    for precision in PRECISIONS:
        learner = run(make_learner(BREAKOUT, precision=precision), 1)
        assert all(param.dtype == torch.float32 for param in learner.online.parameters())
        grads.append(learner._gradient)
    assert torch.cosine_similarity(grads[0], grads[1], dim=0) > 0.99


def test_convolutions_stay_channels_last_in_the_one_vector() -> None:
    """Another layout gives the same numbers, more slowly."""
    learner = make_learner(BREAKOUT, precision="bf16")
    for network in (learner.online, learner.target, learner.policy, learner.target_policy):
        assert isinstance(network.trunk, Blocked)
        assert network.trunk.conv3 is not None
        assert network.trunk.conv3.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("settings", [{}, {"target_tau": 0.1}])
def test_the_policies_have_the_weights_of_the_float32_networks(settings: dict[str, Any]) -> None:
    obs = batches(BREAKOUT).batches[0].obs

    def check(learner: Learner) -> None:
        for computes, kept in ((learner.policy, learner.online), (learner.target_policy, learner.target)):
            assert computes is not kept
            assert torch.equal(computes(obs), in_precision(kept, "bf16")(obs))

    learner = make_learner(BREAKOUT, precision="bf16", target_update_interval=2, **settings)
    for _ in range(4):
        learner.update()
        check(learner)
    other = make_learner(BREAKOUT, precision="bf16", seed=2)
    other.load(learner.state())
    check(other)
    another = make_learner(BREAKOUT, precision="bf16", seed=3)
    another.load_weights(learner.online.state_dict(), Path("a checkpoint"))
    check(another)


# ---------------------------------------------------------------------- device and precision


def test_auto_precision_is_fp32_for_a_deterministic_run() -> None:
    assert resolve_precision("auto", CPU, deterministic=True) == "fp32"
    assert resolve_precision("bf16", CPU, deterministic=True) == "bf16"
    assert resolve_precision("fp32", CPU, deterministic=False) == "fp32"
    flags = ""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
    if "x86" in flags or "flags" in flags:
        native = "avx512_bf16" in flags or "amx_tile" in flags
        assert resolve_precision("auto", CPU, deterministic=False) == ("bf16" if native else "fp32")


def test_an_absent_gpu_is_refused_in_one_line() -> None:
    assert resolve_device("cpu") == CPU
    if torch.cuda.is_available():
        assert resolve_device("auto").type == resolve_device("cuda").type == "cuda"
    else:
        assert resolve_device("auto") == CPU
        with pytest.raises(ConfigError, match="--device is cuda"):
            resolve_device("cuda")
    if torch.backends.mps.is_available():
        assert resolve_device("mps").type == "mps"
    else:
        with pytest.raises(ConfigError, match="--device is mps"):
            resolve_device("mps")


def test_the_phases_of_an_update_are_named_for_a_profiler() -> None:
    learner = run(make_learner(target_update_interval=2), 1)
    with torch.profiler.profile() as profile:
        run(learner, 1)
    named = [event.name for event in profile.events() if event.name.startswith("learner/")]
    parts = ("sample", "loss", "backward", "clip", "optimizer", "priorities", "target_sync")
    assert named == [f"learner/{part}" for part in parts]


def test_a_phase_can_be_timed_from_outside() -> None:
    learner, seen = make_learner(), []

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        seen.append(name)
        yield

    learner.phase = timed
    learner.update()
    assert seen[:3] == ["learner/sample", "learner/loss", "learner/backward"]
