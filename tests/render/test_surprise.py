"""`play --surprise`: the transitions that it picks, what it says of them, and the sheet that it draws."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from atari_dqn import play
from atari_dqn.config.setting import ConfigError
from atari_dqn.policy.trained import load_policy
from atari_dqn.render import surprise
from atari_dqn.render.contact_sheet import GAP, HEADER, MARGIN, SIDE, draw
from atari_dqn.render.surprise import Surprise, highest, load_replay, surprises
from atari_dqn.replay.prioritized import PrioritizedReplay
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.training.trainer import Trainer
from tests.run_dirs import make_run
from tests.training.test_trainer import started


def saved(run_dir: Path, trainer: Trainer) -> Path:
    """A run directory of `trainer` as it is now."""
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps(trainer.config.to_dict()))
    trainer.save(CheckpointStore(run_dir))
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
    policy = load_policy(run_dir)
    replay, snapshot = load_replay(policy, CheckpointStore(run_dir).find("latest"))
    slots, shared = highest(replay, 500)
    found = surprises(policy, replay, snapshot, 500)
    assert len(found) > 40
    kept = [at for at, also in enumerate(shared) if not also or any(one.shared for one in found)]
    slots, shared = slots[kept], [shared[at] for at in kept]
    for slot, one in zip(slots, found, strict=True):
        expected = by_hand(trainer, int(slot))
        for name in ("obs", "next_obs"):
            np.testing.assert_array_equal(getattr(one, name), expected.pop(name))
        assert {name: getattr(one, name) for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert one.td_error == one.target - one.q
    leaves = trainer.replay.tree.leaves[torch.from_numpy(slots)].tolist()
    assert leaves == sorted(leaves, reverse=True)
    for one, leaf, also in zip(found, leaves, shared, strict=True):
        assert one.td_error_then == pytest.approx(leaf ** (1 / 0.6) - 1e-6)
        assert one.shared == also
    assert {one.terminal for one in found} == {True, False}
    assert len({one.steps for one in found}) > 1


def filled(rows: int = 32, ticks: int = 50, last: tuple[tuple[int, int], ...] = ()) -> PrioritizedReplay:
    """Two envs, stacks of 1, n-step 3; the frames numbered; at the ticks and envs in `last` an episode ends."""
    replay = PrioritizedReplay(
        2 * rows, 2, (1,), np.float32, 1, n_step=3, gamma=0.9, clip_rewards=False, alpha=0.5, seed=0
    )
    for tick in range(ticks):
        frames = np.full((2, 1), tick, np.float32)
        ends = [(tick, env) in last for env in range(2)]
        replay.append(frames, ends, actions=[0, 1], rewards=[0.0, 0.0], terminal=[False, False])
    return replay


def drawn(replay: PrioritizedReplay, errors: dict[tuple[int, int], float]) -> None:
    """Give the transitions (tick, env) these errors, as an update does."""
    ids = np.array([2 * tick + env for tick, env in errors])
    replay.update_priorities(ids, np.array([*errors.values()]))


def ticks_of(replay: PrioritizedReplay, slots: Any) -> list[tuple[int, int]]:
    return [(int(replay.frames[slot // 2, slot % 2, 0]), int(slot % 2)) for slot in slots]


def test_the_highest_priorities_come_first_one_of_each_neighbourhood_and_none_on_trust() -> None:
    replay = filled()
    errors = {(30, 0): 9.0, (31, 0): 8.5, (28, 0): 8.0, (30, 1): 7.0, (33, 0): 6.0, (27, 0): 5.5, (40, 1): 0.5}
    drawn(replay, errors)
    slots, shared = highest(replay, 20)
    # All others have priority 1 still, above that of (40, 1); 31 and 28 are within 3 steps of 30, and 33 and 27 not.
    assert ticks_of(replay, slots) == [(30, 0), (30, 1), (33, 0), (27, 0), (40, 1)]
    assert not any(shared)
    assert highest(replay, 2)[0].tolist() == slots[:2].tolist()


def test_the_largest_error_is_among_them_though_what_came_later_was_given_its_priority() -> None:
    replay = filled(ticks=45)
    drawn(replay, {(30, 0): 9.0, (30, 1): 7.0})
    for tick in (45, 46, 47):
        replay.append(np.full((2, 1), tick, np.float32), [False] * 2, [0, 1], [0.0] * 2, [False] * 2)
    assert (replay.tree.leaves == replay.tree.leaves.max()).sum() > 4
    slots, shared = highest(replay, 20)
    assert ticks_of(replay, slots) == [(30, 0), (30, 1)]
    assert shared == [True, False]


def test_neighbours_are_neighbours_across_the_seam_of_the_ring_and_far_ones_are_not() -> None:
    replay = filled(rows=32, ticks=50)  # tick 31 lies in the last row, tick 32 in the first
    drawn(replay, {(31, 0): 5.0, (32, 0): 4.0, (34, 0): 3.0, (29, 0): 2.0})
    assert ticks_of(replay, highest(replay, 20)[0]) == [(31, 0), (34, 0)]


def test_the_age_is_in_env_steps_of_which_a_reset_is_none() -> None:
    replay = filled(rows=32, ticks=50, last=((35, 0), (40, 1), (41, 0)))
    drawn(replay, {(46, 0): 9.0, (38, 1): 8.0, (34, 0): 7.0})
    slots, _ = highest(replay, 3)
    assert ticks_of(replay, slots) == [(46, 0), (38, 1), (34, 0)]
    # To tick 49: 3, 11 and 15 ticks of two envs; less the resets after (40, 1) and (41, 0), and after (35, 0) too.
    assert surprise._ages(replay, slots).tolist() == [6, 20, 27]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"replay": "uniform", "replay_capacity": 1000}, "--replay uniform"), ({"alpha": 0.0}, "--alpha 0")],
)
def test_a_replay_without_priorities_is_one_line_before_torch_is_imported(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1", **settings)
    probe = (
        "import sys\n"
        "from atari_dqn import play; from atari_dqn.cli.command import run_command\n"
        f"sys.argv = ['play', {str(run_dir)!r}, '--surprise']\n"
        "try:\n"
        "    run_command(play.main)\n"
        "finally:\n"
        "    print('torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (2, "False\n")
    assert result.stderr == (
        f"error: --surprise shows the highest priorities, and this run has none: it was trained with {words}\n"
    )


def test_a_checkpoint_without_a_replay_and_one_that_nothing_was_learned_from_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^checkpoint \S+ holds no replay to look at [^\n]+$"):
        play.main([str(make_run(tmp_path / "bare", "CartPole-v1")), "--surprise"])
    with started(learning_starts=10_000) as trainer:
        for _ in range(30):
            trainer.iterate()
        run_dir = saved(tmp_path / "run", trainer)
    with pytest.raises(ConfigError, match=r"^no update has drawn a transition of this replay yet[^\n]*$"):
        play.main([str(run_dir), "--surprise"])
    assert not (run_dir / "plots").exists()


def test_the_command_draws_a_sheet_of_a_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with started(env_id="ALE/Breakout-v5", learning_starts=64, replay_ratio=1.0, num_workers=1) as trainer:
        while trainer.learner.updates < 6:
            trainer.iterate()
        run_dir = saved(tmp_path / "run", trainer)
    assert play.main([str(run_dir), "--surprise"]) == 0
    file = run_dir / "plots" / f"{trainer.env_steps}-surprise.png"
    assert capsys.readouterr().out.splitlines()[-1] == str(file)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert imread(file).shape[1] == 5 * (2 * SIDE + GAP + 2 * MARGIN)


def one(obs: Any, next_obs: Any, **changes: Any) -> Surprise:
    facts: dict[str, Any] = {
        "steps": 3, "action": 1, "reward": 1.0, "terminal": False, "q": 0.5, "target": 2.0, "td_error_then": 1.4,
        "shared": False, "age": 12_345,
    }  # fmt: skip
    return Surprise(obs=obs, next_obs=next_obs, **(facts | changes))


def test_each_cell_has_the_frames_before_and_after_pixel_by_pixel() -> None:
    frames = np.random.default_rng(0).integers(256, size=(7, 2, 84, 84), dtype=np.uint8)
    sheet = np.asarray(draw([one(*pair) for pair in frames], ["NOOP", "FIRE"], ["headline", "note"], across=5))
    width = sheet.shape[1] // 5
    height = (sheet.shape[0] - HEADER) // 2
    for number, (before, after) in enumerate(frames):
        row, column = divmod(number, 5)
        cell = sheet[HEADER + row * height :, column * width : (column + 1) * width]
        first = cell[MARGIN : MARGIN + SIDE, MARGIN : MARGIN + SIDE]
        second = cell[MARGIN : MARGIN + SIDE, width - MARGIN - SIDE : width - MARGIN]
        for shown, frame in ((first, before), (second, after)):
            np.testing.assert_array_equal(shown[::2, ::2], np.repeat(frame[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((40, 36, 3), "u1"), ((210, 160, 3), "u1"), ((40, 36, 1), "u1"), ((4,), "f4"), ((128,), "f4"), ((500,), "f4")],
)
def test_frames_in_colour_large_ones_and_vectors_of_any_length_fit_their_cells(shape: Any, dtype: Any) -> None:
    zeros, ones = np.zeros(shape, dtype), np.ones(shape, dtype)
    sheet = draw([one(zeros, ones), one(ones, zeros, terminal=True, reward=0.0)], ["a", "b"], ["", ""], across=2)
    draw([one(ones, zeros, shared=True)], ["a", "b"], ["", ""], across=1)
    assert sheet.height <= HEADER + SIDE + 110
    assert sheet.width <= 2 * (2 * SIDE + GAP + 2 * MARGIN)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with started() as trainer:
        while trainer.learner.updates < 20:
            trainer.iterate()
        run_dir = saved(tmp_path / "run", trainer)
    (run_dir / "plots").write_text("in the way")
    with pytest.raises(Exception, match=r"^\S+-surprise.png cannot be written: [^\n]+$"):
        play.main([str(run_dir), "--surprise"])


def test_one_that_has_the_largest_priority_perhaps_on_trust_is_left_out_unless_it_surprises_still() -> None:
    frame = np.zeros((84, 84), np.uint8)
    for shared, target, counts in ((False, 0.5, True), (True, 0.5, False), (True, 1.1, False), (True, -1.0, True)):
        assert one(frame, frame, q=0.5, target=target, td_error_then=2.0, shared=shared).is_one == counts
