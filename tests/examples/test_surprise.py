"""`examples.surprise`: the transitions that it picks, their figures, and the sheet that it draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.policy.trained import TrainedNetwork, load_policy
from atari_dqn.replay.prioritized import PrioritizedReplay
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.training.snapshot import save
from atari_dqn.training.trainer import Trainer
from examples import surprise
from examples.surprise import NUMBERS, Surprise, draw, load_replay, surprises
from tests.run_dirs import make_run
from tests.training.test_trainer import started


def saved(run_dir: Path, trainer: Trainer) -> Path:
    """A run directory of `trainer` as it is now."""
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps(trainer.config.to_dict()))
    save(trainer, CheckpointStore(run_dir))
    return run_dir


def by_hand(trainer: Trainer, slot: int) -> dict[str, Any]:
    """A transition of `trainer`'s replay walked through step by step, and its target by the definition."""
    ring, config = trainer.replay.ring, trainer.config
    row, env = divmod(slot, ring.num_envs)
    total, discount, steps = 0.0, 1.0, 0
    while steps < config.replay.n_step:
        total += discount * float(ring.reward[(row + steps) % ring.rows, env])
        discount *= config.replay.gamma
        steps += 1
        if ring.terminal[(row + steps - 1) % ring.rows, env]:
            discount = 0.0
            break
        if ring.last[(row + steps) % ring.rows, env]:
            break
    frames = ring.frames[:, env]
    with torch.inference_mode():
        q = trainer.learner.online(frames[row][None, None])[0, ring.action[row, env]]
        after = frames[(row + steps) % ring.rows][None, None]
        best = trainer.learner.online(after).argmax()
        target = total + discount * float(trainer.learner.target(after)[0, best])
    return {
        "obs": frames[row].numpy(),
        "next_obs": frames[(row + steps) % ring.rows].numpy(),
        "steps": steps,
        "action": int(ring.action[row, env]),
        "reward": total,
        "terminal": discount == 0,
        "q": float(q),
        "target": target,
    }


def test_a_real_runs_surprises_are_those_of_its_saved_networks_and_replay(tmp_path: Path) -> None:
    with started(replay_capacity=256, n_step=3, clip_rewards=False) as trainer:
        while trainer.learner.updates < 300:  # the ring has gone round by then
            trainer.iterate()
        for parameter in trainer.learner.target.advantage.parameters():
            parameter.data.neg_()  # so that the two networks prefer different actions
        assert trainer.replay.newest > 2 * trainer.replay.num_rows
        run_dir = saved(tmp_path / "run", trainer)
    policy, ring = load_policy(run_dir), trainer.replay.ring
    replay, target = load_replay(policy, CheckpointStore(run_dir).find("latest"))
    found = surprises(policy, target, replay, 500)
    assert len(found) > 40
    drawable = np.flatnonzero(ring.drawable)
    by_slot = {int(slot): by_hand(trainer, int(slot)) for slot in drawable}
    errors = {slot: abs(facts["target"] - facts["q"]) for slot, facts in by_slot.items()}
    expected: list[int] = []
    for slot in sorted(errors, key=lambda slot: -errors[slot]):
        of_env = [other for other in expected if (other - slot) % ring.num_envs == 0]
        row, *rows = ((ring.newest - at // ring.num_envs) % ring.rows for at in (slot, *of_env))
        if all(abs(row - other) >= 3 for other in rows):
            expected.append(slot)
    for slot, one in zip(expected, found, strict=True):
        facts = by_slot[slot]
        for name in ("obs", "next_obs"):
            np.testing.assert_array_equal(getattr(one, name), facts.pop(name))
        assert {name: getattr(one, name) for name in facts} == pytest.approx(facts, rel=1e-5, abs=1e-6)
        assert one.td_error == one.target - one.q
    assert {one.terminal for one in found} == {True, False}
    assert len({one.steps for one in found}) > 1


Tick = tuple[int, int]
"""A tick and an environment."""


def filled(rows: int = 32, ticks: int = 50, last: tuple[Tick, ...] = ()) -> PrioritizedReplay:
    """Two envs, stacks of 1, n-step 3. A frame is its tick, plus 100 in env 1. Episodes end at the ticks in `last`."""
    replay = PrioritizedReplay(
        2 * rows, 2, (1,), np.float32, 1, n_step=3, gamma=0.9, clip_rewards=False, alpha=0.5, seed=0
    )
    for tick in range(ticks):
        frames = np.array([[tick], [100 + tick]], np.float32)
        ends = [(tick, env) in last for env in range(2)]
        replay.append(frames, ends, actions=[0, 1], rewards=[0.0, 0.0], terminal=[False, False])
    return replay


class Table(torch.nn.Module):
    """The Q values of every action, from a table of ticks; 0 elsewhere."""

    def __init__(self, values: dict[Tick, float]) -> None:
        super().__init__()
        self.values = {tick + 100 * env: value for (tick, env), value in values.items()}

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[self.values.get(int(frame), 0.0)] * 2 for frame in obs.flatten()])


def found_in(replay: PrioritizedReplay, errors: dict[Tick, float], most: int) -> list[tuple[Tick, Surprise]]:
    """The surprises of a network that has these TD errors now, and 0 elsewhere."""
    spec = env_spec("CartPole-v1", PROTOCOLS["nature"], 1)
    policy = TrainedNetwork(TrainConfig(), spec, Table({at: -error for at, error in errors.items()}), 0)
    found = surprises(policy, Table({}), replay, most)
    return [((int(one.obs[0]) % 100, int(one.obs[0]) // 100), one) for one in found]


def test_the_largest_errors_come_first_of_either_sign_and_one_of_each_neighbourhood() -> None:
    errors = {(30, 0): 9.0, (31, 0): 8.5, (28, 0): 8.0, (30, 1): -7.0, (33, 0): 6.0, (27, 0): -5.5, (40, 1): 0.5}
    found = found_in(filled(), errors, 5)
    # (31, 0) and (28, 0) are within 3 steps of (30, 0); (33, 0) and (27, 0) are not.
    assert [at for at, _ in found] == [(30, 0), (30, 1), (33, 0), (27, 0), (40, 1)]
    assert [one.td_error for _, one in found] == [9.0, -7.0, 6.0, -5.5, 0.5]


def test_only_the_highest_priorities_are_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = filled()
    replay.update_priorities(np.array([2 * 30, 2 * 20 + 1]), np.array([9.0, 8.0]))  # all others have priority 1
    errors = {(30, 0): 1.0, (20, 1): 3.0, (40, 1): 100.0}
    assert [at for at, _ in found_in(replay, errors, 3)] == [(40, 1), (20, 1), (30, 0)]
    monkeypatch.setattr(surprise, "CANDIDATES", 2)
    assert [at for at, _ in found_in(replay, errors, 3)] == [(20, 1), (30, 0)]


def test_transitions_are_neighbours_across_the_seam_of_the_ring() -> None:
    replay = filled(rows=32, ticks=50)  # tick 31 lies in the last row, tick 32 in the first
    found = found_in(replay, {(31, 0): 5.0, (32, 0): 4.0, (34, 0): 3.0, (29, 0): 2.0}, 2)
    assert [at for at, _ in found] == [(31, 0), (34, 0)]


def test_the_age_is_in_ticks() -> None:
    found = found_in(filled(rows=32, ticks=50), {(46, 0): 9.0, (38, 1): 8.0, (34, 0): 7.0}, 3)
    assert [(at, one.age) for at, one in found] == [((46, 0), 3), ((38, 1), 11), ((34, 0), 15)]


@pytest.mark.parametrize("settings", [{"replay": "uniform", "replay_capacity": 1000}, {"alpha": 0.0}])
def test_a_replay_without_priorities_is_one_line(settings: dict[str, Any], tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1", **settings)
    with pytest.raises(ConfigError, match=r"^\S+ was trained without priorities; [^\n]+$"):
        surprise.main([str(run_dir)])


def test_a_checkpoint_without_a_replay_or_without_transitions_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^cannot read the replay of checkpoint \S+: [^\n]+$"):
        surprise.main([str(make_run(tmp_path / "bare", "CartPole-v1"))])
    with pytest.raises(ConfigError, match=r"^the replay has no complete transition yet[^\n]*$"):
        found_in(filled(ticks=1), {}, 1)


def test_the_command_draws_a_sheet_of_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with started(env_id="ALE/Breakout-v5", learning_starts=64, replay_ratio=1.0, num_workers=1) as trainer:
        while trainer.learner.updates < 6:
            trainer.iterate()
        run_dir = saved(tmp_path / "run", trainer)
        env_steps = trainer.env_steps
        trainer.iterate()
        save(trainer, CheckpointStore(run_dir))
    assert surprise.main([str(run_dir / "checkpoints" / str(env_steps))]) == 0
    file = run_dir / "plots" / f"{env_steps}-surprise.png"
    assert capsys.readouterr().out == f"{file}\n"
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert imread(file).shape[1] == 1600


def one(obs: Any, next_obs: Any) -> Surprise:
    return Surprise(
        obs=obs, next_obs=next_obs, steps=3, action=1, reward=1.0, terminal=False, q=0.5, target=2.0, age=12_345
    )


def test_each_cell_has_the_frames_before_and_after() -> None:
    frames = np.random.default_rng(0).integers(256, size=(7, 2, 84, 84), dtype=np.uint8)
    sheet = draw([one(*pair) for pair in frames], ["NOOP", "FIRE"], "title")
    images = [axes.images[0].get_array() for cell in sheet.subfigs for axes in cell.axes]
    np.testing.assert_array_equal(images, frames.reshape(-1, 84, 84))
    assert sheet.subfigs[0].get_suptitle() == (
        "FIRE   TD +1.500\nQ 0.500   target 2.000   reward +1\n12,345 ticks ago, and 3 later"
    )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((40, 36, 3), "u1"), ((210, 160, 3), "u1"), ((40, 36, 1), "u1"), ((4,), "f4"), ((128,), "f4"), ((500,), "f4")],
)
def test_frames_in_colour_large_ones_and_vectors_of_any_length_are_drawn(shape: Any, dtype: Any) -> None:
    zeros, ones = np.zeros(shape, dtype), np.ones(shape, dtype)
    draw([one(zeros, ones), one(ones, zeros)], ["a", "b"], "").canvas.draw()


def names_of_bars(numbers: list[str], length: int = 4) -> list[str]:
    sheet = draw([one(np.zeros(length), np.ones(length))], ["a", "b"], "", numbers)
    sheet.canvas.draw()
    return [label.get_text() for axes in sheet.subfigs[0].axes if axes.axison for label in axes.get_yticklabels()]


def test_bars_of_a_vector_are_named_once_while_there_is_room() -> None:
    assert names_of_bars(NUMBERS["CartPole-v1"]) == ["position", "velocity", "angle", "angular velocity"]
    assert names_of_bars([], 3) == ["observation[0]", "observation[1]", "observation[2]"]
    assert names_of_bars([], 128) == []


@pytest.mark.parametrize("env_id", NUMBERS)
def test_each_number_of_a_known_env_has_a_name(env_id: str) -> None:
    if env_id.startswith("LunarLander"):
        pytest.importorskip("Box2D")
    assert gym.make(env_id).observation_space.shape == (len(NUMBERS[env_id]),)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with started() as trainer:
        while trainer.learner.updates < 20:
            trainer.iterate()
        run_dir = saved(tmp_path / "run", trainer)
    (run_dir / "plots").write_text("in the way")
    with pytest.raises(Exception, match=r"^cannot write \S+-surprise.png: [^\n]+$"):
        surprise.main([str(run_dir)])
