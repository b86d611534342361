"""Tests of the connection to a cluster: what is refused before the run, in one line."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from atari_dqn.config.setting import ConfigError
from atari_dqn.distributed.cluster import Cluster
from atari_dqn.envs.versions import difference, versions
from tests.ray_nodes import Nodes, until
from tests.test_train import SHORT, run


def test_versions_name_what_must_be_equal() -> None:
    found = versions(["breakout"])
    assert found.keys() == {
        "Python",
        "atari_dqn",
        "ale-py",
        "gymnasium",
        "numpy",
        "opencv-python",
        "ROM of breakout",
    }
    assert "none" not in found.values()
    assert "ROM of breakout" not in versions([])
    assert difference(found, found) == ""
    theirs = found | {"ale-py": "0.1", "ROM of breakout": "beef"}
    rom = found["ROM of breakout"]
    assert (
        difference(theirs, found) == f"ale-py 0.1 instead of {found['ale-py']}, ROM of breakout beef instead of {rom}"
    )


def test_without_a_cluster_a_run_ends_with_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    with socket.socket() as bound:  # without `listen` it refuses
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        ended = run([*SHORT, "--cluster", address], tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(f"error: --cluster: no Ray cluster at {address} .*\n", ended.stderr)
    assert not [*tmp_path.iterdir()]


@pytest.mark.ray
def test_a_token_that_is_missing_here_is_asked_for_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    ended = run([*SHORT, "--cluster", "local"], tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch(r"error: --cluster local: RAY_AUTH_TOKEN_PATH .*nowhere; set RAY_AUTH_MODE=.*\n", ended.stderr)
    assert not [*tmp_path.iterdir()]


def test_several_seeds_are_for_sweep(tmp_path: Path) -> None:
    ended = run([*SHORT, "--seeds", "2", "--cluster", "local"], tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert re.fullmatch("error: --cluster is for a single run; .*atari_dqn.sweep.*\n", ended.stderr)


@pytest.mark.ray
def test_a_node_with_other_versions_is_refused_by_name(cluster: Cluster, nodes: Nodes, tmp_path: Path) -> None:
    """Before a run, and when it joins late."""
    metadata = tmp_path / "ale_py-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: ale-py\nVersion: 0.0.1\n")
    other = nodes.add(4, env_vars={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"})
    ours = versions([])["ale-py"]
    line = rf"node \S+ \({other.node_id[:6]}\) has ale-py 0.0.1 instead of {re.escape(ours)}"
    try:
        said: list[str] = []
        with pytest.raises(ConfigError, match=rf"^--cluster: {line}; install the same as here"):
            Cluster(nodes.address, "", said.append).check_versions()
        late = Cluster(nodes.address, "", said.append)
        until(lambda: len(late.usable()) == 3 and len(said) == 2)
        assert re.fullmatch(f"not used: {line}", said[1])
        assert other.node_id not in late.usable()
    finally:
        nodes.kill(other.node_id)
