"""Assembly of a training whose workers are on the nodes of a cluster."""

from functools import partial

from atari_dqn.config.schema import TrainConfig
from atari_dqn.distributed.cluster import Cluster
from atari_dqn.distributed.supervisor import ClusterSupervisor
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.training.assembly import assemble
from atari_dqn.training.parts import Parts


def cluster_parts(cluster: Cluster, config: TrainConfig, spec: EnvSpec) -> Parts:
    """Replay, learner and actor as on one machine, and workers on the nodes of `cluster`."""
    return assemble(config, spec, partial(ClusterSupervisor, cluster))
