"""Views: all show the same names and values, and a line or panel comes in time."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from atari_dqn.cli.format import duration, plural
from atari_dqn.config.live import Edit
from atari_dqn.monitoring import terminal as terminal_module
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.monitoring.tensorboard import TensorBoard
from atari_dqn.monitoring.terminal import Terminal, curve
from atari_dqn.monitoring.views import Row

ROW = {
    "env_step": 500,
    "update": 40,
    "time": 1.5,
    "charts/episodic_return": 12.25,
    "settings/epsilon": 0.5,
    "losses/td_loss": 0.01,
}


def test_the_record_and_tensorboard_hold_the_same_values(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, Console(quiet=True), "test", 1_000, 0)
    monitor.write(ROW)
    monitor.write(ROW | {"env_step": 1_000, "losses/td_loss": 0.02})
    monitor.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == ROW
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {name for name in ROW if "/" in name}
    assert [(event.step, event.value) for event in events.Scalars("losses/td_loss")] == [
        (500, pytest.approx(0.01)),
        (1_000, pytest.approx(0.02)),
    ]


def test_tensorboard_hides_what_was_logged_past_the_checkpoint_of_a_resume(tmp_path: Path) -> None:
    for resumed_at, steps in ((0, (100, 200, 300)), (200, (310, 400))):
        view = TensorBoard(tmp_path, resumed_at, print)
        for step in steps:
            view.write(ROW | {"env_step": step})
        view.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("losses/td_loss")
    assert [event.step for event in events] == [100, 200, 310, 400]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_terminal_shows_every_quantity(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PANEL_SECONDS", "FIRST_LINE_SECONDS", "LINE_SECONDS"):
        monkeypatch.setattr(terminal_module, name, 0.0)
    out = io.StringIO()
    view = Terminal(Console(file=out, force_terminal=terminal, width=100), "Breakout", 1_000, 0)
    view.write(ROW)
    view.tick(400)
    view.tick(500)
    view.close()
    for words in ("env steps", "500 / 1,000", "updates", "40", "steps/s", "time left", "12.25", "0.500", "0.01"):
        assert words in out.getvalue()


def test_the_last_evaluation_stays_with_its_age_and_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PANEL_SECONDS", "FIRST_LINE_SECONDS", "LINE_SECONDS"):
        monkeypatch.setattr(terminal_module, name, 0.0)

    def seen(resumed_at: int, evaluations: dict[int, float]) -> str:
        out = io.StringIO()
        monitor = Monitor(tmp_path, Console(file=out, width=200), "test", 10_000, resumed_at)
        for step, score in evaluations.items():
            monitor.write(ROW | {"env_step": step, "eval/episodic_return": score, "eval/human_normalized": score / 10})
            monitor.write({"env_step": step + 500})
            monitor.tick(step + 700)
        monitor.tick(4_000)
        monitor.close()
        return " ".join(out.getvalue().splitlines()[-1].split())

    assert "evaluation" not in seen(0, {})
    line = seen(0, {1_000: 3.0, 2_000: 7.5, 3_000: 5.0})
    assert "evaluation 5.00 (50% of human) best evaluation 7.50 evaluated 1,000 steps ago" in line
    assert "loss 0.01" in line, "as the last row that had one"
    line = seen(2_500, {})
    assert "evaluation 7.50 (75% of human) best evaluation 7.50 evaluated 2,000 steps ago" in line, (
        "of before the resume"
    )
    assert "episode return 12.25 best return 12.25" in line, "of before the resume"
    line = seen(2_500, {3_100: -2.0})
    assert "evaluation -2.00 (as random play) best evaluation 7.50 evaluated 900 steps ago" in line


def test_a_log_has_the_time_of_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal_module, "FIRST_LINE_SECONDS", 0.0)
    out = io.StringIO()
    monitor = Monitor(tmp_path, Console(file=out, width=200), "test", 10_000, 0)
    monitor.tick(1)
    monitor.say("what happened")
    assert [bool(re.match(r"\d\d:\d\d:\d\d  \w", line)) for line in out.getvalue().splitlines()] == [True, True]


def test_a_message_above_the_panel_is_broken_between_words_and_loses_none(tmp_path: Path) -> None:
    out = io.StringIO()
    monitor = Monitor(tmp_path, Console(file=out, force_terminal=True, width=40, color_system=None), "test", 10_000, 0)
    message = "evaluation at 300,000 env steps: mean 20.50 (95% interval 18.40 to 22.61), median 20.5; 8 games"
    monitor.say(message)
    shown = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    assert "evaluation at 300,000 env steps: mean\n20.50 (95% interval 18.40 to 22.61),\nmedian 20.5; 8 games" in shown
    monitor.close()


SIZES = [(80, 24), (120, 40), (200, 50)]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_panel_fits_the_terminal_and_shortens_nothing(
    width: int, height: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal_module, "PANEL_SECONDS", 0.0)
    row = ROW | {"charts/human_normalized": 0.391, "eval/episodic_return": 1234.5, "eval/human_normalized": 0.25}
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=height, color_system=None)
    view = Terminal(console, "Breakout", 10_000_000, 0, 5_000_000, (4_000_000, 9_000_000))
    for env_step in range(1, 4_000_001, 100_000):
        view.write(row | {"env_step": env_step, "charts/episodic_return": env_step / 1e6})
    view.write(row | {"env_step": 4_000_001, "charts/episodic_return": 99.0, "charts/episodes": 99.0})
    view.tick(4_000_000, "starting 8 workers")
    screen = out.getvalue().rpartition("╭")[2].splitlines()
    assert len(screen) <= height - 6, "with room for a few lines above"
    assert {len(line) for line in screen[1:]} == {width - 2}, "^C fits behind the last one"
    for words in ("4,000,000 / 10,000,000", "random play until 5,000,000", "(39% of human)", "starting 8 workers"):
        assert words in "\n".join(screen)
    assert "best return 3.90" in " ".join("".join(screen).split()), "of 100 games"
    assert "…" not in "".join(screen)
    assert sum("█" in line for line in screen) == {24: 3, 40: 10, 50: 10}[height]
    console.width = width - 1
    view.tick(4_000_000)
    console.width = width
    view.tick(4_000_000)
    assert out.getvalue().count("\x1b[2J") == 1, "a narrower terminal has broken the panel's lines"
    view.close()
    assert " ran 0s " in out.getvalue().rpartition("╰")[2], "not what it did last"


def test_the_curve_lies_over_its_env_steps_and_reaches_from_the_lowest_to_the_highest_score() -> None:
    assert curve([(1, 1.0), (2, 1.0), (8, 8.0)], 8, 1) == " ▁▁▁▁▁▁█"
    assert curve([(0, 0.0), (4, 15.0)], 4, 2) == "   █\n▁▁▁█"
    assert curve([(1, 3.0), (2, 3.0)], 2, 1) == " ▁", "a score that never changes"
    many = [(env_step, float(env_step // 500)) for env_step in range(1, 1_001)]
    assert curve(many, 2, 1) == "▁▅", "the mean of each part"


def test_the_time_to_a_score_above_random_play_is_shown_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(terminal_module, "time", SimpleNamespace(monotonic=lambda: now, strftime=str))
    view = Terminal(Console(file=io.StringIO(), width=100), "Breakout", 10_000, 0, 500, (2_000, 3_000))

    def shown() -> str | None:
        return dict(view._facts()).get("above random play")

    view.tick(10)
    assert shown() == "..."
    now = 10.0
    view.tick(600)
    now = 20.0
    view.tick(700)
    assert shown() == "about 2m10s to 3m50s"
    now = 30.0
    view.tick(3_000)
    assert shown() is None


class PageOfOneEdit:
    """A page on which epsilon was set to -1, and which lost three rows."""

    dropped = 3

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.shown: list[Mapping[str, float]] = []
        self.answers: list[tuple[str, str]] = []
        self.closed = False

    def write(self, row: Row) -> None:
        self.rows.append(row)

    def poll(self) -> list[tuple[str, Any]]:
        return [("epsilon", -1.0), ("beta", 0.5)]

    def show(self, values: Mapping[str, float]) -> None:
        self.shown.append(values)

    def answer(self, name: str, text: str) -> None:
        self.answers.append((name, text))

    def problem(self) -> str | None:
        return "no server"

    def close(self) -> None:
        self.closed = True


def test_rows_and_values_reach_the_page_and_its_edits_and_problems_come_back(tmp_path: Path) -> None:
    out, page = io.StringIO(), PageOfOneEdit()
    monitor = Monitor(tmp_path, Console(file=out), "test", 1_000, 0, page)
    monitor.write(ROW)
    asked = [(request.name, request.value, request.source) for request in monitor.asked()]
    assert asked == [("epsilon", "schedule", "dashboard"), ("beta", 0.5, "dashboard")]
    monitor.show({"epsilon": "schedule", "target_update_interval": 500})
    taken = Edit(0.0, 1_200, 300, "beta", 0.4, 0.5, True, "dashboard")
    for edit in (taken, dataclasses.replace(taken, taken=False, reason="beta is 5; it must be from 0 to 1")):
        monitor.answer(1_200, edit)
    assert page.answers == [
        ("beta", "env step 1,200: taken: beta 0.4 → 0.5 (dashboard)"),
        ("beta", "env step 1,200: refused: beta is 5; it must be from 0 to 1"),
    ]
    monitor.close()
    assert (page.rows, page.shown, page.closed) == ([ROW], [{"epsilon": -1.0, "target_update_interval": 500.0}], True)
    for line in ("labml: no server\n", "labml: 3 points did not reach the server; metrics.jsonl has them all\n"):
        assert line in out.getvalue()


def test_nothing_is_drawn_before_it_is_time() -> None:
    out = io.StringIO()
    view = Terminal(Console(file=out), "Breakout", 1_000, 0)
    for step in range(1_000):
        view.tick(step)
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m00s"), (61, "1m01s"), (3_725, "1h02m"), (90_000, "1d01h")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_one_worker_is_not_workers() -> None:
    assert [plural(number, "worker") for number in (0, 1, 2)] == ["0 workers", "1 worker", "2 workers"]


def test_random_play_says_nothing_of_the_time_that_learning_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(terminal_module, "time", SimpleNamespace(monotonic=lambda: now, strftime=str))
    view = Terminal(Console(file=io.StringIO()), "Breakout", 1_000, 0, learning_starts=500)
    view.tick(0)
    now = 10.0
    view.tick(490)
    assert (view.steps_per_second(), view.eta()) == (49.0, "random play until 500")
    now = 11.0
    view.tick(510)
    assert view.eta() == "..."
    now = 31.0
    view.tick(550)
    assert (view.steps_per_second(), view.eta()) == (2.0, "3m45s")


def test_a_run_of_random_play_alone_has_its_time_left() -> None:
    view = Terminal(Console(file=io.StringIO()), "Breakout", 1_000, 0, learning_starts=1_000)
    view.tick(500)
    assert view.eta() == "..."


def test_what_is_over_takes_no_more_time() -> None:
    """The last tick of several envs may pass the end, and a clip may be waited for behind it."""

    class Paced(Terminal):
        def steps_per_second(self) -> float:
            return 0.5

    view = Paced(Console(file=io.StringIO()), "Breakout", 10, 0)
    view.tick(8)
    assert view.eta() == "4s"
    view.tick(12)
    assert view.eta() == "0s"


def test_tensorboard_has_the_settings_as_a_text_and_as_hyperparameters(tmp_path: Path) -> None:
    settings = {"env_id": "ALE/Pong-v5", "batch_size": 32, "mlp_hidden": [64, 64], "deterministic": True, "none": None}
    monitor = Monitor(tmp_path, Console(quiet=True), "test", 1_000, 0, settings=settings)
    monitor.write(ROW)
    monitor.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (text,) = events.Tensors("settings/text_summary")
    assert b"batch_size | 32" in text.tensor_proto.string_val[0]
    found = HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    ).session_start_info.hparams
    assert (found["batch_size"].number_value, found["mlp_hidden"].string_value) == (32, "[64, 64]")
    assert found["deterministic"].string_value == "True"
    assert set(events.Tags()["scalars"]) == {name for name in ROW if "/" in name}
