"""What a user may get wrong: each mistake is answered in one line, and nothing has begun."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, flag, settings
from atari_dqn.runs.lock import locked
from atari_dqn.train import main
from tests.test_train import SHORT, TRAIN, run

FLAGS = SHORT[len(TRAIN) :]

WRONG_NAMES = {
    "Braekout": "did you mean ALE/Breakout-v5?",
    "brakeout": "did you mean ALE/Breakout-v5?",
    "BreakoutNoFrameskip-v4": "use ALE/Breakout-v5",
    "Breakout-v4": "use ALE/Breakout-v5",
    "Breakout-v0": "use ALE/Breakout-v5",
    "ALE/Breakout-v4": "use ALE/Breakout-v5",
    "Breakout-ram-v5": "use ALE/Breakout-v5",
    "PongDeterministic-v4": "use ALE/Pong-v5",
    "ALE/Pong-v99": "use ALE/Pong-v5",
    "pongg": "did you mean ALE/Pong-v5?",
    "space invader": "did you mean ALE/SpaceInvaders-v5?",
    "ms_pacmen": "did you mean ALE/MsPacman-v5?",
    "qberrt": "did you mean ALE/Qbert-v5?",
    "CartPole-v2": "did you mean CartPole-v",
    "cartpol-v1": "did you mean CartPole-v",
    "nosuchmodule:Env-v0": "cannot import nosuchmodule",
    "": "try a game",
    " ": "try a game",
    "../../etc/passwd": "unknown environment",
    "パックマン": "try a game",
}


def refusal(flags: list[str], place: Path) -> str:
    """What the command answers, in one line; nothing is made in `place`."""
    before = sorted(place.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        main(flags)
    assert "\n" not in str(caught.value)
    assert sorted(place.rglob("*")) == before
    return str(caught.value)


@pytest.mark.parametrize(("name", "words"), WRONG_NAMES.items())
def test_a_wrong_game_is_answered_with_the_right_one(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refusal(["--env-id", name], tmp_path)


@pytest.mark.parametrize(
    ("capacity", "words"),
    [
        (1, "is 1; it must be from 2 to 2^30"),
        (0, "is 0; it must be from 2 to 2^30"),
        (-1, "is -1; it must be from 2 to 2^30"),
        (1_000_003, "524288 or 1048576"),
    ],
)
def test_a_capacity_that_is_none(capacity: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refusal(["--replay-capacity", str(capacity)], tmp_path)


def test_a_second_run_in_one_directory_is_refused_before_anything_slow_is_loaded(tmp_path: Path) -> None:
    probe = (
        "import sys\n"
        "from atari_dqn.train import main; from atari_dqn.config import schema as config\n"
        "try:\n"
        f"    main({[*FLAGS, '--run-dir', 'run']})\n"
        "except config.ConfigError as error:\n"
        "    print('gymnasium' in sys.modules, 'torch' in sys.modules, error)\n"
    )
    with locked(tmp_path / "run"):
        result = run([sys.executable, "-c", probe], tmp_path)
    words = f"process {os.getpid()} is training in run; choose another --run-dir"
    assert result.stdout == f"False False {words}\n"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run, done, in a directory whose name has all that a name may have."""
    run_dir = tmp_path_factory.mktemp("runs") / "ein Läufchen 'q' \"ü\" [x]* 走る $HOME %s {0}"
    assert main([*FLAGS, "--run-dir", str(run_dir), "--total-env-steps", "100"]) == 0
    return run_dir


STRUCTURAL = {
    "env_id": "Acrobot-v1",
    "env_kwargs": '{"sutton_barto_reward": true}',
    "wrapper": "gymnasium.wrappers:FlattenObservation",
    "protocol": "machado",
    "frame_stack": "3",
    "num_workers": "1",
    "envs_per_worker": "3",
    "replay": "uniform",
    "replay_capacity": "8192",
    "n_step": "3",
    "alpha": "0.5",
    "network": "small",
    "impala_width": "2",
    "dueling": None,
    "head": "two_stream",
    "mlp_hidden": "64",
    "activation": "silu",
    "optimizer": "adamw",
}


@pytest.mark.parametrize(("name", "value"), STRUCTURAL.items())
def test_a_run_does_not_go_on_as_another(name: str, value: str | None, begun: Path) -> None:
    given = ["--no-dueling"] if value is None else [flag(name), value]
    told = refusal(["--run-dir", str(begun), *given], begun)
    reason = settings(TrainConfig)[name].structural
    assert re.search(rf"was started with {flag(name)} .+ and cannot resume with .+: {reason}; restore that value", told)


def test_every_structural_setting_is_tried() -> None:
    assert set(STRUCTURAL) == {name for name, setting in settings(TrainConfig).items() if setting.structural}


def test_a_run_goes_on_with_its_own_settings_and_shows_what_is_changed(
    begun: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No flag but these is given again, and the defaults of an experiment give way too."""
    monkeypatch.chdir(begun.parent)
    default = TrainConfig().replace(num_workers=7, n_step=5, gamma=0.5)
    flags = ["--learning-rate", "0.0005", "--epsilon-values", "1", "0.2", "0.02", "--total-env-steps", "200"]
    assert main([f"--run_dir={begun.name}", *flags, "--num-workers", "4", "--envs-per-worker", "1"], default) == 0
    told = capsys.readouterr().out
    assert [line for line in told.splitlines() if " -> " in line] == [
        "--num-workers 2 -> 4",
        "--envs-per-worker 2 -> 1",
        "--learning-rate 0.0001 -> 0.0005",
        "--epsilon-values 1.0 0.1 0.01 -> 1.0 0.2 0.02",
        "--total-env-steps 100 -> 200",
    ]
    assert "resuming" in told
    stored = json.loads((begun / "config.json").read_text())
    assert (stored["batch_size"], stored["gamma"], stored["learning_rate"]) == (16, 0.99, 0.0005)

    assert main(["--run-dir", begun.name]) == 0
    told = capsys.readouterr().out
    assert " -> " not in told
    assert "nothing left to do" in told


def test_a_broken_config_of_a_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert f"{tmp_path}/config.json is not JSON" in refusal(["--run-dir", str(tmp_path)], tmp_path)


def test_a_home_of_nobody_is_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "unknown user" in refusal(["--run-dir", "~nobody of that name/run"], tmp_path)
