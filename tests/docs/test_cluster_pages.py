"""docs/cluster.md has commands that work, and docs/design-cluster.md the table of its model."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from atari_dqn import sweep
from atari_dqn.config.schema import TrainConfig
from atari_dqn.train import TrainCommand
from atari_dqn.training.beginning import parse_training
from docs.cluster_model import CORES, LEARNERS, STEP, Learner, rate, table
from tests.test_readme import RECIPES, blocks

DOCS = Path(__file__).parents[2] / "docs"
TEXT = "\n".join(
    text for page in (DOCS / "cluster.md", RECIPES) for language, text in blocks(page) if language in ("", "sh")
)


def commands(start: str) -> list[str]:
    return [line.removeprefix(start) for line in TEXT.splitlines() if line.startswith(start)]


@pytest.mark.parametrize("flags", [flags for flags in commands("python -m atari_dqn.train ") if "--cluster" in flags])
def test_commands_of_train_are_valid(flags: str) -> None:
    command = parse_training(TrainCommand, shlex.split(flags), "train", TrainConfig())
    command.settings().validate()
    assert command.cluster in ("auto", "local")


@pytest.mark.parametrize("flags", [flags for flags in commands("python -m atari_dqn.sweep ") if "--file" not in flags])
def test_commands_of_sweep_are_valid(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep.main([*shlex.split(flags.replace("/shared/", "")), "--dry-run"]) == 0
    runs = len(capsys.readouterr().out.splitlines())
    assert runs == {"--suite atari-5 --seeds 3": 15, "--suite atari-26 --seeds 5": 130}.get(
        " ".join(re.findall(r"--suite \S+|--seeds \d+", flags)), runs
    )


def test_options_of_ray_start_are_rays() -> None:
    from ray.scripts.scripts import start

    known = {name for option in start.params for name in option.opts}
    given = [set(re.findall(r"--[\w-]+", line)) for line in TEXT.splitlines() if re.match("ray start|PORTS=", line)]
    assert len(given) == 3
    assert set().union(*given) <= known


def test_the_table_is_the_models() -> None:
    assert table() in (DOCS / "design-cluster.md").read_text(), "python -m docs.cluster_model prints it"


def test_no_cluster_is_faster_than_its_learner_or_its_cores() -> None:
    """Its rate tends to the smaller of these as each core gets more environments, whatever the round trip."""
    learner = Learner("", batch_size=32, replay_ratio=8, update=0.002, act=0.001, act_env=0.0)
    assert rate(learner, 2, 100_000, round_trip=0.5) == pytest.approx(learner.rate, rel=0.01)
    quick = dataclasses.replace(learner, update=1e-6)
    assert rate(quick, 2, 1_000_000, round_trip=0.5) == pytest.approx(2 * CORES / STEP, rel=0.01)
    for each in LEARNERS:
        rates = [rate(each, 4, 32, trip) for trip in (0.0, 0.001, 0.005, 0.02)]
        assert rates == sorted(rates, reverse=True)
        assert rates[0] < min(each.rate, 4 * CORES / STEP)


def test_a_round_trip_is_hidden_while_the_updates_take_longer() -> None:
    learner = LEARNERS[0]
    hidden = 32 / learner.rate - STEP
    assert rate(learner, 4, 8, hidden) == rate(learner, 4, 8, 0.0) > rate(learner, 4, 8, hidden + 0.001)
