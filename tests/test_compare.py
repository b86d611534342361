"""`atari-dqn compare` on run directories made by hand."""

from __future__ import annotations

import io
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.image import imread
from rich.console import Console

from atari_dqn import compare
from atari_dqn.comparison.figure import COLOURS, draw
from atari_dqn.comparison.runs import (
    NOT_LEARNING,
    Configuration,
    configurations,
    find_runs,
    names_of,
    read_run,
    remarks,
)
from atari_dqn.comparison.scores import curve, evaluation_points, final_scores, times_to
from atari_dqn.comparison.tables import Table, markdown, tables, terminal
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, settings
from atari_dqn.evaluation.intervals import estimate, improvement, interval, iqm
from atari_dqn.runs.directory import named
from tests.run_dirs import log, make_run, make_settings, python


def seeds(tmp_path: Path, name: str, ends: list[float], env_id: str = "CartPole-v1", **changes: Any) -> list[Path]:
    """Runs with seeds 1, 2...: the score of each rises linearly to its end, in 10 rows."""
    runs = []
    for seed, end in enumerate(ends, start=1):
        run_dir = tmp_path / f"{name}-{seed}"
        make_settings(run_dir, env_id, seed=seed, **changes)
        log(run_dir, {step: end * step / 5000 for step in range(500, 5001, 500)})
        runs.append(run_dir)
    return runs


def read(runs: list[Path]) -> list[Configuration]:
    return configurations([read_run(path) for path in runs])


def table(made: list[Table], title: str) -> Table:
    (found,) = [each for each in made if each.title.startswith(title)]
    return found


def legend(axes: Axes) -> list[str]:
    shown = axes.get_legend()
    assert shown is not None
    return [text.get_text() for text in shown.get_texts()]


def lines(axes: Axes, style: str) -> list[Any]:
    """Points of the lines of this style."""
    return [line.get_xydata() for line in axes.lines if line.get_linestyle() == style]


# ---------------------------------------------------------------------- one run


def test_one_run_is_drawn_as_it_was_logged(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "first", "ALE/Breakout-v5")
    log(run_dir, {1000: 1.0, 2000: 12.5, 3000: 33.0}, {3000: (28.0, 31.0, 60.0)})
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"env_step": 99')  # a run that is still writing
    figure = draw(read([run_dir]))
    (axes,) = figure.axes
    np.testing.assert_array_equal(lines(axes, "-")[0], [[1000, 1], [2000, 12.5], [3000, 33]])
    assert not axes.collections[1:], "no band: a single seed has no interval"
    (point,) = axes.containers
    data, _, (bars,) = point
    np.testing.assert_array_equal(data.get_xydata(), [[3000, 31]])
    np.testing.assert_array_equal(bars.get_segments(), [[[3000, 28], [3000, 60]]])
    assert axes.get_title(loc="left") == "ALE/Breakout-v5"
    assert legend(axes) == ["first"]
    assert {text.get_text() for text in axes.texts} == {"random 1.7", "human 30.5"}
    (frames,) = axes.child_axes
    figure.draw_without_rendering()
    assert frames.get_xlim()[1] == pytest.approx(4 * axes.get_xlim()[1])
    assert axes.get_ylim()[1] > 60, "the interval is in sight"
    assert "100 games" in figure.get_supxlabel()
    assert "not smoothed" in figure.get_supxlabel()


def edited(run_dir: Path, edits: list[tuple[int, str, Any, Any, bool]]) -> Path:
    """Live edits of a run: env step, name, old and new value, and whether it was taken."""
    rows = [
        {
            "time": 0,
            "update": 9,
            "source": "tune",
            "env_step": step,
            "name": name,
            "old": old,
            "new": new,
            "taken": taken,
        }
        for step, name, old, new, taken in edits
    ]
    (run_dir / "hparam_edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_dir


def test_accepted_edits_are_numbered_and_explained_below(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    log(run_dir, {500: 20.0, 4000: 200.0})
    edited(run_dir, [(600, "learning_rate", 1e-4, 5e-5, True), (700, "learning_rate", 5e-5, -1, False)])
    (axes,) = draw(read([run_dir])).axes
    assert [points[0][0] for points in lines(axes, "--")] == [600]
    assert [text.get_text().replace("\u00a0", " ") for text in axes.texts] == [
        "1", "live edits  1: learning_rate 0.0001 → 5e-05",
    ]  # fmt: skip


def test_labels_of_edits_never_overlap(tmp_path: Path) -> None:
    """Of any number of edits, some at one env step, of two configurations."""
    runs = []
    for name in ("few", "many"):
        many: list[tuple[int, str, Any, Any, bool]] = []
        many += [(600, "epsilon", "schedule", 0.05, True)] if name == "few" else []
        many += [(1000 + 20 * i * i, "target_update_interval", 2000 + i, 2001 + i, True) for i in range(12)]
        runs.append(edited(make_run(tmp_path / name, "CartPole-v1"), many + many[-1:]))
        log(runs[-1], {500: 20.0, 4000: 200.0})
    figure = draw(read(runs))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    *labels, explained = axes.texts
    assert [label.get_color() for label in labels].count(COLOURS[1]) > 4
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert labels[0].get_text() == "1"
    assert labels[-1].get_text().endswith("27")
    assert explained.get_text().count("\n") == 5
    box, legend_below = explained.get_window_extent(), figure.texts[-1].get_window_extent()
    assert box.y0 > legend_below.y1
    assert box.x0 > 0
    assert box.x1 < figure.bbox.x1


def test_a_curve_is_dotted_until_a_hundred_games_have_ended(tmp_path: Path) -> None:
    """The first games to end are the shortest, so it begins low."""
    (first, second) = (make_run(tmp_path / name, "CartPole-v1", seed=seed) for seed, name in enumerate("ab"))
    log(first, {100: 1.0, 400: 2.0, 500: 30.0, 600: 40.0})  # a game for each 5 env steps
    log(second, {100: 2.0, 550: 20.0, 600: 30.0})
    (axes,) = draw(read([first])).axes
    assert lines(axes, ":")[0].tolist() == [[100, 1], [400, 2], [500, 30]]
    assert lines(axes, "-")[0].tolist() == [[500, 30], [600, 40]]
    drawn = curve([read_run(first), read_run(second)])
    assert drawn is not None
    assert drawn.steps.tolist() == [550, 600]


def test_evaluations_at_one_env_step_lie_side_by_side_each_with_its_epsilon(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "ALE/Breakout-v5")
    log(run_dir, {1000: 1.0})
    row = {"env_id": "ALE/Breakout-v5", "env_step": 1000, "mean": 3.0, "ci95": [2, 5]}
    card = [{**row, "protocol": name, "epsilon": epsilon} for name in ("nature", "machado") for epsilon in (0.0, 0.05)]
    (run_dir / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in card))
    figure = draw(read([run_dir]))
    (axes,) = figure.axes
    figure.draw_without_rendering()
    places = sorted(float(point[0].get_transform().transform((1000, 3.0))[0]) for point in axes.containers)
    assert min(np.diff(places)) > 5, "pixels"
    assert [text.get_text() for text in axes.texts if text.get_text() in ("0", "0.05")] == ["0", "0.05"] * 2
    evaluated = table(tables(read([run_dir])), "Latest evaluations")
    assert [cells[:2] for cells in evaluated.rows] == [
        ["nature", "0"], ["nature", "0.05"], ["machado", "0"], ["machado", "0.05"],
    ]  # fmt: skip
    assert evaluated.rows[0][-2:] == ["3.00 [2.00, 5.00]", f"{1.3 / 28.8:.2f}"]


def test_a_run_that_was_only_evaluated_is_drawn_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = make_run(tmp_path / "run", "ALE/Breakout-v5")
    log(run_dir, {}, {3000: (28.0, 31.0, 37.0)})
    assert compare.main([str(run_dir), "--threshold", "3"]) == 0
    assert imread(run_dir / "plots" / "compare.png").shape == (720, 1200, 4)
    shown = capsys.readouterr().out
    assert "evaluation: 31.00 [28.00, 37.00] (human-normalised 1.02) at 3,000 env steps, nature, epsilon 0.01" in (
        " ".join(shown.split())
    )
    assert "training" not in shown
    assert shown.splitlines()[-2:] == [str(run_dir / "plots" / name) for name in ("compare.png", "compare.md")]


def test_one_run_has_a_line_for_each_score_instead_of_tables(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "ALE/Breakout-v5", seed=7)
    log(run_dir, {1000: 1.7, 2000: 30.5}, {1500: (1.0, 2.0, 3.0), 2000: (28.0, 31.0, 37.0)})
    (only,) = tables(read([run_dir]), threshold=20.0)
    assert only.title == "run: ALE/Breakout-v5, seed 7, mean scores [95% interval over games]"
    assert (only.header, only.rows) == ([], [])
    assert only.notes == [
        "training: 30.50 (human-normalised 1.00) at 2,000 env steps, last 100 games",
        "to a mean of 20: 2,000 env steps, 20 s, 400 games",
        "evaluation: 31.00 [28.00, 37.00] (human-normalised 1.02) at 2,000 env steps, nature, epsilon 0.01",
    ]
    assert "to a mean of 99: never" in tables(read([run_dir]), threshold=99.0)[0].notes
    assert markdown([only], "p.png").splitlines()[4:7] == [f"## {only.title}", "", f"- {only.notes[0]}"]
    console = Console(width=200, file=io.StringIO())
    console.print(terminal(only))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().split("\n") == [only.title, *only.notes, "", ""]
    plain = make_run(tmp_path / "plain", "CartPole-v1")
    log(plain, {}, {3000: (28.0, 31.0, 37.0)})
    assert tables(read([plain]))[0].notes == ["evaluation: 31.00 [28.00, 37.00] at 3,000 env steps, epsilon 0.01"]


# ---------------------------------------------------------------------- configurations


def test_runs_that_differ_in_seed_place_workers_and_clips_are_one_configuration(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "run", [1.0, 2.0], num_workers=8, envs_per_worker=2)
    runs += [make_run(tmp_path / "other", "CartPole-v1", seed=9, num_workers=2, envs_per_worker=8, log_interval=7)]
    runs += [make_run(tmp_path / "filmed", "CartPole-v1", seed=10, record_interval=1000)]
    for run_dir in runs[-2:]:
        log(run_dir, {500: 3.0})
    edit = {"env_step": 400, "update": 1, "name": "record_interval", "old": 1000, "new": 500, "taken": True}
    row = {**edit, "id": "a", "time": 1.0, "source": "file", "reason": ""}
    (runs[-1] / "hparam_edits.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = read(runs)
    assert [edit.name for edit in found.runs[-1].edits] == ["record_interval"]
    assert [run.config.run.seed for run in found.runs] == [1, 2, 9, 10]
    assert (found.letter, found.settings) == ("", {})


def test_settings_that_cannot_change_learning_exist() -> None:
    assert set(settings(TrainConfig)) > NOT_LEARNING


def test_each_setting_in_which_configurations_differ_is_named(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "one", [1.0, 2.0], n_step=1)
    runs += seeds(tmp_path, "three", [1.0, 2.0], n_step=3, mlp_hidden=(64, 64))
    more_envs = seeds(tmp_path, "more", [1.0], n_step=1, num_workers=16)
    first, second, third = read(runs + more_envs)
    assert first.settings == {"num_envs": "16", "n_step": "1", "mlp_hidden": "128 128"}
    assert second.settings == {"num_envs": "16", "n_step": "3", "mlp_hidden": "64 64"}
    assert third.settings == {"num_envs": "32", "n_step": "1", "mlp_hidden": "128 128"}
    assert [each.letter for each in (first, second, third)] == ["A", "B", "C"]
    assert first.label == "A: num_envs 16, n_step 1, mlp_hidden 128 128 (2 runs)"
    assert third.label == "C: more-1"
    named = table(tables([first, second, third]), "Settings in which the runs differ")
    assert named.header == ["", "A", "B", "C"]
    assert ["n_step", "1", "3", "1"] in named.rows
    assert ["seeds", "1 2", "1 2", "1"] in named.rows


def test_a_run_tuned_by_hand_is_another_configuration(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "run", [1.0, 2.0])
    edit = {"time": 0, "update": 9, "env_step": 600, "source": "tune", "taken": True}
    rate = {**edit, "name": "learning_rate", "old": 1e-4, "new": 5e-5}
    # Which does not change what is learned.
    interval = {**edit, "name": "eval_interval", "old": 0, "new": 1000}
    (runs[0] / "hparam_edits.jsonl").write_text(json.dumps(interval) + "\n")
    (runs[1] / "hparam_edits.jsonl").write_text(json.dumps(interval) + "\n" + json.dumps(rate) + "\n")
    first, second = read(runs)
    assert first.settings == {"live edits": "none"}
    assert second.settings == {"live edits": "learning_rate 5e-05 at 600"}


def test_a_seed_used_twice_is_remarked(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "run", [1.0, 2.0]) + seeds(tmp_path, "again", [1.0])
    assert any("several runs have seed 1;" in line for line in remarks(read(runs)))


def test_runs_of_different_revisions_or_precisions_are_remarked(tmp_path: Path) -> None:
    runs = seeds(tmp_path, "run", [1.0, 2.0])
    for path, revision in zip(runs, ("aaa", "bbb"), strict=True):
        (path / "system.json").write_text(json.dumps({"git_revision": revision, "precision": "fp32"}))
    assert remarks(read(runs)) == ["The runs used different revisions of the code (aaa, bbb)."]
    (runs[1] / "system.json").write_text("torn {")
    assert remarks(read(runs)) == []


def test_a_directory_of_runs_means_the_runs_in_it_and_each_counts_once(tmp_path: Path) -> None:
    runs = seeds(tmp_path / "all", "run", [1.0, 2.0])
    places = [tmp_path / "all", runs[1], tmp_path / "all" / ".." / "all" / "run-1"]
    assert find_runs(named(place, takes="run runs") for place in places) == runs
    with pytest.raises(ConfigError, match=r"is not a run directory: it has no config\.json$"):
        compare.main([str(runs[0] / "metrics.jsonl")])
    assert compare.main([str(tmp_path / "all")]) == 0
    assert (tmp_path / "all" / "plots" / "compare.md").is_file()


def test_runs_that_cannot_be_compared_are_left_out_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    make_settings(runs / "a-new", "CartPole-v1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="a-new has no score yet: no game of it is finished"):
        compare.main(["runs"])
    seeds(runs, "run", [1.0])
    seeds(runs / "many", "seed", [1.0])
    (runs / "old").mkdir()
    (runs / "old" / "config.json").write_text('{"frames": 4}')
    assert compare.main(["runs"]) == 0
    shown = capsys.readouterr().out
    assert "left out: runs/a-new has no score yet: no game of it is finished\n" in shown
    assert "left out: runs/old/config.json" in shown
    assert "seed-1, run-1" in shown
    os.utime(runs / "many" / "seed-1" / "config.json", (2**32, 2**32))
    assert compare.main([]) == 0, "the newest run"
    assert (runs / "many" / "seed-1" / "plots" / "compare.png").is_file()
    with pytest.raises(ConfigError, match="elsewhere does not exist"):
        compare.main([str(tmp_path / "elsewhere")])


def test_runs_of_the_same_name_are_named_with_their_parent_directory() -> None:
    assert names_of([Path("one/seed-1"), Path("one/seed-2")]) == ["seed-1", "seed-2"]
    assert names_of([Path("one/seed-1"), Path("three/seed-1")]) == ["one/seed-1", "three/seed-1"]


# ---------------------------------------------------------------------- over seeds


def test_a_curve_is_the_interquartile_mean_over_seeds_with_its_interval(tmp_path: Path) -> None:
    ends = [10.0, 40.0, 20.0, 30.0, 1000.0]
    (found,) = read(seeds(tmp_path, "run", ends))
    drawn = curve(found.runs)
    assert drawn is not None
    np.testing.assert_array_equal(drawn.steps, np.arange(500, 5001, 500))
    np.testing.assert_allclose(drawn.centre, 30.0 * drawn.steps / 5000)
    low, high = map(float, interval(iqm, np.array(ends), resamples=2000))
    assert (drawn.low[-1], drawn.high[-1]) == pytest.approx((low, high))
    (axes,) = draw([found]).axes
    (band,) = axes.collections
    assert np.asarray(band.get_paths()[0].vertices)[:, 1].max() == pytest.approx(high)
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    assert len(thin) == 5, "each run is drawn too"
    assert legend(axes) == ["all (5 runs)"]


def test_a_curve_is_drawn_where_all_seeds_have_scores(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / name, "CartPole-v1", seed=seed) for seed, name in enumerate("ab"))
    log(first, {100: 1.0, 200: 2.0, 300: 3.0, 400: 4.0})
    log(second, {150: 10.0, 350: 30.0})
    (found,) = read([first, second])
    drawn = curve(found.runs)
    assert drawn is not None
    assert drawn.steps.tolist() == [150, 200, 300, 350]
    assert drawn.centre.tolist() == [(1.5 + 10) / 2, (2 + 15) / 2, (3 + 25) / 2, (3.5 + 30) / 2]
    assert final_scores(found.runs).tolist() == [3.5, 30.0], "at 350, where the second ends"
    apart = make_run(tmp_path / "c", "CartPole-v1", seed=3)
    log(apart, {900: 1.0})
    assert curve([*found.runs, read_run(apart)]) is None
    (axes,) = draw(read([first, apart])).axes
    assert len([line for line in axes.lines if len(np.asarray(line.get_xdata()))]) == 2, "each is drawn nevertheless"


def test_the_table_shows_scores_and_the_probability_of_improvement(tmp_path: Path) -> None:
    slow, fast = [10.0, 20.0, 30.0], [25.0, 60.0, 70.0]
    runs = seeds(tmp_path, "slow", slow, n_step=1) + seeds(tmp_path, "fast", fast, n_step=3)
    scores = table(tables(read(runs)), "Scores of training")
    assert scores.header == ["config", "runs", "env steps", "score", "better than A"]
    low, high = interval(iqm, np.array(slow))
    assert scores.rows[0] == ["A", "3", "5,000", f"20.00 [{low:.2f}, {high:.2f}]", "–"]
    better = f"{8 / 9:.2f} ["
    assert scores.rows[1][-1].startswith(better)
    assert estimate(improvement, np.array(fast), np.array(slow)) == pytest.approx(8 / 9)
    figure = draw(read(runs))
    assert [to_hex(np.asarray(band.get_facecolor())[0]) for band in figure.axes[0].collections] == list(COLOURS[:2])


def test_time_to_a_threshold_counts_the_runs_that_never_got_there(tmp_path: Path) -> None:
    # Rows at 500, 1000...; 100 games are over at 500.
    (found,) = read(seeds(tmp_path, "run", [50.0, 25.0, 19.0]))
    reached, (steps, seconds, games) = times_to(20.0, found.runs)
    assert reached == 2
    assert (steps.value, seconds.value, games.value) == (4000, 40, 800)
    assert (steps.low, steps.high) == (2000, np.inf)
    (row,) = table(tables([found], 20.0), "Time to a mean score of 20").rows
    assert row == ["2 of 3", "4,000 [2,000, never]", "40 [20, never]", "800 [400, never]"]
    assert times_to(51.0, found.runs)[0] == 0
    assert table(tables([found], 51.0), "Time to").rows == [["0 of 3", "never", "never", "never"]]
    (axes,) = draw([found], threshold=20.0).axes
    assert "threshold 20" in [text.get_text() for text in axes.texts]


def test_a_mean_of_fewer_than_a_hundred_games_does_not_count(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    log(run_dir, {100: 90.0, 495: 90.0, 500: 80.0})
    assert read_run(run_dir).reached(80.0) == (500, 5.0, 100)


def test_evaluations_of_all_seeds_are_one_point_and_others_stay_separate(tmp_path: Path) -> None:
    first, second = (make_run(tmp_path / name, "CartPole-v1", seed=seed) for seed, name in enumerate("ab"))
    log(first, {5000: 1.0}, {1003: (1.0, 10.0, 20.0), 2000: (5.0, 6.0, 7.0)})
    log(second, {5000: 1.0}, {1015: (1.0, 30.0, 40.0)})
    (found,) = read([first, second])
    together, alone = evaluation_points(found.runs)
    assert (together.env_step, together.runs, together.score.value) == (1009.0, 2, 20.0)
    assert (together.score.low, together.score.high) == (10.0, 30.0)
    assert (alone.env_step, alone.runs) == (2000, 1)
    assert (alone.score.low, alone.score.value, alone.score.high) == (5.0, 6.0, 7.0)
    latest = table(tables([found]), "Latest evaluations")
    assert latest.header == ["epsilon", "runs", "env step", "score"], "neither protocol nor human is known"
    assert latest.rows == [["0.01", "1", "2,000", "6.00 [5.00, 7.00]"]]


# ---------------------------------------------------------------------- several games


def test_each_game_has_a_panel_and_rows_with_human_normalised_scores(tmp_path: Path) -> None:
    found = read(
        [
            *seeds(tmp_path, "pong1", [-20.7, 14.6], "ALE/Pong-v5", n_step=1),
            *seeds(tmp_path, "pong3", [14.6, 14.6], "ALE/Pong-v5", n_step=3),
            *seeds(tmp_path, "breakout1", [1.7, 30.5], "ALE/Breakout-v5", n_step=1),
            *seeds(tmp_path, "breakout3", [30.5, 59.3], "ALE/Breakout-v5", n_step=3),
            *seeds(tmp_path, "tetris3", [5.0], "ALE/Tetris-v5", n_step=3),
        ]
    )
    assert len(found) == 2
    scores = table(tables(found), "Scores of training")
    assert [row[0] for row in scores.rows] == ["Pong", "Pong", "Breakout", "Breakout", "Tetris"]
    assert [row[5] for row in scores.rows] == ["0.50", "1.00", "0.50", "1.50", "–"]
    titles = [axes.get_title(loc="left") for axes in draw(found).axes]
    assert titles == ["ALE/Pong-v5", "ALE/Breakout-v5", "ALE/Tetris-v5"]


# ---------------------------------------------------------------------- files and mistakes


def test_picture_and_tables_are_written_beside_each_other(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    one = os.fsdecode(b"one\xff")  # not UTF-8: no font and no file of text has it
    runs = seeds(tmp_path, one, [10.0, 20.0], n_step=1) + seeds(tmp_path, "three", [30.0], n_step=3)
    out = tmp_path / "deep" / os.fsdecode(b"curves\xff.png")
    assert compare.main([*map(str, runs), "--threshold", "9", "--out", str(out)]) == 0
    assert imread(out).shape == (720, 1200, 4)
    written = out.with_suffix(".md").read_text()
    assert "![learning curves](curves?.png)" in written
    assert "| n_step | 1 | 3 |" in written
    shown = capfd.readouterr().out
    for title in ("Settings in which the runs differ", "Scores of training, CartPole-v1", "Time to a mean score of 9"):
        assert title in shown
        assert f"## {title}" in written
    with pytest.raises(ConfigError, match="cannot write --out"):
        compare.main([str(runs[0]), "--out", str(tmp_path / "curve.xyz")])


def test_a_title_wider_than_its_table_stays_in_one_line() -> None:
    console = Console(width=80, file=io.StringIO())
    console.print(terminal(Table("Runs of one configuration", ["", "runs"], [["seeds", "1"]], [])))
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines()[0].rstrip() == "Runs of one configuration"


def test_markdown_rows_have_as_many_cells_as_the_header() -> None:
    made = Table("T", ["a", "b"], [["1|2", "3"]], ["A note."])
    assert markdown([made], "p.png").splitlines()[4:] == [
        "## T", "", "| a | b |", "| --- | ---: |", "| 1/2 | 3 |", "", "- A note.",
    ]  # fmt: skip


def test_a_broken_line_in_the_middle_of_a_log_is_named(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "CartPole-v1")
    (run_dir / "metrics.jsonl").write_text('{"env_step": 1}\n{"env_\n{"env_step": 3}\n')
    with pytest.raises(ConfigError, match=r"metrics.jsonl, line 2, is not a row"):
        compare.main([str(run_dir)])


def test_a_picture_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (run_dir,) = seeds(tmp_path, "run", [10.0])
    with pytest.raises(ConfigError, match="/dev/full is not a regular file"):
        compare.main([str(run_dir), "--out", "/dev/full"])
    assert not Path("/dev/full.md").exists()
    out = tmp_path / "picture.png"
    out.write_bytes(b"former")
    limited = (
        "import resource, signal; from atari_dqn import compare; from atari_dqn.cli.command import run_command;"
        " signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20));"
        " run_command(compare.main)"
    )
    result = python("-c", limited, str(run_dir), "--out", str(out))
    assert (result.returncode, out.read_bytes()) == (2, b"former"), result.stderr
    assert "cannot write --out" in result.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.png", "run-1"]


def test_an_impossible_file_name_is_one_line() -> None:
    for command in ("compare", "play", "evaluate"):
        result = python("-m", f"atari_dqn.{command}", "x" * 5000)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        assert result.stderr.endswith("x does not exist\n")
        assert len(result.stderr.splitlines()) == 1
