"""The race's peers: the replay on disk, the session that stops and resumes, and weights that play as they trained."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.race.contestants import CONTESTANTS
from benchmarks.race.entry import ROOT
from benchmarks.race.peers import evaluate
from benchmarks.race.peers.replay import FrameReplay
from benchmarks.race.peers.session import Session


@pytest.mark.parametrize("name", [name for name, contestant in CONTESTANTS.items() if contestant.peer])
def test_a_peer_has_a_script_and_requirements(name: str) -> None:
    peer = CONTESTANTS[name].peer
    assert (ROOT / "benchmarks" / "race" / "peers" / f"{peer}.py").is_file()
    assert (ROOT / "benchmarks" / "peers" / "requirements" / f"{peer}.txt").is_file()


# ---------------------------------------------------------------------- the replay


def frame(step: int) -> np.ndarray:
    return np.full((84, 84), step % 251, np.uint8)


def play(replay: FrameReplay, steps: range, length: int, *, terminal: bool = True) -> None:
    """A game of `length` from every multiple of it; the action is the step, the reward its negative."""
    for step in steps:
        replay.add(frame(step), step, -step, terminal and step % length == length - 1)


def check(replay: FrameReplay, length: int, possible: set[int]) -> None:
    """Many drawn transitions are exactly the `possible` steps, with the frames that a frame stack shows."""
    obs, actions, rewards, next_obs, terminal = replay.sample(2000)
    assert set(actions.tolist()) == possible
    np.testing.assert_array_equal(rewards, -actions)
    np.testing.assert_array_equal(terminal, actions % length == length - 1)
    start = actions - actions % length
    for back in range(4):
        np.testing.assert_array_equal(obs[:, 3 - back, 0, 0], np.maximum(actions - back, start) % 251)
        following = np.maximum(actions + 1 - back, start) % 251
        np.testing.assert_array_equal(next_obs[~terminal, 3 - back, 83, 83], following[~terminal])


def test_a_replay_of_frames_gives_the_stacks_of_the_game(tmp_path: Path) -> None:
    replay = FrameReplay(tmp_path / "replay", 50, seed=1)
    play(replay, range(30), 7)
    check(replay, 7, set(range(29)))
    play(replay, range(30, 125), 7)
    assert len(replay) == 50
    check(replay, 7, set(range(78, 124)))  # without the newest, and three whose older frames are overwritten


def test_a_replay_of_frames_resumes_and_joins_no_games(tmp_path: Path) -> None:
    play(FrameReplay(tmp_path / "replay", 50, seed=1), range(12), 4, terminal=False)
    replay = FrameReplay(tmp_path / "replay", 50, seed=1, added=12)  # as a new game, at step 12
    play(replay, range(12, 24), 12, terminal=True)
    replay.add(frame(24), 24, -24, False)
    replay.cut()
    replay.add(frame(25), 25, -25, False)
    replay.add(frame(26), 26, -26, False)
    obs, actions, *_ = replay.sample(2000)
    assert set(actions.tolist()) == {*range(11), *range(12, 24), 25}
    assert obs[actions == 12][0, :, 0, 0].tolist() == [12] * 4
    assert obs[actions == 25][0, :, 0, 0].tolist() == [25] * 4


# ---------------------------------------------------------------------- the session


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr("sys.argv", ["peer", str(tmp_path / "run"), "space_invaders", "7"])
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    made = Session()
    for number, handler in before.items():
        signal.signal(number, handler)
    return made


def test_a_session_keeps_its_state(session: Session) -> None:
    assert session.env_id == "SpaceInvadersNoFrameskip-v4"
    assert session.load_state() is None
    session.save_state({"env_steps": 3, "frames": np.arange(4)})
    assert session.load_state()["env_steps"] == 3
    assert session.load_state()["frames"].tolist() == [0, 1, 2, 3]


class Dueling(nn.Module):
    """labml's head: a shared hidden layer, then two streams of half its width."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3136, 512)
        self.v, self.a = (nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, n)) for n in (1, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lin(x).relu()
        advantage: torch.Tensor = self.a(x)
        return self.v(x) + advantage - advantage.mean(1, keepdim=True)


CONVOLUTIONS = {"conv1": "0", "conv2": "2", "conv3": "4"}
HEADS = {
    "plain": {"hidden": "7.0", "q": "7.2"},
    "dueling": {
        "shared": "7.lin",
        "value_hidden": "7.v.0",
        "value": "7.v.2",
        "advantage_hidden": "7.a.0",
        "advantage": "7.a.2",
    },
}


@pytest.mark.parametrize("head", HEADS)
def test_a_peers_network_plays_as_ours_or_not_at_all(session: Session, head: str) -> None:
    torch.manual_seed(1)
    top = Dueling() if head == "dueling" else nn.Sequential(nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 4))
    convolutions = [nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3)]
    peer = nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), top)
    layers = CONVOLUTIONS | HEADS[head]

    def arrays(scale: float) -> dict[str, np.ndarray]:
        session.save_weights(5, peer.state_dict(), layers, lambda obs: peer(torch.from_numpy(obs) / scale))
        with np.load(session.run_dir / "weights.npz") as file:
            return {name: file[name] for name in file.files if name != "env_step"}

    config, network = evaluate.as_ours("ALE/Breakout-v5", arrays(255.0))
    assert config.network.dueling == (head == "dueling")
    obs = torch.randint(256, (16, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(network(obs), peer(obs / 255.0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="differ"):
        evaluate.as_ours("ALE/Breakout-v5", arrays(1.0))
