"""`python -m benchmarks.replays`: the same games for all, detection of wrong draws, medians of costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.environments import STAMP, InstallError, interpreter
from benchmarks.replays.__main__ import Seat, SeatError, main, medians, rows
from benchmarks.replays.contestants import CONTESTANTS, Ours
from benchmarks.replays.seat import BATCHES
from benchmarks.replays.stream import EPISODE, STACK, Stream, wrong

CAPACITY = 4096


def steps(count: int, **options: Any) -> tuple[Any, Any, int]:
    """`count` steps of one env: obs, next_obs and the tick of the stream."""
    stream = Stream(1, 8, **options)
    taken = [stream.step() for _ in range(count)]
    return (
        np.concatenate([step.obs for step in taken]),
        np.concatenate([step.next_obs for step in taken]),
        stream.tick,
    )


@pytest.mark.parametrize("stack_last", [False, True])
def test_no_step_of_a_stream_is_wrong(stack_last: bool) -> None:
    obs, next_obs, newest = steps(3 * EPISODE, stack_last=stack_last)
    assert not wrong(obs, next_obs, newest=newest, stack_last=stack_last).any()
    first_in_stack = (lambda stacks: stacks[..., 0]) if stack_last else (lambda stacks: stacks[:, 0])
    newest_in_stack = (lambda stacks: stacks[..., -1]) if stack_last else (lambda stacks: stacks[:, -1])
    for start in (0, EPISODE, 2 * EPISODE):
        assert (first_in_stack(obs)[start] == newest_in_stack(obs)[start]).all(), "a game's first frame is repeated"
        game = slice(start, start + EPISODE - 1)
        assert (newest_in_stack(next_obs)[game] == newest_in_stack(obs[1:])[game]).all()
    assert (newest_in_stack(next_obs)[EPISODE - 1] != newest_in_stack(obs)[EPISODE]).any(), "no game leads into another"


def test_a_stream_is_the_same_in_both_layouts_and_ends_all_games_together() -> None:
    stack_first, stack_last = Stream(3, 8), Stream(3, 8, stack_last=True)
    for number in range(2 * EPISODE):
        one, other = stack_first.step(), stack_last.step()
        assert (one.obs == np.moveaxis(other.obs, -1, 1)).all()
        assert (one.next_obs == np.moveaxis(other.next_obs, -1, 1)).all()
        assert one.ends == (number % EPISODE == EPISODE - 1)


def test_every_kind_of_wrong_draw_is_detected() -> None:
    obs, next_obs, newest = steps(2 * EPISODE)
    middle, begins, ends = 50, EPISODE + 1, EPISODE - 1
    assert wrong(obs[:, ::-1], next_obs, newest=newest).sum() > 700, "stacks the wrong way round"
    assert wrong(obs, obs, newest=newest).sum() == 2 * EPISODE - 2, "no step, but where nothing is learned from it"
    assert wrong(obs, np.roll(next_obs, -1, 0), newest=newest)[middle], "two steps"
    torn = obs.copy()
    torn[middle, 0] = obs[middle, 1]
    assert np.flatnonzero(wrong(torn, next_obs, newest=newest)).tolist() == [middle]
    across = obs.copy()
    across[begins, : STACK - 2] = obs[ends, -1]
    assert np.flatnonzero(wrong(across, next_obs, newest=newest)).tolist() == [begins]
    assert np.flatnonzero(wrong(obs, next_obs, newest=newest - 1)).tolist() == [], "the last tick is a new game's first"
    assert wrong(obs, next_obs, newest=newest - 3)[-1], "frames that are not stored yet"


def test_ours_draws_only_what_was_stored() -> None:
    replay, stream = Ours(CAPACITY, 8), Stream(Ours.num_envs, 8)
    for _ in range(CAPACITY // Ours.num_envs + EPISODE // 2):  # the ring wraps, and a game ends in it
        replay.add(stream.step())
    for _ in range(100):
        batch = replay.draw(64)
        assert not wrong(*replay.stacks(batch), newest=stream.tick).any()
        replay.update(batch, np.ones(64, np.float32))


def test_a_contestant_answers_from_its_own_process_and_a_failure_has_its_last_line() -> None:
    seat = Seat("ours", Path(sys.executable), CAPACITY, 1)
    try:
        assert seat.facts["bytes_per_transition"] == pytest.approx(7_083, rel=0.25)
        assert seat.facts["share_wrong"] == 0
        assert len(seat.facts["kinds"]) == 1 + 2 * len(BATCHES)
        assert all(0 < seat.turn(kind, 0.01) < 1e6 for kind in seat.facts["kinds"])
        with pytest.raises(SeatError, match="KeyError"):
            seat.turn("no such kind", 0.01)
    finally:
        seat.close()
    with pytest.raises(SeatError, match="No module named 'cpprb'"):
        Seat("cpprb", Path(sys.executable), CAPACITY, 1)


def test_the_table_has_the_median_of_each_kind() -> None:
    kinds = [
        "add",
        *(f"{kind} {size}" for kind in ("draw and update", "the same with tiny frames") for size in BATCHES),
    ]
    taken = [
        {"ours": {kind: factor * (number + 1) for number, kind in enumerate(kinds)}} for factor in (1000.0, 1.0, 100.0)
    ]
    cost = medians(taken, "ours")
    assert cost == {kind: 100.0 * (number + 1) for number, kind in enumerate(kinds)}
    ours = {"microseconds": cost, "bytes_per_transition": 7083.2, "share_wrong": 0.0019}
    header, row = rows({"replays": {"ours": ours}})
    assert len(header) == len(row)
    assert row == ["ours", "7,083", "100.0", "200", "300", "400", "500", "0.19%"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--only", "ours,cprb"], "unknown replay --only cprb; choose from ours, torchrl, cpprb"),
        (["--capacity", "5000"], "a power of two"),
        (["--capacity", str(2**40)], "GB"),
        (["--rounds", "0"], "at least 1"),
        (["--seconds", "nan"], "--seconds in (0, 3600]"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not said.out


def test_every_package_is_pinned() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "replays" / "requirements"
    packages = {contestant.package for contestant in CONTESTANTS.values()} - {""}
    assert {file.stem for file in folder.iterdir()} == packages
    for file in folder.iterdir():
        lines = file.read_text().splitlines()
        assert all("==" in line for line in lines)
        assert any(line.startswith(f"{file.stem}==") for line in lines)


def test_an_environment_is_created_once_and_again_when_its_requirements_change(tmp_path: Path) -> None:
    requirements, directory = tmp_path / "thing.txt", tmp_path / "environments"
    requirements.write_text("# nothing yet\n")
    said: list[str] = []
    python = interpreter(requirements, directory, said.append)
    assert python == directory / "thing" / "bin" / "python"
    assert python.exists()
    assert len(said) >= 1
    said.clear()
    assert interpreter(requirements, directory, said.append) == python
    assert said == [], "kept"

    requirements.write_text("./no-such-folder\n")
    with pytest.raises(InstallError, match=r"^ERROR: .*no-such-folder"):
        interpreter(requirements, directory, said.append)
    assert len(said) >= 1
    assert not (directory / "thing" / STAMP).exists(), "what was cut short does not count as made"
