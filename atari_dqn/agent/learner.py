"""Learner: one update of a double DQN from a batch of the replay, all on one device.

An update is sample, loss, backward, clip, optimizer step, priorities, and from time to time a target sync; each is a
named phase. The part on the device has static shapes, reads no tensor's value on the host, and takes what may change
during a run (learning rate, gradient norm; the replay reads beta) from tensors, so that a CUDA graph can capture it.
An update with a loss or a gradient that is not finite changes nothing: the device counts it, and `skipped` returns
the count.
"""

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from atari_dqn.agent.device import keep_freed_memory
from atari_dqn.agent.loss import LOSSES, double_q_target, q_target, td_error, weighted_loss
from atari_dqn.agent.network import QNetwork
from atari_dqn.agent.weights import Precision, follow, in_precision, one_vector, take_weights, views_of
from atari_dqn.config.schema import LearnerConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.replay.base import NO_ID, Batch

METRICS = ("losses/td_loss", "losses/q_values", "losses/grad_norm", "losses/abs_td_error")
"""Means over updates, in the order of `figures` in `gradient_step`. Their sums are saved in checkpoints: with another
number of them, raise `checkpoint_files.FORMAT`."""


class Replay(Protocol):
    """What the learner needs of a replay."""

    def sample(self, batch_size: int) -> Batch: ...
    def update_priorities(self, ids: Tensor, td_errors: Tensor) -> None: ...


class Skipped(NamedTuple):
    """Numbers of updates that changed nothing because their loss or gradient was not finite."""

    in_all: int
    in_a_row: int
    """Number of skipped updates since the last one that was not."""


def phase(name: str) -> AbstractContextManager[object]:
    """`record_function(name)` while a torch profiler is on, else nothing, as recording costs microseconds."""
    return record_function(name) if torch._C._autograd._profiler_enabled() else nullcontext()


class Learner:
    """Owner of the online and the target network and of the optimizer.

    `online` and `target` are float32, because the steps of Adam and of Polyak averaging are too small for bfloat16.
    `policy`, the online network in the run's precision, computes the updates and plays; `target_policy` is its
    counterpart. All are in evaluation mode, but for the loss of a user's network. `learning_rate` and `max_grad_norm`
    are 0-dim tensors and `target_update_interval` is an int; the next update reads them. `updates` counts gradient
    steps, skipped ones included.

    `phase` is called with the name of each part of an update (learner/sample, loss, backward, clip, optimizer,
    priorities, target_sync) and returns a context manager around it; replace it to time them.
    """

    def __init__(
        self,
        make_net: Callable[[], QNetwork],
        replay: Replay,
        config: LearnerConfig,
        *,
        seed: int,
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        # Drawn on the CPU for any device, so that a seed gives the same initial weights everywhere.
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)
            self.online = make_net().to(device).eval()
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.policy = in_precision(self.online, precision)
        self.target_policy = in_precision(self.target, precision)
        self._seed = seed
        self._values: Callable[[Tensor], Tensor] = self._in_training_mode if self.online.is_own else self.policy
        self.replay = replay
        self.config = config
        self.device = device
        self.precision: Precision = precision
        self.phase = phase
        self.updates = 0
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        self.max_grad_norm = torch.tensor(config.max_grad_norm, device=device)
        self.target_update_interval = config.target_update_interval
        self._per_sample = LOSSES[config.loss]
        # All weights, and all gradients, in one vector each: Adam, clipping and target sync are then one pass each.
        self._weights, self._target_weights = nn.Parameter(one_vector(self.online)), one_vector(self.target)
        self._gradient = self._weights.grad = torch.zeros_like(self._weights)
        self._gradients = views_of(self._gradient, list(self.online.parameters()))
        self.optimizer = _make_optimizer(config, self._weights, self.learning_rate)
        self._not_finite = torch.zeros((), device=device)
        self.optimizer.found_inf = self._not_finite  # type: ignore[attr-defined]  # fused Adam skips its step where this is 1
        self._skipped = torch.zeros(2, dtype=torch.int64, device=device)
        """The two counts of `Skipped`, [2]."""
        self._skipped_in_a_row = self._skipped[1]
        self._metric_sums = torch.zeros(len(METRICS) + 1, dtype=torch.float64, device=device)
        """Sums over the updates since the last `pop_metrics` that were not skipped, and the number of these."""
        self._one = torch.ones((), device=device)
        self._last: tuple[Batch, Tensor, Tensor] | None = None
        """Batch, TD errors and target values of the last update."""

    def update(self) -> None:
        """One gradient step on one batch, and a target sync every `target_update_interval` updates."""
        self.gradient_step()
        self.updates += 1
        if self.updates % self.target_update_interval == 0:
            with self.phase("learner/target_sync"):
                self.sync_target()

    def gradient_step(self) -> None:
        """The part of `update` on the device: no decision in it depends on a tensor's value."""
        with self.phase("learner/sample"):
            batch = self.replay.sample(self.config.batch_size)
        with self.phase("learner/loss"):
            loss, error, target = self._loss(batch)
        with self.phase("learner/backward"):
            self._backward(loss)
        with torch.no_grad():
            with self.phase("learner/clip"):
                norm = self._clip_gradients()
            chosen = target - error
            figures = torch.stack((loss, chosen.mean(), norm, error.abs().mean(), self._one))
            skip = self._count_if_not_finite(figures)
            with self.phase("learner/optimizer"):
                self._apply_gradients()
            ids, errors = batch.ids.masked_fill(skip, NO_ID), error.masked_fill(skip, 0.0)
            with self.phase("learner/priorities"):
                self.replay.update_priorities(ids, errors)
            self._metric_sums += figures.masked_fill(skip, 0.0)
        self._last = batch, error, target

    def _count_if_not_finite(self, figures: Tensor) -> Tensor:
        """Whether one of `figures` is not finite, so that this update is counted as skipped; bool []."""
        skip = (0 * figures).any()  # 0 times NaN or infinity is NaN, which `any` takes for true
        self._not_finite.copy_(skip)
        self._skipped += skip
        self._skipped_in_a_row *= skip
        return skip

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, a scalar with its graph, and without gradient the TD errors and the target values, both [B]."""
        target = self._target_values(batch)
        error = td_error(self._values(batch.obs), batch.actions, target)
        return weighted_loss(error, batch.weights, self._per_sample), error.detach(), target

    def _in_training_mode(self, obs: Tensor) -> Tensor:
        """The policy's Q values with a user's Dropout on; on a CPU its draws depend on the seed and `updates` alone."""
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(self._seed + self.updates)
            self.policy.train()
            try:
                q: Tensor = self.policy(obs)
            finally:
                self.policy.eval()
        return q

    def _backward(self, loss: Tensor) -> None:
        self.policy.zero_grad()
        loss.backward()

    def _apply_gradients(self) -> None:
        self.optimizer.step()
        follow(self.policy, self.online)

    @torch.no_grad()
    def _target_values(self, batch: Batch) -> Tensor:
        prepared = self.policy.prepare(batch.next_obs)
        of_target = self.target_policy.q_values(prepared)
        if not self.config.double_q:
            return q_target(of_target, batch.returns, batch.discounts)
        return double_q_target(self.policy.q_values(prepared), of_target, batch.returns, batch.discounts)

    @torch.no_grad()
    def _clip_gradients(self) -> Tensor:
        """Copy the policy's gradients into the vector, scaled down to `max_grad_norm` if their norm is larger, then
        clipped elementwise to `max_grad_value` if that is not 0. Returns the norm before clipping."""
        computed = [param.grad for param in self.policy.parameters() if param.grad is not None]
        torch._foreach_copy_(self._gradients, computed)  # raises if one is missing
        # On a CPU torch computes norms on one thread, and inner products on all.
        norm = torch.dot(self._gradient, self._gradient).sqrt()
        self._gradient.mul_((self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        if self.config.max_grad_value:
            self._gradient.clamp_(-self.config.max_grad_value, self.config.max_grad_value)
        return norm

    @torch.no_grad()
    def sync_target(self) -> None:
        """target <- tau * online + (1 - tau) * target."""
        if self.config.target_tau == 1:
            self._target_weights.copy_(self._weights)
        else:
            self._target_weights.lerp_(self._weights, self.config.target_tau)
        follow(self.target_policy, self.target)

    def pop_metrics(self) -> dict[str, float]:
        """Means over the updates since the last call that were not skipped, by the names in `METRICS`; may be empty."""
        *sums, count = self._metric_sums.tolist()
        self._metric_sums.zero_()
        return {name: total / count for name, total in zip(METRICS, sums, strict=True)} if count else {}

    def skipped(self) -> Skipped:
        """Number of skipped updates, in all and in a row. Waits for the device."""
        return Skipped(*self._skipped.tolist())

    def evidence(self) -> dict[str, Any]:
        """Tensors of the last update, inputs first, as views; for finding the first one that is not finite."""
        found: dict[str, Any] = {}
        if self._last is not None:
            batch, error, target = self._last
            found = {"batch": vars(batch), "td_errors": error, "targets": target}
        gradients = {name: weight.grad for name, weight in self.policy.named_parameters()}
        return {**found, **self.state(), "gradient": gradients}

    def state(self) -> dict[str, Any]:
        """Weights, the optimizer's moments, counters and metric sums, as views."""
        return {
            "online": self.online.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state[self._weights],
            "updates": self.updates,
            "skipped": self._skipped,
            "metric_sums": self._metric_sums,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state()`, with this learner's own settings. Raises `ConfigError` where it does not fit."""
        moments: dict[str, Tensor] = state["optimizer"]
        wanted = {"step": [], "exp_avg": [*self._weights.shape], "exp_avg_sq": [*self._weights.shape]}
        if self.optimizer.defaults["amsgrad"]:
            wanted["max_exp_avg_sq"] = [*self._weights.shape]
        if moments and {name: [*value.shape] for name, value in moments.items()} != wanted:
            raise ConfigError("the optimizer's state in the checkpoint is of another network or optimizer")
        self._take(state["online"], state["target"], "the checkpoint")
        self.updates = state["updates"]
        self._skipped.copy_(state["skipped"])
        self._metric_sums.copy_(state["metric_sums"])
        self.optimizer.state[self._weights] = {
            name: value.to(self.device, copy=True) for name, value in moments.items()
        }

    def load_weights(self, weights: Mapping[str, Tensor], file: Path) -> None:
        """Start both networks from the weights in `file`. Raises `ConfigError`, naming it, if they do not fit."""
        self._take(weights, weights, file)

    def _take(self, online: Mapping[str, Tensor], target: Mapping[str, Tensor], file: Path | str) -> None:
        take_weights(self.online, online, file)
        take_weights(self.target, target, file)
        follow(self.policy, self.online)
        follow(self.target_policy, self.target)


def _make_optimizer(config: LearnerConfig, weights: Tensor, learning_rate: Tensor) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015), or AdamW with amsgrad and torch's weight decay, in one fused pass.

    The optimizer reads `learning_rate` at every step.
    """
    capturable = learning_rate.device.type == "cuda"  # without it torch cannot capture the step in a graph
    # This warning is about the first steps, which run before the capture.
    warnings.filterwarnings("ignore", message=".*constructed with capturable=True.*")
    is_adamw = config.optimizer == "adamw"
    return (torch.optim.AdamW if is_adamw else torch.optim.Adam)(
        [weights], lr=learning_rate, eps=config.adam_epsilon, amsgrad=is_adamw, fused=True, capturable=capturable
    )
