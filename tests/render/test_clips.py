"""Clips of a training under way: they are filmed and shown in TensorBoard, and do not affect the training."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import gymnasium as gym
import numpy as np
import numpy.typing as npt
import psutil
import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atari_dqn.agent.network import make_network
from atari_dqn.config.live import Request
from atari_dqn.envs.film import FilmedEnv
from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.evaluation.player import play as play_game
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.render import clips as recording
from atari_dqn.render.clips import Clip, Order, Recorder, make_clip
from atari_dqn.runs.checkpoint_files import load_tensors, tensor_bytes
from atari_dqn.runs.records import read_rows
from atari_dqn.training.parts import seeds_of
from atari_dqn.training.session import Session
from atari_dqn.training.trainer import Trainer
from tests.faults.trainings import ENDLESS, training
from tests.stubs import Info, Numbered
from tests.test_train import TRAIN
from tests.test_train import run as run_command
from tests.training.test_trainer import make_trainer, weights


class Harmful(Numbered):
    """An env with pictures that raises, dies, hangs or starts a process after 20 steps, as its name says."""

    def __init__(self, fault: str, render_mode: str | None = None) -> None:
        super().__init__(length=sys.maxsize)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
        self.render_mode, self._fault = render_mode, fault

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, Info]:
        if self._step == 20 and self.render_mode:  # only where it is filmed
            if self._fault == "raises":
                raise RuntimeError("the stub\nbroke")
            if self._fault == "dies":
                os._exit(7)
            if self._fault == "parent":
                child = multiprocessing.get_context("spawn").Process(target=print)
                child.start()
                child.join()
            while self._fault == "hangs":
                time.sleep(3600)
        return super().step(action)

    def render(self) -> npt.NDArray[np.uint8]:
        return np.full((60, 80, 3), self._step, np.uint8)


for name in ("Raises", "Dies", "Hangs", "Parent"):
    gym.register(f"Film{name}-v0", "tests.render.test_clips:Harmful", kwargs={"fault": name.lower()})


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(recording, "SECONDS", 1)
    yield
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def trained(trainer: Trainer, run_dir: Path, should_stop: Callable[[], bool] = lambda: False) -> tuple[bool, str]:
    run_dir.mkdir(exist_ok=True)
    told = io.StringIO()
    monitor = Monitor(run_dir, Console(file=told, width=200), "test", trainer.config.run.total_env_steps, 0)
    try:
        return Session(trainer, run_dir, monitor, should_stop).run(), told.getvalue()
    finally:
        monitor.close()


def recorder(run_dir: Path, env_id: str) -> tuple[Recorder, Any]:
    """A recorder and an untrained network."""
    config = make_trainer().config.replace(env_id=env_id)
    spec = env_spec(env_id, PROTOCOLS["nature"], 4)
    return Recorder(run_dir, config, spec, seed=3), make_network(spec, config.network)


def made(recorder: Recorder, seconds: float = 120.0) -> Clip | str:
    """Wait for the clip under way, or why it failed."""
    deadline = time.monotonic() + seconds
    while (answer := recorder.poll(1.0)) is None:
        assert time.monotonic() < deadline
    return answer


def test_a_training_is_filmed_and_not_changed(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"total_env_steps": 1_200, "target_update_interval": 10_000}
    alone = make_trainer(**settings)
    filmed = make_trainer(**settings, record_interval=1_200, eval_epsilon=0.0)
    for trainer in (alone, filmed):
        for parameter in trainer.learner.target.parameters():
            parameter.data.neg_()  # so that the two networks play differently
    trained(alone, tmp_path / "alone")
    done, told = trained(filmed, tmp_path / "filmed")
    assert done
    assert weights(filmed) == weights(alone)
    (file,) = (tmp_path / "filmed" / "videos").iterdir()
    assert file.name == f"{filmed.env_steps}-clip.mp4"
    assert f"clip at env step {filmed.env_steps:,}: {file}, 0." in told
    with av.open(str(file)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == 50, "a second of CartPole"
    assert pictures[0].shape == (400, 1000, 3), "with its panel"
    events = EventAccumulator(str(tmp_path / "filmed"), size_guidance={"images": 0}).Reload()
    (shown,) = events.Images("clips/game")
    assert (shown.step, shown.height, shown.width) == (filmed.env_steps, 240, 360)
    gif = Image.open(io.BytesIO(shown.encoded_image_string))
    assert (gif.format, gif.size, gif.info["loop"]) == ("GIF", (360, 240), 0)
    assert gif.n_frames > 20  # type: ignore[attr-defined]
    assert gif.info["duration"] == 40, "natural speed: every other one of 50 pictures"
    for network, same in ((filmed.learner.online, True), (filmed.learner.target, False)):
        (tmp_path / "weights").write_bytes(tensor_bytes(network.state_dict()))
        seed = seeds_of(filmed.config.run.seed)["evaluation"]
        order = Order(tmp_path / "x.mp4", tmp_path / "weights", filmed.config, filmed.spec, filmed.env_steps, 1, seed)
        assert (make_clip(order).gif == shown.encoded_image_string) == same
    assert not (tmp_path / "alone" / "videos").exists()
    without = EventAccumulator(str(tmp_path / "alone")).Reload()
    assert not without.Tags()["images"]
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("filmed", "alone")]
    for row in (*rows[0], *rows[1]):
        row["time"] = row["charts/SPS"] = 0
    assert rows[0] == rows[1]


def ordered(run_dir: Path, env_id: str) -> Order:
    """An order for a clip of an untrained network."""
    of, network = recorder(run_dir, env_id)
    weights = run_dir / "weights"
    weights.write_bytes(tensor_bytes(network.state_dict()))
    return Order(run_dir / "clip.mp4", weights, of._config, of._spec, 7, 1, of._seed)


def test_a_clip_continues_with_the_next_game_and_reports_the_scores(tmp_path: Path) -> None:
    order = ordered(tmp_path, "CartPole-v1")
    order = dataclasses.replace(order, config=order.config.replace(eval_epsilon=0.5))
    clip = make_clip(order)
    network = make_network(order.spec, order.config.network)
    network.load_state_dict(load_tensors(order.weights))
    env = FilmedEnv(order.spec, PROTOCOLS["nature"], None)
    ends = [[*play_game(network, env, 0.5, order.seed + game)][-1][0] for game in range(len(clip.scores))]
    assert clip.scores == ends
    assert 2 <= len(clip.scores) <= 7
    # One picture of the reset of each game, and one of each step, which CartPole pays 1 for.
    assert 50 - len(clip.scores) - sum(clip.scores) == clip.score + 1
    assert f"whole games: {len(clip.scores)} of mean score {round(np.mean(clip.scores), 2):g}" in str(clip)


def test_an_atari_clip_has_natural_speed_and_size(tmp_path: Path) -> None:
    clip = make_clip(ordered(tmp_path, "ALE/Breakout-v5"))
    assert clip.gif_size == (210, 160)
    assert str(clip).endswith("score 0 (human-normalised -0.06) in 1 s")
    with av.open(str(clip.order.file)) as container:
        assert container.streams.video[0].frames == container.streams.video[0].average_rate == 60


def test_a_clip_shows_the_network_of_its_moment_and_one_clip_is_made_at_a_time(tmp_path: Path) -> None:
    of, network = recorder(tmp_path, "CartPole-v1")
    (tmp_path / "weights").write_bytes(tensor_bytes(network.state_dict()))
    there = make_clip(Order(tmp_path / "x.mp4", tmp_path / "weights", of._config, of._spec, 300, 1, of._seed))
    assert of.begin(300, network) == ""
    for parameter in network.parameters():
        parameter.data.neg_()  # as further training changes it
    (tmp_path / "weights").write_bytes(tensor_bytes(network.state_dict()))
    later = make_clip(Order(tmp_path / "x.mp4", tmp_path / "weights", of._config, of._spec, 300, 1, of._seed))
    if of.env_step is not None:
        assert of.begin(400, network) == "the clip of 300 is not finished"
    clip = made(of)
    assert isinstance(clip, Clip)
    assert clip.gif == there.gif != later.gif
    assert of.env_step is None
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["300-clip.mp4"], "nothing else is left"


@pytest.mark.parametrize(
    ("env_id", "reason"),
    [
        (
            "tests.render.test_clips:FilmRaises-v0",
            "cannot play tests.render.test_clips:FilmRaises-v0: RuntimeError: the stub broke",
        ),
        pytest.param(
            "tests.render.test_clips:FilmDies-v0",
            "the process that films it ended with exit code 7",
            marks=pytest.mark.slow,
        ),
        pytest.param("tests.render.test_clips:FilmHangs-v0", "timed out", marks=pytest.mark.slow),
    ],
)
def test_a_clip_that_fails_is_one_line(
    env_id: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "SECONDS", 5)
    if "Hangs" in env_id:
        monkeypatch.setattr(recording, "DEADLINE", 20.0)
    of, network = recorder(tmp_path, env_id)
    assert of.begin(300, network) == ""
    answer = made(of)
    assert isinstance(answer, str)
    assert answer.startswith(reason)
    assert "\n" not in answer
    assert of.env_step is None
    assert not [path for path in (tmp_path / "videos").iterdir() if path.name.startswith(".")]


def test_an_env_that_starts_a_process_is_filmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "SECONDS", 3)
    of, network = recorder(tmp_path, "tests.render.test_clips:FilmParent-v0")
    assert of.begin(300, network) == ""
    assert isinstance(made(of), Clip)


def test_a_training_continues_when_clips_cannot_be_written_and_obeys_a_live_interval(tmp_path: Path) -> None:
    (tmp_path / "videos").write_text("in the way")
    trainer = make_trainer(total_env_steps=600)
    assert trainer.edit(Request("record_interval", 300, "test")).taken
    done, told = trained(trainer, tmp_path)
    assert done
    lines = [line for line in told.splitlines() if "  no clip at env step" in line]
    assert len(lines) == 2
    assert all(line.endswith(f"File exists: {tmp_path / 'videos'}") for line in lines)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    of, network = recorder(tmp_path, "CartPole-v1")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / ".300-clip.weights").symlink_to("/dev/full")
    assert of.begin(300, network) == "No space left on device"
    assert list((tmp_path / "videos").iterdir()) == []


def test_a_stop_gives_up_the_clip_that_is_being_made(tmp_path: Path) -> None:
    trainer = make_trainer(total_env_steps=10_000, record_interval=200)
    began = time.monotonic()
    done, told = trained(trainer, tmp_path, should_stop=lambda: trainer.env_steps > 220)
    assert not done
    assert "clip at" not in told
    assert time.monotonic() - began < 60
    assert list((tmp_path / "videos").iterdir()) == []


def test_the_end_of_a_run_does_not_wait_forever_for_a_clip_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "SECONDS", 5)  # so that the clip is long enough to reach the step that hangs
    monkeypatch.setattr(recording, "LAST_DEADLINE", 2.0)
    settings: dict[str, Any] = {
        "env_id": "tests.render.test_clips:FilmHangs-v0",
        "total_env_steps": 96,
        "record_interval": 96,
    }
    began = time.monotonic()
    done, told = trained(make_trainer(**settings), tmp_path)
    assert done
    assert "no clip at env step 96: timed out" in told
    assert time.monotonic() - began < recording.DEADLINE / 10


def test_leftovers_of_a_killed_training_are_removed_and_nothing_else(tmp_path: Path) -> None:
    leftovers, kept = [".7-clip.weights", ".7-clip.mp4.partial"], ["7-clip.mp4", ".7-nature-seed0.mp4.partial"]
    (tmp_path / "videos").mkdir()
    for name in leftovers + kept:
        (tmp_path / "videos" / name).touch()
    recorder(tmp_path, "CartPole-v1")
    assert {path.name for path in (tmp_path / "videos").iterdir()} == set(kept)


def test_an_env_that_cannot_draw_itself_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    result = run_command([*TRAIN, "--env-id", "tests.stubs:Numbered-v0", "--record-interval", "100"], tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "cannot draw itself" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 3)])
def test_the_process_that_films_ends_with_its_training(number: int, code: int, tmp_path: Path) -> None:
    with training(tmp_path, [*ENDLESS, "--record-interval", "300"]) as harmed:
        harmed.until(lambda: [*(harmed.run_dir / "videos").glob(".*-clip.mp4.partial")])
        harmed.signal(number, group=number == signal.SIGINT)
        assert harmed.end() == code
