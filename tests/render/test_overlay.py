"""`play`: the panel beside a game, and the choice of the game."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch

from atari_dqn import play
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.film import FilmedEnv
from atari_dqn.envs.make import env_spec, make_vector_env
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.envs.single import action_names
from atari_dqn.evaluation.player import Decision
from atari_dqn.evaluation.player import play as play_game
from atari_dqn.render.overlay import (
    BLUE,
    DIM,
    FAINT,
    FLASH_SECONDS,
    GREEN,
    ORANGE,
    PANEL_WIDTH,
    PAPER,
    RAISED,
    RED,
    ROWS_AT,
    Overlay,
    bar,
    blank,
    write,
)
from atari_dqn.render.video import enlarge
from tests.run_dirs import make_run
from tests.stubs import FiveLives, Info

NATURE, MACHADO = PROTOCOLS["nature"], PROTOCOLS["machado"]
Pixels = npt.NDArray[np.uint8]


class Drawn(FiveLives):
    """An env with 5 lives of 3 steps each, a raw reward of 7 a step, and pictures as grey as the step's number."""

    drawn = 0

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
        self.render_mode = render_mode

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, Info]:
        *outcome, info = super().step(action)
        return *outcome, info | {"raw_reward": 7.0}  # type: ignore[return-value]

    def render(self) -> Pixels:
        Drawn.drawn += 1
        return np.full((100, 80, 3), self._step, np.uint8)


gym.register("DrawnLives-v0", Drawn)  # type: ignore[arg-type]


def has(picture: Pixels, colour: tuple[int, int, int]) -> int:
    """The number of pixels of that colour."""
    return int((picture == colour).all(axis=2).sum())


def decision(q: list[float], action: int, random: bool = False) -> Decision:
    return Decision(np.array(q, np.float32), action, random)


def pictures_of(file: Path) -> list[Pixels]:
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]  # type: ignore[misc]


# ---------------------------------------------------------------------- drawing


def test_text_is_aligned_and_clipped_and_all_digits_have_the_same_width() -> None:
    width = write(blank(60, 300), "score 17", 0, 0, 20)
    for align, left in (("left", 100), ("right", 100 - width)):
        picture = blank(60, 300)
        assert write(picture, "score 17", 100, 20, 20, align=align) == width  # type: ignore[arg-type]
        columns = np.flatnonzero((picture != blank(60, 300)).any(axis=(0, 2)))
        assert left <= columns.min() <= left + 3
        assert left + width - 4 <= columns.max() < left + width
    whole, cut = blank(100, 300), blank(20, 60)
    write(whole, "score 17", 20, 10, 20)
    write(cut, "score 17", 20, 10, 20)
    np.testing.assert_array_equal(cut, whole[:20, :60])
    write(cut, "far away", 500, 500)
    assert len({write(whole, digit * 6, 0, 0, 28, bold=True) for digit in "0123456789"}) == 1


def test_a_bar_goes_to_either_side_and_is_at_least_a_pixel_wide() -> None:
    for reach, columns in ((10.0, range(50, 60)), (-10.0, range(40, 50)), (0.2, range(50, 51)), (0.0, range(0))):
        picture = blank(10, 100)
        bar(picture, 50, 2, reach, 4, BLUE)
        assert set(np.flatnonzero((picture[3] == BLUE).all(axis=1))) == set(columns)


# ---------------------------------------------------------------------- the env that is filmed


def test_actions_have_the_emulators_names() -> None:
    for protocol in (NATURE, MACHADO):
        spec = env_spec("ALE/Breakout-v5", protocol, 4)
        games: Any = make_vector_env(spec, protocol, 1)
        assert action_names(spec, protocol) == tuple(action.name for action in games.actions)
    assert action_names(env_spec("CartPole-v1", NATURE, 4), NATURE) == ("left", "right")
    shifted = env_spec("tests.stubs:Shifted-v0", NATURE, 4)
    assert action_names(shifted, NATURE) == ("action 0", "action 1", "action 2")


def test_score_and_lives_belong_to_the_picture_down_to_the_tick() -> None:
    spec = env_spec("ALE/Breakout-v5", NATURE, 4)
    seen: list[tuple[float, int | None]] = []
    env = FilmedEnv(spec, NATURE, lambda picture: seen.append((env.score, env.lives)))
    env.reset(3)
    assert set(seen) == {(0.0, 5)}
    actions, total, over = np.random.default_rng(5), 0.0, False
    while not over:
        _, reward, over = env.step(int(actions.integers(4)))
        total += reward
        assert env.score == total
    env.close()
    scores, lives = [score for score, _ in seen], [left for _, left in seen]
    assert scores == sorted(scores)
    assert scores[-1] == total > 0
    assert sorted(set(lives), key=lives.index) == [5, 4, 3, 2, 1, 0]
    assert {at % 4 for at in range(1, len(lives)) if lives[at] != lives[at - 1]} != {0}, "not only after a decision"


def test_a_score_is_raw_where_rewards_are_shaped_and_restarts_with_each_game() -> None:
    spec = env_spec("DrawnLives-v0", NATURE, 4)
    seen: list[float] = []
    env = FilmedEnv(spec, NATURE, lambda picture: seen.append(env.score))
    for seed in (1, 2):
        env.reset(seed)
        assert (env.score, env.lives, seen[-1]) == (0.0, None, 0.0), "the first picture belongs to the new game"
        env.step(0)
        assert env.score == 7.0
    env.close()


def test_unfilmed_games_are_the_same_and_nothing_is_drawn() -> None:
    actions = np.random.default_rng(0).integers(4, size=60)
    spec, games = env_spec("ALE/Breakout-v5", MACHADO, 4), []
    for show in (lambda picture: None, None):
        env = FilmedEnv(spec, MACHADO, show)
        env.reset(9)  # the game before leaves nothing behind
        env.step(1)
        frames = [env.reset(7), *(env.step(int(action))[0] for action in actions)]
        games.append((env.score, np.array(frames)))
        env.close()
    assert games[0][0] == games[1][0]
    np.testing.assert_array_equal(games[0][1], games[1][1])
    before = Drawn.drawn
    env = FilmedEnv(env_spec("DrawnLives-v0", NATURE, 4), NATURE, None)
    env.reset(0)
    env.step(0)
    assert Drawn.drawn == before


# ---------------------------------------------------------------------- decisions


class Linear(torch.nn.Linear):
    """A linear Q function of CartPole's state."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations[:, 0])


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_each_decision_is_reported_before_the_step_with_its_q_and_whether_it_was_random(epsilon: float) -> None:
    torch.manual_seed(0)
    spec, network = env_spec("CartPole-v1", NATURE, 4), Linear(4, 2)
    told: list[Decision] = []
    pictures: list[int] = []
    env = FilmedEnv(spec, NATURE, lambda picture: pictures.append(len(told)))
    ends = []
    for seed in range(8):
        before = len(told)
        ends.append([*play_game(network, env, epsilon, seed, told.append)][-1])
        assert pictures[-1] == len(told) == before + ends[-1][1]
    env.close()
    assert all(score == env_steps for score, env_steps in ends)
    assert all(each.action == each.q.argmax() for each in told if not each.random)
    share = np.mean([each.random for each in told])
    assert share == pytest.approx(epsilon, abs=0.15)
    if epsilon:
        assert {each.action == each.q.argmax() for each in told if each.random} == {True, False}


# ---------------------------------------------------------------------- the panel


def band(picture: Pixels, width: int) -> range:
    """The rows of the highlighted action."""
    rows = np.flatnonzero((picture[:, width + PANEL_WIDTH - 10] == RAISED).all(axis=1))
    assert (np.diff(rows) == 1).all()
    return range(rows[0], rows[-1] + 1)


@pytest.mark.parametrize(
    ("num_actions", "height", "width"), [(2, 400, 600), (4, 210, 160), (18, 210, 160), (18, 96, 96)]
)
def test_every_action_has_a_row_of_its_own_and_the_value_has_room_below(
    num_actions: int, height: int, width: int
) -> None:
    overlay = Overlay("title", [f"action {action}" for action in range(num_actions)], 60, 4)
    film = np.zeros((height, width, 3), np.uint8)
    bands = []
    for action in range(num_actions):
        overlay.decide(decision([0.0] * num_actions, action))
        picture = overlay.beside(film, 0, None)
        bands.append(band(picture, picture.shape[1] - PANEL_WIDTH))
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert bands[0].start == ROWS_AT
    assert all(one.stop == next_one.start for one, next_one in itertools.pairwise(bands))
    assert min(len(rows) for rows in bands) >= 16
    assert len(picture) - bands[-1].stop >= 150
    large = enlarge(film)
    top = (len(picture) - len(large)) // 2
    beside = picture[:, : large.shape[1]]
    np.testing.assert_array_equal(beside[top : top + len(large)], large)
    assert has(beside, PAPER) == beside.shape[0] * beside.shape[1] - large.shape[0] * large.shape[1], "in the middle"


def test_bars_show_differences_from_the_mean_on_one_scale() -> None:
    overlay = Overlay("title", ["a", "b", "c"], 60, 4)
    overlay.decide(decision([1.0, 3.0, 2.0], 1))
    picture = overlay.beside(np.zeros((210, 160, 3), np.uint8), 0, None)[:, -PANEL_WIDTH:]
    rows = band(picture, 0)
    best = picture[(rows.start + rows.stop) // 2]
    blue = np.flatnonzero((best == BLUE).all(axis=1))
    blue = blue[blue > 20]  # right of the mark at the row's beginning
    middle = np.flatnonzero((picture[ROWS_AT : rows.stop] == DIM).all(axis=(0, 2)))
    assert blue.min() == middle[0] + 1
    worst = picture[rows.start - 17]
    grey = np.flatnonzero((worst == FAINT).all(axis=1))
    assert grey.max() == middle[0] - 1
    assert len(grey) == pytest.approx(len(blue), abs=2), "both are as far from the mean"
    overlay.decide(decision([1.9, 2.1, 2.0], 1))
    later = overlay.beside(np.zeros((210, 160, 3), np.uint8), 0, None)[:, -PANEL_WIDTH:]
    shorter = (later[(rows.start + rows.stop) // 2][20:] == BLUE).all(axis=1).sum()
    assert 0 < shorter < len(blue) / 8, "smaller differences have shorter bars"


def test_a_greedy_choice_is_blue_and_a_random_one_orange_even_if_it_is_the_best() -> None:
    for random, colour, other in ((False, BLUE, ORANGE), (True, ORANGE, BLUE)):
        overlay = Overlay("title", ["a", "b"], 60, 4)
        overlay.decide(decision([1.0, 2.0], 1, random))
        picture = overlay.beside(np.zeros((210, 160, 3), np.uint8), 0, None)[:, -PANEL_WIDTH:]
        rows = picture[band(picture, 0)]
        assert has(rows, colour) > 500
        assert has(rows, other) == 0


def test_a_lost_life_reddens_the_lives_for_a_while_and_a_bonus_life_does_not() -> None:
    overlay, film = Overlay("title", ["a", "b"], 10, 1), np.full((210, 160, 3), 90, np.uint8)
    reds = []
    for lives in (4, 5, *[4] * 8):
        overlay.decide(decision([1.0, 2.0], 1))
        picture = overlay.beside(film, 0, lives)
        reds.append(has(picture[40:90, -PANEL_WIDTH:], RED) > 20)
    lit = int(FLASH_SECONDS * 10)
    assert reds == [False] * 2 + [True] * lit + [False] * (8 - lit)
    below = picture[400:, -PANEL_WIDTH:].astype(int)
    assert ((below[..., 0] > 180) & (below[..., 1] < 100)).sum() > 100, "a mark in the graph"


def test_rewards_are_shown_with_their_sign_for_a_while() -> None:
    film = np.zeros((210, 160, 3), np.uint8)
    for reward, colour, other in ((3.0, GREEN, RED), (-3.0, RED, GREEN)):
        overlay = Overlay("title", ["a", "b"], 10, 1)
        overlay.decide(decision([1.0, 2.0], 1))
        assert has(overlay.beside(film, 0, None)[40:90, -PANEL_WIDTH:], colour) == 0
        paid = overlay.beside(film, reward, None)[40:90, -PANEL_WIDTH:]
        assert has(paid, colour) > 20
        assert has(paid, other) == 0
        for _ in range(7):
            later = overlay.beside(film, reward, None)[40:90, -PANEL_WIDTH:]
        assert has(later, colour) == 0


# ---------------------------------------------------------------------- the command


def test_the_panel_is_beside_the_film_and_the_plain_film_has_none(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    assert play.main([str(run_dir)]) == play.main([str(run_dir), "--no-overlay"]) == 0
    shown = pictures_of(run_dir / "videos" / "5000-seed0.mp4")
    plain = pictures_of(run_dir / "videos" / "5000-seed0-plain.mp4")
    assert len(shown) == len(plain)
    assert shown[0].shape == (400, 600 + PANEL_WIDTH, 3)
    assert plain[0].shape == (400, 600, 3)
    for with_panel, without in zip(shown, plain, strict=True):
        assert np.abs(with_panel[:, :600].astype(int) - without).mean() < 3


def test_the_best_and_the_worst_of_several_games_are_filmed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    flags = ["--best", "--worst", "--episodes", "6", "--epsilon", "1", "--seed", "3"]
    assert play.main([str(run_dir), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    scores = {int(line.split()[1][:-1]): int(line.split()[3]) for line in lines if line.startswith("seed ")}
    assert list(scores) == [3, 4, 5, 6, 7, 8]
    files = {file.name: len(pictures_of(file)) for file in (run_dir / "videos").iterdir()}
    best, worst = max(scores, key=lambda seed: scores[seed]), min(scores, key=lambda seed: scores[seed])
    assert scores[best] > scores[worst]
    # CartPole pays 1 a step, each of which is one picture after that of the reset.
    assert files == {
        f"5000-seed{best}-best-of-6.mp4": scores[best] + 1,
        f"5000-seed{worst}-worst-of-6.mp4": scores[worst] + 1,
    }


def test_games_that_all_tie_are_filmed_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a CartPole network that has learned."""
    monkeypatch.setattr("atari_dqn.envs.film.GAME_LIMIT", 4)
    run_dir = make_run(tmp_path / "run", "tests.stubs:OnlyOne-v0")
    assert play.main([str(run_dir), "--best", "--worst", "--episodes", "3"]) == 0
    assert [file.name for file in (run_dir / "videos").iterdir()] == ["5000-seed0-best-of-3.mp4"]
    assert "all 3 games have the same score, so one is filmed" in capsys.readouterr().out
    assert play.main([str(run_dir), "--worst", "--episodes", "3"]) == 0
    assert len(list((run_dir / "videos").iterdir())) == 2


def test_a_game_of_breakout_is_the_same_when_it_is_filmed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here with sticky actions and after another game in the same env."""
    run_dir = make_run(tmp_path / "run", "ALE/Breakout-v5", protocol="machado")
    assert play.main([str(run_dir), "--best", "--episodes", "2", "--epsilon", "1", "--no-overlay"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (filmed,) = (line.removeprefix("game over: ") for line in lines if line.startswith("game over: "))
    assert [line.partition(": ")[2] for line in lines if line.startswith("seed ")].count(filmed) == 1
    assert len(list((run_dir / "videos").iterdir())) == 1


def test_flags_that_contradict_each_other_are_one_line_before_torch_is_imported(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    mistakes = [["--episodes", "3"], ["--best", "--episodes", "0"]]
    probe = (
        "import sys\n"
        "from atari_dqn import play\n"
        "from atari_dqn.config.setting import ConfigError\n"
        f"for flags in {mistakes!r}:\n"
        "    try:\n"
        f"        play.main([{str(run_dir)!r}, *flags])\n"
        "    except ConfigError as error:\n"
        "        print(error)\n"
        "print('torch' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=300, check=False)
    assert result.stdout.splitlines() == [
        "--episodes needs --best or --worst, which pick one of that many games",
        "--episodes is 0; it must be from 1 to 100000",
        "False",
    ], result.stderr


def test_an_env_that_cannot_draw_itself_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^tests.stubs:Numbered-v0 cannot draw itself: [^\n]+$"):
        play.main([str(make_run(tmp_path / "run", "tests.stubs:Numbered-v0")), "--best"])
