"""The learner. Flows in: batches drawn from the replay. Flows out: new weights, and TD errors back to the replay.

`update()` is sample, loss, backward, clip, Adam step, priorities, all on one device. Its device part has static
shapes, asks no tensor for its value, and reads what may change during a run (learning rate, gradient norm; the replay
reads beta) from tensors, so that a CUDA graph can wrap it. An update whose numbers are not finite changes nothing: the
device counts it, and whoever wants to know asks `skipped`.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from atari_dqn.agent.device import keep_freed_memory
from atari_dqn.agent.loss import LOSSES, double_q_target, q_target, td_error, weighted_loss
from atari_dqn.agent.network import QNetwork
from atari_dqn.agent.weights import Precision, follow, in_precision, one_vector, take_weights, views_of
from atari_dqn.config.schema import LearnerConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.replay.base import NO_ID, Batch

METRICS = ("losses/td_loss", "losses/q_values", "losses/grad_norm", "losses/abs_td_error")


class Replay(Protocol):
    """What the learner needs of a replay."""

    def sample(self, batch_size: int) -> Batch: ...
    def update_priorities(self, ids: Tensor, td_errors: Tensor) -> None: ...


class Skipped(NamedTuple):
    """Updates that changed nothing, for their loss or gradient was not finite."""

    in_all: int
    in_a_row: int
    """up to the last update; 0 after a sound one"""


class Learner:
    """Owns the online and the target network and the optimizer.

    `online` and `target` are float32: Adam's steps and Polyak's are too small for bfloat16 to add up. What computes are
    `policy`, the online network in the run's precision, with which the actor plays too, and `target_policy`.
    `learning_rate` and `max_grad_norm` are 0-dim tensors: fill them, and the next update obeys; so it does
    `target_update_interval`, a plain number. `updates` counts gradient steps, those that were skipped too.
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
        # Drawn on the CPU whatever the device: the same seed starts from the same weights everywhere.
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(seed)
            self.online = make_net().to(device)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.policy = in_precision(self.online, precision)
        self.target_policy = in_precision(self.target, precision)
        self.replay = replay
        self.config = config
        self.device = device
        self.precision: Precision = precision
        self.updates = 0
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        self.max_grad_norm = torch.tensor(config.max_grad_norm, device=device)
        self.target_update_interval = config.target_update_interval
        self._per_sample = LOSSES[config.loss]
        # All weights, and all gradients, in one vector each: Adam, clipping and the target's turn are then one pass.
        self._weights, self._target_weights = nn.Parameter(one_vector(self.online)), one_vector(self.target)
        self._gradient = self._weights.grad = torch.zeros_like(self._weights)
        self._gradients = views_of(self._gradient, list(self.online.parameters()))
        self.optimizer = _make_optimizer(config, self._weights, self.learning_rate)
        self._not_finite = torch.zeros((), device=device)
        self.optimizer.found_inf = self._not_finite  # type: ignore[attr-defined]  # where 1, fused Adam changes nothing
        self._skipped = torch.zeros(2, dtype=torch.int64, device=device)
        """[2]: as in `Skipped`"""
        self._skipped_in_a_row = self._skipped[1]
        self._metric_sums = torch.zeros(len(METRICS) + 1, dtype=torch.float64, device=device)
        """over the sound updates since the last `pop_metrics`, and the number of them"""
        self._one = torch.ones((), device=device)
        self._last: tuple[Batch, Tensor, Tensor] | None = None
        """of the last update: batch, TD errors, target values"""

    def update(self) -> None:
        """One gradient step on one batch, and the target network's turn every `target_update_interval` updates."""
        self.gradient_step()
        self.updates += 1
        if self.updates % self.target_update_interval == 0:
            self.sync_target()

    def gradient_step(self) -> None:
        """The device part of `update`: no decision here depends on a tensor's value."""
        batch = self.replay.sample(self.config.batch_size)
        loss, error, target = self._loss(batch)
        self._backward(loss)
        norm = self._clip_gradients()
        with torch.no_grad():
            chosen = target - error
            figures = torch.stack((loss, chosen.mean(), norm, error.abs().mean(), self._one))
            unsound = self._judge(figures)
            self._apply_gradients()
            self.replay.update_priorities(batch.ids.masked_fill(unsound, NO_ID), error.masked_fill(unsound, 0.0))
            self._metric_sums += figures.masked_fill(unsound, 0.0)
        self._last = batch, error, target

    def _judge(self, figures: Tensor) -> Tensor:
        """[] bool: one of `figures` is not finite, so that this update will change no weight, and counts as skipped."""
        unsound = (0 * figures).any()  # 0 times NaN or infinity is NaN, which `any` takes for true
        self._not_finite.copy_(unsound)
        self._skipped += unsound
        self._skipped_in_a_row *= unsound
        return unsound

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (a scalar, with its graph), and without gradient the TD errors and the target values, both [B]."""
        target = self._target_values(batch)
        error = td_error(self.policy(batch.obs), batch.actions, target)
        return weighted_loss(error, batch.weights, self._per_sample), error.detach(), target

    def _backward(self, loss: Tensor) -> None:
        """The policy's gradients."""
        self.policy.zero_grad()
        loss.backward()

    def _apply_gradients(self) -> None:
        """Step, and let the policy follow."""
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
        """Hand the weights the policy's gradients, scaled to `max_grad_norm` if longer, then each number clipped to
        `max_grad_value` if that is not 0. Returns their norm before."""
        computed = [param.grad for param in self.policy.parameters() if param.grad is not None]
        torch._foreach_copy_(self._gradients, computed)  # which refuses a list that lacks one
        # torch takes norms on one thread of a CPU; an inner product is shared among all.
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
        """Means over the sound updates since the last call, by the names in `METRICS`; empty when there were none."""
        *sums, sound = self._metric_sums.tolist()
        self._metric_sums.zero_()
        return {name: total / sound for name, total in zip(METRICS, sums, strict=True)} if sound else {}

    def skipped(self) -> Skipped:
        """Waits for the device."""
        return Skipped(*self._skipped.tolist())

    def evidence(self) -> dict[str, Any]:
        """What the last update read and made, causes before effects: views, not copies.

        `batch`, `td_errors` [B] and `targets` [B] are absent before the first one.
        """
        found: dict[str, Any] = {}
        if self._last is not None:
            batch, error, target = self._last
            found = {"batch": vars(batch), "td_errors": error, "targets": target}
        gradients = {name: weight.grad for name, weight in self.policy.named_parameters()}
        return {**found, **self.state(), "gradient": gradients}

    def state(self) -> dict[str, Any]:
        """Weights, the optimizer's moments, what was counted and summed so far: views, not copies."""
        return {
            "online": self.online.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state[self._weights],
            "updates": self.updates,
            "skipped": self._skipped,
            "metric_sums": self._metric_sums,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a `state()`. Settings, the learning rate among them, stay those this learner was made with.

        Raises `ConfigError` when the weights or the moments do not fit, before these are copied.
        """
        moments: dict[str, Tensor] = state["optimizer"]
        wanted = {"step": [], "exp_avg": [*self._weights.shape], "exp_avg_sq": [*self._weights.shape]}
        if self.optimizer.defaults["amsgrad"]:
            wanted["max_exp_avg_sq"] = [*self._weights.shape]
        if moments and {name: [*value.shape] for name, value in moments.items()} != wanted:
            raise ConfigError("the optimizer's state in the checkpoint is another network's or another optimizer's")
        take_weights(self.online, state["online"], "the checkpoint")
        take_weights(self.target, state["target"], "the checkpoint")
        self._follow()
        self.updates = state["updates"]
        self._skipped.copy_(state["skipped"])
        self._metric_sums.copy_(state["metric_sums"])
        self.optimizer.state[self._weights] = {
            name: value.to(self.device, copy=True) for name, value in moments.items()
        }

    def load_weights(self, weights: Mapping[str, Tensor], file: Path) -> None:
        """Start both networks from the weights of `file`. Raises `ConfigError`, naming it, when they do not fit."""
        take_weights(self.online, weights, file)
        take_weights(self.target, weights, file)
        self._follow()

    def _follow(self) -> None:
        follow(self.policy, self.online)
        follow(self.target_policy, self.target)


def _make_optimizer(config: LearnerConfig, weights: Tensor, learning_rate: Tensor) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015), or AdamW with amsgrad and torch's weight decay, in one fused pass.

    `learning_rate` is read at every step.
    """
    capturable = learning_rate.device.type == "cuda"  # or torch refuses to capture the step in a graph
    # Said of the first steps, which come before the recording.
    warnings.filterwarnings("ignore", message=".*constructed with capturable=True.*")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            [weights], lr=learning_rate, eps=config.adam_epsilon, amsgrad=True, fused=True, capturable=capturable
        )
    return torch.optim.Adam([weights], lr=learning_rate, eps=config.adam_epsilon, fused=True, capturable=capturable)
