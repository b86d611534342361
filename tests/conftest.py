"""What the tests share by name."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import torch

from atari_dqn.config.schema import EnvConfig
from atari_dqn.workers.local import LocalSupervisor
from atari_dqn.workers.supervisor import Supervisor
from tests.ray_nodes import Nodes

if TYPE_CHECKING:
    from atari_dqn.distributed.cluster import Cluster

hypothesis.settings.register_profile("any_machine", deadline=None)  # no test judges speed
hypothesis.settings.load_profile("any_machine")


@pytest.fixture(scope="session", autouse=True)
def _stubs_can_be_imported() -> Iterator[None]:
    """By programs that tests start elsewhere, and by their workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        patch.setenv("ATARI_DQN_SHOW_RESULT", "0")  # a curve and a film at the end of every run
        yield


@pytest.fixture(autouse=True)
def _the_same_whatever_ran_before() -> None:
    """Weights of networks that are made here and now (a training draws its own from its seed); what a training in this
    process may have left in torch; and threads: small tensors are quicker on one, and other tests have the other cores.
    """
    torch.manual_seed(1)
    torch.use_deterministic_algorithms(False)
    torch.set_flush_denormal(False)
    torch.backends.cudnn.allow_tf32 = True
    torch.set_num_threads(1)


@pytest.fixture
def popen() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`subprocess.Popen` with text, whose processes end with the test even where it fails."""
    with contextlib.ExitStack() as ends:

        def start(*words: Any, **given: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen(*words, text=True, **given)
            ends.callback(process.wait)
            ends.callback(process.kill)
            return process

        yield start


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    """A Ray cluster of three nodes with four CPUs each, to which this process is connected by `cluster`."""
    running = Nodes(4, 4, 4)
    yield running
    running.close()


@pytest.fixture(scope="session")
def cluster(nodes: Nodes) -> Iterator[Cluster]:
    from atari_dqn.distributed.cluster import connected

    with connected(
        nodes.address, EnvConfig(env_id="ALE/Breakout-v5", num_workers=1, envs_per_worker=1), print
    ) as found:
        yield found


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def supervisor(request: pytest.FixtureRequest) -> Callable[..., Supervisor]:
    """What runs a pool's workers: processes of this machine, or of three nodes."""
    if request.param == "local":
        return LocalSupervisor
    from atari_dqn.distributed.supervisor import ClusterSupervisor

    return partial(ClusterSupervisor, request.getfixturevalue("cluster"))
