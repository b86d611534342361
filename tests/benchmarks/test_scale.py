"""`python -m benchmarks.scale`: the settings of each point, memory of all processes, bounds, tables and plots."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atari_dqn.config.schema import TrainConfig
from atari_dqn.diagnostics.measure import family_memory
from atari_dqn.replay.prioritized import PrioritizedReplay
from benchmarks import scale
from benchmarks.scale_report import plot, table
from benchmarks.scale_seats import family_peak, fill

GROWN = 64 * 2**20
MEGABYTES = 1e6


@pytest.mark.parametrize("sweep", scale.SWEEPS)
def test_a_point_is_a_valid_training_that_differs_in_what_its_sweep_varies(sweep: str) -> None:
    setting, held, values = scale.SWEEPS[sweep]
    for value in values:
        config = scale.Point(sweep, value).config.validate().to_dict()
        assert config[setting] == value
        differs = {name for name, default in scale.BASE.to_dict().items() if config[name] != default}
        assert differs <= {setting, *held}


def test_replay_bytes_count_whole_frames() -> None:
    default = TrainConfig().replay.replay_capacity
    assert default in scale.SWEEPS["capacity"][2], "the memory bound is for the default"
    assert scale.Point("capacity", default).replay_bytes / default == pytest.approx(7_082, abs=1)
    assert scale.Point("capacity", 2**22).replay_bytes == pytest.approx(29.7e9, rel=0.01)


@pytest.mark.parametrize("num_envs", [1, 8])
def test_a_filled_replay_has_noise_everywhere_and_priorities_of_all_sizes(num_envs: int) -> None:
    replay = PrioritizedReplay(
        512, num_envs, (8, 8), "uint8", 4, n_step=1, gamma=0.99, clip_rewards=True, alpha=0.6, seed=1
    )
    fill(replay)
    assert replay.newest > replay.num_rows, "the ring has gone round"
    assert (replay.frames.flatten(2).amax(2) > 0).all()
    beside_the_head = 4 * num_envs  # stacks that would reach across it, and the final frames
    assert replay.fill == 512 - beside_the_head
    positive = replay.tree.leaves[replay.tree.leaves > 0]
    assert len(positive) == replay.fill
    assert len(positive.unique()) > 0.9 * len(positive)
    newest = replay.newest % replay.num_rows
    assert not replay.ring.last[:newest].any(), "one long episode until now"
    assert replay.ring.last[newest].all(), "and a trainer can begin new ones"


def test_family_memory_counts_children_and_the_peak_counts_freed_memory() -> None:
    child = "import sys; block = b'x' * int(sys.argv[1]); {}; print('ready', flush=True); sys.stdin.read()"
    grown = {}
    for what in ("keep = block", "del block"):
        before = family_memory(), family_peak()
        command = [sys.executable, "-c", child.format(what), str(GROWN)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            after = family_memory(), family_peak()
            process.communicate()
        grown[what] = (after[0] - before[0], after[1] - before[1])
    for now, peak in grown.values():
        assert peak > GROWN
        assert peak > now
    assert grown["keep = block"][0] > GROWN
    assert grown["del block"][0] < GROWN / 2


def capacity_row(value: int, megabytes: float, peak: float = 2_000) -> dict[str, Any]:
    memory = {"shared_out": int(megabytes * MEGABYTES), "peak": int(peak * MEGABYTES)}
    return {"sweep": "capacity", "value": value, "memory": memory}


@pytest.mark.parametrize(
    ("rows", "holds"),
    [
        ([capacity_row(2**14, 700), capacity_row(2**17, 700 + 0.007 * (2**17 - 2**14))], [True, True]),
        ([capacity_row(2**14, 700), capacity_row(2**17, 700 + 0.0073 * (2**17 - 2**14))], [True, False]),
        ([capacity_row(2**14, 700, 2_600), capacity_row(2**17, 1_500, 2_499)], [True, True]),
        ([capacity_row(2**14, 700), capacity_row(2**17, 1_500, 2_501)], [False, True]),
        ([capacity_row(2**17, 1_500)], [True]),
        ([{"sweep": "capacity", "value": 2**17, "did_not_fit": {}}], []),
        ([{**capacity_row(2**17, 1_500, 2_501), "sweep": "workers"}], []),
    ],
)
def test_memory_is_bounded_at_the_default_capacity_and_by_its_slope(
    rows: list[dict[str, Any]], holds: list[bool]
) -> None:
    too_large = {"sweep": "capacity", "value": 2**22, "did_not_fit": {}}
    assert [bound["holds"] for bound in scale.bounds([*rows, too_large])] == holds


def rates(env_steps: float, updates: float) -> dict[str, float]:
    return {"env_steps_per_second": env_steps, "updates_per_second": updates}


def test_the_table_and_the_plots_show_only_what_was_measured(tmp_path: Path) -> None:
    measured = {
        **capacity_row(2**17, 1_540, 2_040),
        "loop": rates(330, 82.5),
        "learner": rates(0, 100),
        "draw": rates(0, 2_000),
        "tree": rates(0, 5_000),
    }
    unfit = {
        "sweep": "capacity",
        "value": 2**22,
        "did_not_fit": {"needed": 3e10, "free": 2e10},
        "tree": rates(0, 4_000),
    }
    header, first, second = table("capacity", [measured, unfit])
    assert len(header) == len(first) == len(second)
    assert first == ["131,072", "330", "82.5", "100.0", "500", "5.0%", "200", "1.54", "2.04"]
    assert second == ["4,194,304", "–", "–", "–", "–", "–", "250", "–", "–"]

    report = {"system": {"processor": "a processor", "cores": 2}, "rows": [measured, unfit]}
    plot(report, tmp_path / "scale.png")
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sweep", "workers,enves"], "unknown --sweep enves; choose from workers, envs, batch, capacity"),
        (["--rounds", "0"], "at least 1"),
        (["--seconds", "0"], "--seconds in (0, 3600]"),
        (["--seconds", "nan"], "--seconds in (0, 3600]"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scale.main(flags) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not said.out
