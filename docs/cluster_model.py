"""Model of the speed of one run over a cluster; the table of docs/design-cluster.md.

python -m docs.cluster_model
"""

import dataclasses
import math

STEP = 1 / 1895
"""Seconds of one core per env step (benchmarks/results/scale.json, one worker)."""
CALL = 0.001
"""Seconds of the learner's machine per node and tick: an empty call of Ray took 0.7 to 1 ms."""
CORES = 8
"""Cores of every machine for environments."""


@dataclasses.dataclass(frozen=True)
class Learner:
    """What learns, and how often."""

    name: str
    batch_size: int
    replay_ratio: float
    update: float
    """Seconds of an update."""
    act: float
    """Seconds of a tick's forward pass, whatever the number of envs."""
    act_env: float
    """More seconds per env."""

    @property
    def rate(self) -> float:
        """Env steps per second that it can use."""
        return self.batch_size / self.replay_ratio / self.update


LEARNERS = (
    Learner("CPU", 32, 8, update=0.015, act=0.0, act_env=80e-6),
    Learner("GPU", 32, 8, update=0.001, act=0.0005, act_env=4e-6),
    Learner("GPU", 512, 8, update=0.002, act=0.0005, act_env=4e-6),
    Learner("GPU", 512, 1, update=0.002, act=0.0005, act_env=4e-6),
)
"""The CPU is that of benchmarks/README.md; acting takes 2% of the time of its updates (`python -m atari_dqn.bench`).
The times of a GPU are assumed."""


def rate(learner: Learner, nodes: int, envs: int, round_trip: float) -> float:
    """Env steps per second with `envs` on each of `nodes`; no nodes: on the cores of the learner's machine."""
    total = envs * max(nodes, 1)
    step = math.ceil(envs / CORES) * STEP + (round_trip if nodes else 0.0)
    return total / (learner.act + learner.act_env * total + nodes * CALL + max(total / learner.rate, step))


def table() -> str:
    """Rates in Markdown, by learner, envs a core, nodes and round trip."""
    lines = [
        "| learner, batch, ratio | envs a core | no node | 1 node, 5 ms | 2 | 4 | 8 | 4 nodes, 1 ms | 20 ms | limit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    places = ((0, 0.0), (1, 0.005), (2, 0.005), (4, 0.005), (8, 0.005), (4, 0.001), (4, 0.02))
    for learner in LEARNERS:
        for each in (2, 16):
            rates = [*(rate(learner, nodes, each * CORES, trip) for nodes, trip in places), learner.rate]
            what = f"{learner.name}, {learner.batch_size}, {learner.replay_ratio:g}"
            lines.append(f"| {what} | {each} | {' | '.join(f'{number:,.0f}' for number in rates)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
