"""The learner. Flows in: batches drawn from the replay. Flows out: new weights, and TD errors back to the replay.

`update()` is sample, loss, backward, clip, Adam step, priorities, all on one device. Its device part has static
shapes, asks no tensor for its value, and reads what may change during a run (learning rate, gradient norm; the replay
reads beta) from tensors, so that a CUDA graph can wrap it.
"""

from __future__ import annotations

import copy
import ctypes
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from atari_dqn.config import ConfigError, LearnerConfig
from atari_dqn.loss import double_q_target, q_target, td_error, weighted_huber_loss
from atari_dqn.network import Precision, QNetwork, follow, in_precision, one_vector, take_weights, views_of
from atari_dqn.replay.base import Batch

METRICS = ("losses/td_loss", "losses/q_values", "losses/grad_norm", "losses/abs_td_error")


class Replay(Protocol):
    """What the learner needs of a replay."""

    def sample(self, batch_size: int) -> Batch: ...
    def update_priorities(self, ids: Tensor, td_errors: Tensor) -> None: ...


class Learner:
    """Owns the online and the target network and the optimizer.

    `online` and `target` are float32: Adam's steps and Polyak's are too small for bfloat16 to add up. What computes are
    `policy`, the online network in the run's precision, with which the actor plays too, and `target_policy`.
    `learning_rate` and `max_grad_norm` are 0-dim tensors: fill them, and the next update obeys; so it does
    `target_update_interval`, a plain number. `updates` counts gradient steps.
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
        # All weights, and all gradients, in one vector each: Adam, clipping and the target's turn are then one pass.
        self._weights, self._target_weights = nn.Parameter(one_vector(self.online)), one_vector(self.target)
        self._gradient = self._weights.grad = torch.zeros_like(self._weights)
        self._gradients = views_of(self._gradient, list(self.online.parameters()))
        self.optimizer = _make_optimizer(config, self._weights, self.learning_rate)
        self._metric_sums = torch.zeros(len(METRICS), device=device)
        self._metric_updates = 0

    def update(self) -> None:
        """One gradient step on one batch, and the target network's turn every `target_update_interval` updates."""
        self.gradient_step()
        self.updates += 1
        self._metric_updates += 1
        if self.updates % self.target_update_interval == 0:
            self.sync_target()

    def gradient_step(self) -> None:
        """The device part of `update`: no decision here depends on a tensor's value."""
        batch = self.replay.sample(self.config.batch_size)
        loss, error, target = self._loss(batch)
        self._backward(loss)
        norm = self._apply_gradients()
        with torch.no_grad():
            self.replay.update_priorities(batch.ids, error)
            chosen = target - error
            self._metric_sums += torch.stack((loss, chosen.mean(), norm, error.abs().mean()))

    def _loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The loss (a scalar, with its graph), and without gradient the TD errors and the target values, both [B]."""
        target = self._target_values(batch)
        error = td_error(self.policy(batch.obs), batch.actions, target)
        return weighted_huber_loss(error, batch.weights), error.detach(), target

    def _backward(self, loss: Tensor) -> None:
        """The policy's gradients."""
        self.policy.zero_grad()
        loss.backward()

    def _apply_gradients(self) -> Tensor:
        """Clip, step, and let the policy follow. Returns the gradients' norm before."""
        norm = self._clip_gradients()
        self.optimizer.step()
        follow(self.policy, self.online)
        return norm

    @torch.no_grad()
    def _target_values(self, batch: Batch) -> Tensor:
        prepared = self.policy.prepare(batch.next_obs)
        of_target = self.target_policy.q_values(prepared)
        if not self.config.double_q:
            return q_target(of_target, batch.returns, batch.discounts)
        return double_q_target(self.policy.q_values(prepared), of_target, batch.returns, batch.discounts)

    @torch.no_grad()
    def _clip_gradients(self) -> Tensor:
        """Hand the weights the policy's gradients, scaled to `max_grad_norm` if longer. Returns their norm before."""
        computed = [param.grad for param in self.policy.parameters() if param.grad is not None]
        torch._foreach_copy_(self._gradients, computed)  # which refuses a list that lacks one
        # torch takes norms on one thread of a CPU; an inner product is shared among all.
        norm = torch.dot(self._gradient, self._gradient).sqrt()
        self._gradient.mul_((self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
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
        """Means over the updates since the last call, by the names in `METRICS`; empty when there were none."""
        if not self._metric_updates:
            return {}
        means = (self._metric_sums / self._metric_updates).tolist()
        self._metric_sums.zero_()
        self._metric_updates = 0
        return dict(zip(METRICS, means, strict=True))

    def state(self) -> dict[str, Any]:
        """Weights, the optimizer's moments and the count of updates: views, not copies."""
        return {
            "online": self.online.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state[self._weights],
            "updates": self.updates,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a `state()`. Settings, the learning rate among them, stay those this learner was made with.

        Raises `ConfigError` when the weights do not fit.
        """
        take_weights(self.online, state["online"], "the checkpoint")
        take_weights(self.target, state["target"], "the checkpoint")
        self._follow()
        self.updates = state["updates"]
        self.optimizer.state[self._weights] = {
            name: value.to(self.device, copy=True) for name, value in state["optimizer"].items()
        }

    def load_weights(self, weights: Mapping[str, Tensor], file: Path) -> None:
        """Start both networks from the weights of `file`. Raises `ConfigError`, naming it, when they do not fit."""
        take_weights(self.online, weights, file)
        take_weights(self.target, weights, file)
        self._follow()

    def _follow(self) -> None:
        follow(self.policy, self.online)
        follow(self.target_policy, self.target)


def resolve_device(requested: str) -> torch.device:
    """`auto` is cuda where there is one. Raises `ConfigError` when cuda is asked for and absent."""
    if requested == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, and torch finds no usable GPU here; take cpu or auto")
    if requested == "auto":
        requested = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(requested)


def resolve_precision(requested: str, device: torch.device, deterministic: bool) -> Precision:
    """`auto` is bf16 where the hardware multiplies it natively (AVX512-BF16 or AMX; Ampere and later), else fp32;
    and fp32 when `deterministic`."""
    if requested == "bf16":
        return "bf16"
    if requested == "fp32" or deterministic:
        return "fp32"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks instead of returning them to the kernel.

    Activations of a few megabytes are freed and asked for again at every update; by default each time costs fresh
    zeroed pages. Process-wide, harmless to repeat; does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 1 << 25)  # the largest value it takes
        mallopt(m_trim_threshold, 1 << 30)


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
