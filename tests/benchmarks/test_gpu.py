"""`python -m benchmarks.gpu` without a GPU: its arithmetic, and that its measurements run on a CPU."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from atari_dqn.replay import ring, sum_tree
from benchmarks import gpu, gpu_parts

CPU = torch.device("cpu")
TINY = dataclasses.replace(
    gpu_parts.Plan(),
    env_id="tests.stubs:Catch-v0",
    capacity=256,
    fill_envs=4,
    heads=("shared",),
    batch_sizes=(4,),
    turn=0.1,
    rounds=1,
    loops=((1, 4, 8),),
    learning_starts=32,
    loop_turn=0.4,  # several ticks, however busy the machine is
    loop_rounds=1,
)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_gpu_one_line_says_so() -> None:
    result = subprocess.run([sys.executable, "-m", "benchmarks.gpu"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "error: benchmarks.gpu needs a GPU, and torch finds none\n"


def test_every_part_measures_something_and_can_be_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_parts, "REPEATS", 1)
    told: list[str] = []
    parts: dict[str, Any] = {
        "updates": gpu_parts.updates(TINY, CPU, told.append),
        "fanouts": gpu_parts.fanouts(TINY, CPU),
        "loops": gpu_parts.loops(TINY, CPU, told.append),
    }
    (update,), (loop,) = parts["updates"], parts["loops"]
    figures = [update["captured"], update["eager"], update["tree_share"], *update["microseconds"].values()]
    figures += [loop["workers"], loop["learner"], loop["loop"]]
    figures += [each[name] for each in parts["fanouts"] for name in ("draw", "write")]
    assert all(figure > 0 for figure in figures)
    assert loop["updates_per_second"] == pytest.approx(loop["loop"], rel=0.5), "ratio 8, batch 8: one a step"
    gpu.show(parts | {"goals": gpu.goals(parts["updates"], parts["loops"])})
    assert "the tree's share" in capsys.readouterr().out
    assert len(told) == 4


def test_a_failure_is_reported_and_the_rest_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gpu_parts.one_update

    def one_update(*given: Any) -> dict[str, Any]:
        if given[-1] == 4:
            raise RuntimeError("no such kernel")
        return whole(*given)

    def one_loop(*given: Any) -> dict[str, Any]:
        raise RuntimeError("no [memory] left")

    monkeypatch.setattr(gpu_parts, "REPEATS", 1)
    monkeypatch.setattr(gpu_parts, "one_update", one_update)
    monkeypatch.setattr(gpu_parts, "one_loop", one_loop)
    told: list[str] = []
    updates = gpu_parts.updates(dataclasses.replace(TINY, batch_sizes=(4, 8)), CPU, told.append)
    loops = gpu_parts.loops(TINY, CPU, told.append)
    assert [each.get("error") for each in updates] == ["RuntimeError: no such kernel", None]
    assert updates[1]["captured"] > 0
    gpu.show({"updates": updates, "loops": loops, "goals": gpu.goals(updates, loops)})
    said, errors = capsys.readouterr()
    for error in ("no such kernel", "no [memory] left"):
        assert error in said
        assert error in errors, "with its traceback"
        assert any(error in line for line in told)


@pytest.mark.parametrize("part", ["updates", "fanouts", "loops", "compiled"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_part_that_fails_makes_the_exit_code_1_and_keeps_the_others(
    part: str, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole part fails, or one of its measurements."""

    def fails(*given: Any) -> list[dict[str, Any]]:
        if whole:
            raise RuntimeError("of [/a/path] none")
        return [{"batch_size": 32, "error": "RuntimeError: of [/a/path] none"}]

    others = {"updates": [figures(microseconds={})], "fanouts": [{"children": 64, "draw": 1.0, "write": 1.0}]}
    others |= {"loops": [], "compiled": []}
    for name, found in others.items():
        monkeypatch.setattr(gpu_parts, name, lambda *given, found=found: found)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a device")
    only = ["--only", "compiled"] if part == "compiled" else []
    assert gpu.main(["--out", str(tmp_path / "gpu.json"), *only]) == 0
    monkeypatch.setattr(gpu_parts, part, fails)
    assert gpu.main(["--out", str(tmp_path / "gpu.json"), *only]) == 1
    assert "RuntimeError: of [/a/path] none" in capsys.readouterr().out
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report[part][0]["error"] == "RuntimeError: of [/a/path] none"
    assert all(report[name] == found for name, found in others.items() if name in report and name != part)


def test_the_compiled_parts_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ring, sum_tree):
        monkeypatch.setattr(module, "library", lambda device: torch)
    (found,) = gpu_parts.compiled(TINY, CPU, backend="eager")
    assert found.get("updates_per_second", 0) > 0, found


def test_intervals_that_overlap_count_once() -> None:
    assert gpu_parts.covered([]) == 0
    assert gpu_parts.covered([(5, 6), (0, 2), (1, 3), (1, 2), (3, 4)]) == 5


def figures(**changes: Any) -> dict[str, Any]:
    return {"head": "shared", "batch_size": 32, "eager": 600.0, "captured": 3_100.0, "tree_share": 0.04} | changes


@pytest.mark.parametrize(
    ("update", "missed"),
    [
        (figures(), []),
        (figures(captured=2_999.0), ["captured / eager updates", "captured updates/s"]),
        (figures(eager=700.0), ["captured / eager updates"]),
        (figures(tree_share=0.06), ["the tree's share of an update"]),
        (figures(batch_size=256, captured=1_600.0, eager=790.0), []),
        (figures(batch_size=256, captured=1_600.0, eager=810.0), ["captured / eager updates"]),
        (figures(batch_size=512, captured=1.0, eager=1.0), []),
    ],
)
def test_goals_of_an_update(update: dict[str, Any], missed: list[str]) -> None:
    found = gpu.goals([update], [])
    assert [goal["goal"].split(": ")[1] for goal in found if not goal["holds"]] == missed


@pytest.mark.parametrize(
    ("workers", "loops", "holds"),
    [(40_000, (20_000, 25_000), True), (40_000, (20_000, 24_999), False), (20_000, (18_000, 1), True)],
)
def test_the_loop_must_reach_the_lower_of_its_two_goals_in_one_shape(
    workers: float, loops: tuple[float, ...], holds: bool
) -> None:
    measured = [{"envs": 64, "batch_size": 256, "workers": workers, "loop": loop} for loop in loops]
    (goal,) = gpu.goals([], measured)
    assert goal["holds"] == holds


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ((1_000, 5_000, 950), "the emulators"),
        ((5_000, 1_000, 950), "the updates"),
        ((1_000, 1_000, 500), "mostly append: 20%"),
    ],
)
def test_the_reason_for_an_idle_gpu(rates: tuple[float, float, float], words: str) -> None:
    account = {"waiting": 0.5, "update": 0.2, "append": 0.2, "inference": 0.1}
    assert words in gpu_parts.reason(*rates, account)
