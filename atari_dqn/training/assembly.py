"""Assembly of a training: from settings to a trainer."""

from collections.abc import Callable

from atari_dqn.agent.actor import Actor
from atari_dqn.agent.cuda_graph import CapturedLearner, CapturedNetwork
from atari_dqn.agent.device import resolve_device, resolve_precision
from atari_dqn.agent.learner import Learner
from atari_dqn.agent.network import make_network
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec
from atari_dqn.replay.make import make_replay
from atari_dqn.training.parts import OnWait, Parts, seeds_of
from atari_dqn.training.trainer import Trainer
from atari_dqn.workers.local import LocalSupervisor
from atari_dqn.workers.pool import WorkerPool
from atari_dqn.workers.supervisor import Supervisor


def local_trainer(config: TrainConfig, spec: EnvSpec) -> Trainer:
    """A trainer whose workers are processes of this machine. Raises `ConfigError` where the device is missing."""
    return Trainer(config, spec, local_parts(config, spec))


def local_parts(config: TrainConfig, spec: EnvSpec) -> Parts:
    """Replay, learner and actor on one device, and worker processes on this machine."""
    return assemble(config, spec, LocalSupervisor)


def assemble(config: TrainConfig, spec: EnvSpec, supervisor: Callable[..., Supervisor]) -> Parts:
    """Replay, learner and actor on one device, and a pool whose workers are run by `supervisor`; see `WorkerPool`."""
    device = resolve_device(config.run.device)
    seeds = seeds_of(config.run.seed)
    replay = make_replay(
        config.replay,
        num_envs=config.num_envs,
        frame_shape=spec.frame_shape,
        frame_dtype=spec.frame_dtype,
        stack=spec.stack,
        seed=seeds["replay"],
        device=device,
    )
    captured = device.type == "cuda" and config.learner.cuda_graph
    learner: Learner = (CapturedLearner if captured else Learner)(
        lambda: make_network(spec, config.network),
        replay,
        config.learner,
        seed=seeds["network"],
        device=device,
        precision=resolve_precision(config.learner.precision, device, config.run.deterministic),
    )
    # On the learner's stream and with its weights: with a copy of its own it would wait for the same updates.
    policy = learner.policy
    actor = Actor(CapturedNetwork(policy, device) if captured else policy, spec.num_actions, seed=seeds["actor"])

    def make_pool(seed: int, on_wait: OnWait | None) -> WorkerPool:
        return WorkerPool(
            spec,
            PROTOCOLS[config.env.protocol],
            num_workers=config.env.num_workers,
            envs_per_worker=config.env.envs_per_worker,
            seed=seed,
            deadline=config.env.worker_deadline,
            restarts=config.env.worker_restarts,
            exact=config.run.deterministic,
            on_wait=on_wait,
            supervisor=supervisor,
        )

    return Parts(replay, learner, actor, make_pool)
