"""Training from Python: the same runs as the command's, in scripts, threads and notebooks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import atari_dqn
from atari_dqn.cli.command import BAD_INPUT
from atari_dqn.cli.output import StatusLine
from atari_dqn.config import objects
from atari_dqn.config.keywords import Settings
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import settings
from atari_dqn.envs.make import register, registration, spec_of
from atari_dqn.monitoring.terminal import Terminal
from atari_dqn.monitoring.views import Row
from atari_dqn.policy.source import check_modules
from atari_dqn.runs.checkpoints import CheckpointStore, load_weights
from atari_dqn.runs.directory import read_config
from atari_dqn.train import TrainCommand
from atari_dqn.training.beginning import parse_training
from tests import test_train


def run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return test_train.run(command, cwd, timeout=600)


SMALL: dict[str, Any] = {
    "num_workers": 2,
    "envs_per_worker": 2,
    "learning_starts": 200,
    "replay_capacity": 2**10,
    "batch_size": 16,
    "mlp_hidden": (16, 16),
    "log_interval": 200,
    "device": "cpu",
    "torch_threads": 1,
}
SCRIPT = f"""
import atari_dqn

run = atari_dqn.train("CartPole-v1", total_env_steps=1_000, run_dir="run", **{SMALL})
print("rows", len(run.rows))
"""


def flags(arguments: dict[str, Any]) -> list[str]:
    """The arguments as the command takes them."""
    words: list[str] = []
    for name, value in arguments.items():
        values = value if isinstance(value, tuple) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return words


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    path, _ = CheckpointStore(run_dir).newest_valid()
    assert path is not None
    return dict(load_weights(path))


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> atari_dqn.Run:
    """A small run that is done."""
    return atari_dqn.train("CartPole-v1", run_dir=tmp_path_factory.mktemp("api") / "a", total_env_steps=1_000, **SMALL)


def test_keywords_are_the_settings_with_their_types() -> None:
    known = {
        name: hint
        for section in typing.get_type_hints(TrainConfig).values()
        for name, hint in typing.get_type_hints(section).items()
    }
    wider = {tuple[float, ...]: Sequence[float], tuple[int, ...]: Sequence[int], Path | None: str | Path | None}
    own = ("env_id", "env_kwargs", "wrapper", "network")  # which may be functions, too
    expected = {name: wider.get(hint, hint) for name, hint in known.items() if name not in own}
    assert typing.get_type_hints(Settings) == expected
    assert known.keys() == settings(TrainConfig).keys()


@pytest.mark.parametrize("first", ["atari_dqn.train", "atari_dqn.training.start", "atari_dqn"])
def test_the_names_are_functions_whatever_is_imported_first(first: str) -> None:
    program = (
        f"import sys; import {first}; import atari_dqn; from atari_dqn import train, training\n"
        "import atari_dqn.train, atari_dqn.training.start\n"
        "from atari_dqn.train import main\n"
        "print(train is atari_dqn.train, training is atari_dqn.training, callable(train), callable(training))"
    )
    assert run([sys.executable, "-c", program], Path.cwd()).stdout.split() == ["True"] * 4


def test_importing_it_is_light() -> None:
    program = "import sys; from atari_dqn import ConfigError, Run, train, training; print('torch' in sys.modules)"
    assert run([sys.executable, "-c", program], Path.cwd()).stdout == "False\n"


def test_a_script_without_a_main_guard_trains_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    result = run([sys.executable, "script.py"], tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "rows 5\n", "")


def test_a_script_from_standard_input_trains(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-"], input=SCRIPT, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "rows 5\n", "")


def test_threads_train_at_once(tmp_path: Path) -> None:
    main = sys.modules["__main__"]
    runs: list[atari_dqn.Run] = []

    def work(name: str) -> None:
        runs.append(atari_dqn.train("CartPole-v1", run_dir=tmp_path / name, total_env_steps=500, **SMALL))

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(each.run_dir.name for each in runs) == ["a", "b"]
    assert sys.modules["__main__"] is main, "starting workers replaces it for a moment"


def test_it_writes_what_the_command_writes_and_either_resumes_the_other(tmp_path: Path) -> None:
    arguments = SMALL | {"deterministic": True, "total_env_steps": 600}
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    atari_dqn.train("CartPole-v1", run_dir=ours, **arguments)
    command = [sys.executable, "-m", "atari_dqn.train", "--deterministic"]
    said = flags(arguments)
    del said[said.index("--deterministic") : said.index("--deterministic") + 2]
    result = run([*command, "--env-id", "CartPole-v1", "--run-dir", str(theirs), *said], tmp_path)
    assert result.returncode == 0, result.stderr
    assert read_config(ours).replace(run_dir=None) == read_config(theirs).replace(run_dir=None)
    assert equal(weights_of(ours), weights_of(theirs))
    assert {path.name for path in ours.iterdir() if "tfevents" not in path.name} == {
        path.name for path in theirs.iterdir() if "tfevents" not in path.name
    }
    atari_dqn.train(run_dir=theirs, total_env_steps=1_200)
    result = run([*command, "--run-dir", str(ours), "--total-env-steps", "1200"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert equal(weights_of(ours), weights_of(theirs))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"n_step": 100}, ["--n-step", "100"]),
        ({"replay_capacity": 1000}, ["--replay-capacity", "1000"]),
        ({"preset": "gpu", "env_id": "CartPole-v1"}, ["--preset", "gpu", "--env-id", "CartPole-v1"]),
        ({"env_id": "Braekout"}, ["--env-id", "Braekout"]),
        ({"config": "nowhere"}, ["--config", "nowhere"]),
    ],
)
def test_wrong_input_raises_the_line_that_the_command_prints(
    given: dict[str, Any], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\S") as raised:
        atari_dqn.train(**given)
    assert isinstance(raised.value, atari_dqn.ConfigError)
    result = run([sys.executable, "-m", "atari_dqn.train", *words], tmp_path)
    assert (result.returncode, result.stderr) == (BAD_INPUT, f"error: {raised.value}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "l1"}, "--loss is 'l1'; it must be one of huber, mse"),
        ({"n_step": "three"}, "--n-step is 'three'; it must be int"),
        ({"mlp_hidden": [16.5]}, "--mlp-hidden is 16.5; it must be int"),
        ({"preset": "fast"}, "preset is 'fast'; it must be one of auto, cpu, gpu, paper"),
        ({"learning_rat": 1.0}, "unknown setting 'learning_rat'; train --help lists them"),
    ],
)
def test_a_value_of_another_type_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(atari_dqn.ConfigError) as raised:
        atari_dqn.train("CartPole-v1", **given)
    assert str(raised.value) == message


def test_a_score_to_stop_at_may_be_taken_back(tmp_path: Path) -> None:
    arguments = SMALL | {"run_dir": tmp_path / "a", "total_env_steps": np.int64(2_000)}
    made = atari_dqn.train("CartPole-v1", stop_score=1.0, **arguments)
    reached = made.rows[-1]["env_step"]
    assert reached < 2_000
    assert atari_dqn.train(run_dir=made.run_dir, stop_score=None).rows[-1]["env_step"] >= 2_000
    assert made.config.run.stop_score is None
    stopping = TrainConfig().replace(stop_score=1.0)
    assert parse_training(TrainCommand, ["--stop-score", "None"], "", stopping).run.stop_score is None


def test_nothing_is_printed_unless_asked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    atari_dqn.train("CartPole-v1", run_dir=tmp_path / "a", total_env_steps=100, **SMALL)
    assert capfd.readouterr() == ("", "")
    atari_dqn.train(run_dir=tmp_path / "a", total_env_steps=150, verbose=True)
    assert "resuming" in capfd.readouterr().out


def test_rows_are_those_of_the_record_with_own_metrics(tmp_path: Path) -> None:
    seen: list[Row] = []

    def metrics(row: Row, network: torch.nn.Module) -> dict[str, float]:
        return {"own/weights": sum(float(weight.square().sum()) for weight in network.parameters())}

    made = atari_dqn.train(
        "CartPole-v1", run_dir=tmp_path / "a", total_env_steps=600, on_row=seen.append, metrics=metrics, **SMALL
    )
    assert seen == made.rows
    assert len(seen) == 3
    assert all(row["own/weights"] > 0 for row in seen)


def test_it_stops_when_asked_and_goes_on_later(tmp_path: Path) -> None:
    made = atari_dqn.train(
        "CartPole-v1", run_dir=tmp_path / "a", total_env_steps=10_000, stop=lambda row: row["env_step"] >= 400, **SMALL
    )
    assert 400 <= made.rows[-1]["env_step"] < 500
    assert CheckpointStore(made.run_dir).steps() == [int(made.rows[-1]["env_step"])]
    assert made.policy.header.env_step == made.rows[-1]["env_step"]


def test_what_on_row_raises_ends_it_with_the_state_saved(tmp_path: Path) -> None:
    def pruned(row: Row) -> None:
        if row["env_step"] >= 400:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        atari_dqn.train("CartPole-v1", run_dir=tmp_path / "a", total_env_steps=10_000, on_row=pruned, **SMALL)
    assert CheckpointStore(tmp_path / "a").steps()[-1] >= 400


def test_what_metrics_raise_ends_it_with_the_state_saved(tmp_path: Path) -> None:
    def metrics(row: Row, network: torch.nn.Module) -> dict[str, float]:
        return {"own/inverse": 1 / (row["env_step"] < 400)}

    with pytest.raises(ZeroDivisionError):
        atari_dqn.train("CartPole-v1", run_dir=tmp_path / "a", total_env_steps=10_000, metrics=metrics, **SMALL)
    assert CheckpointStore(tmp_path / "a").steps()[-1] >= 400


def test_a_loop_that_a_script_leaves_open_is_saved_at_its_end(tmp_path: Path) -> None:
    made = f"atari_dqn.training('CartPole-v1', run_dir='a', total_env_steps=10_000, **{SMALL})"
    result = run([sys.executable, "-c", f"import atari_dqn\nrows = {made}\nnext(rows)"], tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert CheckpointStore(tmp_path / "a").steps()


def test_the_loop_may_be_left(tmp_path: Path) -> None:
    arguments = SMALL | {"run_dir": tmp_path / "a", "total_env_steps": 1_000}
    for row in atari_dqn.training("CartPole-v1", **arguments):
        if row["env_step"] >= 400:
            break
    assert CheckpointStore(tmp_path / "a").steps() == [int(row["env_step"])]
    steps = [row["env_step"] for row in atari_dqn.training("CartPole-v1", **arguments)]
    assert steps[0] > row["env_step"]
    assert steps[-1] >= 1_000


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, which a program that a shell started in the background has not."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("ctrl_c")
def test_a_loop_that_another_thread_closes_leaves_ctrl_c_as_it_was(tmp_path: Path) -> None:
    rows = atari_dqn.training("CartPole-v1", run_dir=tmp_path / "a", total_env_steps=10_000, **SMALL)
    next(rows)
    thread = threading.Thread(target=rows.close)
    thread.start()
    thread.join()
    assert CheckpointStore(tmp_path / "a").steps()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


def test_ctrl_c_saves_and_raises(tmp_path: Path) -> None:
    program = (
        "import atari_dqn, os, signal\n"
        "def on_row(row):\n    if row['env_step'] >= 400: os.kill(os.getpid(), signal.SIGINT)\n"
        "try:\n"
        f"    atari_dqn.train('CartPole-v1', total_env_steps=10**6, run_dir='run', on_row=on_row, **{SMALL})\n"
        "except KeyboardInterrupt as error:\n    print(error)\n"
    )
    result = run([sys.executable, "-c", program], tmp_path)
    assert (result.stdout, result.stderr) == ("the state is saved; resume with run_dir='run'\n", "")
    assert CheckpointStore(tmp_path / "run").steps()[0] >= 400
    program = program.replace("SIGINT)\n", "SIGINT), os.kill(os.getpid(), signal.SIGINT)\n").replace("400", "800")
    result = run([sys.executable, "-c", program], tmp_path)
    assert result.stdout == "\n", "the second one is raised where it comes"
    assert signal.getsignal(signal.SIGINT) is not None


def test_a_run_is_evaluated_drawn_and_filmed(small: atari_dqn.Run) -> None:
    numbers: dict[str, Any] = {"seed": np.int64(3), "epsilon": np.float32(0.5), "episodes": np.int64(3)}
    result = small.evaluate(num_workers=1, **numbers)
    assert len(result.returns) == 3
    (row,) = map(json.loads, (small.run_dir / "evaluations.jsonl").read_text().splitlines())
    assert row["mean"] == result.mean
    assert small.plot().axes[0].get_title("left") == "CartPole-v1"
    film = small.video(best_of=2)
    assert film.stat().st_size > 0
    assert "best-of-2" in film.name
    assert small.policy.act([0.0, 0.0, 0.0, 0.0]) in (0, 1)
    with pytest.raises(atari_dqn.ConfigError, match="nowhere does not exist"):
        atari_dqn.Run("nowhere")


OWN = '''
import gymnasium as gym
from torch import nn
import atari_dqn


class Corridor(gym.Env):
    """Ends after `length` steps, with a reward for each step to the right."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2)

    def __init__(self, length=5):
        self.length = length

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.low, {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.low, float(action), self.steps >= self.length, False, {}


def doubled(env):
    return gym.wrappers.TransformReward(env, lambda reward: 2 * reward)


def network(shape):
    return nn.Sequential(nn.Linear(*shape, 7), nn.Tanh())
'''
OWN_RUN = f"""
own = dict(env_kwargs=dict(length=3), wrapper=doubled, network=network)
arguments = {SMALL} | dict(run_dir="run", eval_interval=500, eval_episodes=2)
run = atari_dqn.train(Corridor, total_env_steps=1_000, **own, **arguments)
assert run.rows[-1]["charts/episodic_length"] == 3
assert run.rows[-1]["eval/episodic_return"] in (2.0, 4.0, 6.0), run.rows[-1]
print(run.policy.q_values([[0.0, 0.0, 0.0]]).shape, run.evaluate(episodes=2, num_workers=1).lengths)
print(run.config.env.env_id, run.config.network.network)
"""


def test_a_script_brings_its_own_environment_wrapper_and_network(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(OWN + OWN_RUN)
    result = run([sys.executable, "script.py"], tmp_path)
    assert (result.stdout, result.stderr) == ("(1, 2) [3 3]\n__main__:Corridor __main__:network\n", "")
    with pytest.raises(atari_dqn.ConfigError, match="give it there again"):
        atari_dqn.train(run_dir=tmp_path / "run", total_env_steps=1_500)


def test_a_module_s_own_parts_are_known_to_every_command(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text(OWN)
    own = ["--env-id", "parts:Corridor", "--env-kwargs", '{"length": 3}', "--wrapper", "parts:doubled"]
    command = [sys.executable, "-m", "atari_dqn.train", *own, "--network", "parts:network", *flags(SMALL)]
    result = run([*command, "--total-env-steps", "500", "--run-dir", "run"], tmp_path)
    assert result.returncode == 0, result.stderr
    result = run([sys.executable, "-m", "atari_dqn.evaluate", "run", "--episodes", "2"], tmp_path)
    assert "3\n" in result.stdout or " 3 " in result.stdout, result.stdout
    result = run([sys.executable, "-m", "atari_dqn.export", "run", "--out", "out"], tmp_path)
    assert result.returncode == 0, result.stderr
    with pytest.raises(atari_dqn.ConfigError, match="trained with parts:network, and a file is not trusted"):
        atari_dqn.Policy.load(tmp_path / "out" / "policy.safetensors")


def wide(width: int) -> Any:
    return lambda shape: torch.nn.Linear(shape[0], width)


def test_each_run_has_its_own_of_two_functions_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = atari_dqn.training(
        "CartPole-v1", network=wide(3), run_dir=tmp_path / "3", **SMALL | {"total_env_steps": 600}
    )
    next(first)
    atari_dqn.train("CartPole-v1", network=wide(5), run_dir=tmp_path / "5", **SMALL | {"total_env_steps": 300})
    list(first)
    for name in ("3", "5"):
        run = atari_dqn.Run(tmp_path / name)
        assert run.policy.q_values([[0.0] * 4]).shape == (1, 2)
        assert weights_of(run.run_dir)["trunk.own.weight"].shape == (int(name), 4)
        assert atari_dqn.train(run_dir=run.run_dir, total_env_steps=700).rows[-1]["env_step"] >= 700
        monkeypatch.setattr(objects, "_received", {})
        network = run.config.network.network
        register(registration(spec_of(run.config.env), network))
        assert network == str(network) == "tests.test_api:wide.locals.lambda"
        assert objects.named("network", str(network))((4,)).out_features == int(name), "in another process"


def test_a_process_without_the_function_of_a_run_says_so(tmp_path: Path) -> None:
    atari_dqn.train("CartPole-v1", network=wide(3), run_dir=tmp_path / "a", total_env_steps=300, **SMALL)
    other = {**SMALL, "run_dir": str(tmp_path / "b"), "total_env_steps": 300}
    program = (
        "import atari_dqn\nfrom tests.test_api import wide\n"
        f"atari_dqn.train('CartPole-v1', network=wide(5), **{other})\n"
        "for use in (lambda at: atari_dqn.train(run_dir=at), lambda at: atari_dqn.Run(at).policy):\n"
        f"    try:\n        use({str(tmp_path / 'a')!r})\n"
        "    except atari_dqn.ConfigError as error:\n        print(error)\n"
    )
    result = run([sys.executable, "-c", program], Path.cwd())
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("--network tests.test_api:wide.locals.lambda: cannot import it (AttributeError")
        assert line.endswith("give it there again: atari_dqn.train(network=...)")


def dropped(shape: tuple[int, ...]) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(shape[0], 16), torch.nn.Dropout(0.5))


def test_dropout_is_the_same_again_and_acts_in_the_loss_alone(tmp_path: Path) -> None:
    arguments = SMALL | {"network": dropped, "deterministic": True, "total_env_steps": 600}
    seen: list[bool] = []

    def metrics(row: Row, network: torch.nn.Module) -> dict[str, float]:
        seen.append(network.training)
        return {}

    found: list[dict[str, torch.Tensor]] = []
    for name, more in (("a", {}), ("b", {"eval_interval": 300, "eval_episodes": 2, "metrics": metrics})):
        torch.manual_seed(len(found))
        atari_dqn.train("CartPole-v1", run_dir=tmp_path / name, **(arguments | more))
        found.append(weights_of(tmp_path / name))
    assert equal(*found)
    assert seen
    assert not any(seen)
    atari_dqn.train("CartPole-v1", run_dir=tmp_path / "c", stop=lambda row: row["env_step"] >= 400, **arguments)
    torch.manual_seed(5)
    run = atari_dqn.train(run_dir=tmp_path / "c")
    assert equal(weights_of(tmp_path / "c"), found[0])
    observation = [[0.1, 0.2, 0.3, 0.4]]
    assert (run.policy.q_values(observation) == run.policy.q_values(observation)).all()


def flat(shape: tuple[int, ...]) -> torch.nn.Module:
    return torch.nn.Flatten()


def coarse(shape: tuple[int, ...]) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(shape[0], 2, 8, stride=8), torch.nn.ReLU(), torch.nn.Flatten())


def normed(shape: tuple[int, ...]) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4))


def spare(shape: tuple[int, ...]) -> torch.nn.Module:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4))
    network.spare = torch.nn.Parameter(torch.zeros(1))
    return network


def summed(shape: tuple[int, ...]) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Flatten(0))


def frozen(shape: tuple[int, ...]) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 4).requires_grad_(False), torch.nn.Linear(4, 4))


def narrow(shape: tuple[int, ...]) -> torch.nn.Module:
    return torch.nn.Linear(3, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"network": frozen}, "own.0.weight is frozen"),
        ({"network": narrow}, "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        ({"network": flat}, "has no weights"),
        ({"network": normed}, "has buffers"),
        ({"network": spare}, "the features do not depend on own.spare"),
        ({"network": summed}, r"maps \[2, 4\] to \[8\]; it must return features"),
        ({"network": "nowhere:net"}, "--network nowhere:net: cannot import it"),
        ({"network": "natur"}, "--network is 'natur'; it must be one of nature, narrow, small, impala, or module:name"),
        ({"network": 3}, "3 has no name to keep"),
        ({"env_kwargs": {"size": 3}}, "cannot use the environment: TypeError"),
        ({"env_kwargs": {"size": {3}}}, "env_kwargs cannot be kept as JSON"),
        ({"env_kwargs": "[1]"}, r"--env-kwargs is \[1\]; it must be a JSON object"),
        ({"env_id": "pong", "wrapper": "a:b"}, "--wrapper is not for Atari games"),
    ],
)
def test_own_parts_that_cannot_work_are_refused(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"env_id": "CartPole-v1", "run_dir": tmp_path / "a", **SMALL, **given}
    with pytest.raises(atari_dqn.ConfigError, match=message) as raised:
        atari_dqn.train(**arguments)
    assert "\n" not in str(raised.value)


class Viewed(torch.nn.Module):
    """As most DQNs for PyTorch flatten."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(shape[0], 2, 8, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).view(x.size(0), -1).relu()


@pytest.mark.parametrize("network", [coarse, Viewed])
def test_an_own_network_sees_pixels(network: Any, tmp_path: Path) -> None:
    pixels = atari_dqn.train(
        "breakout", network=network, run_dir=tmp_path / "a", **(SMALL | {"total_env_steps": 300, "batch_size": 2})
    )
    assert pixels.policy.q_values(torch.zeros(4, 84, 84, dtype=torch.uint8).numpy()).shape == (4,)


@pytest.mark.parametrize("name", ["os:system", "shutil:rmtree", "os.path:nothing"])
def test_a_file_may_not_name_just_anything_that_is_imported(name: str) -> None:
    check_modules("gymnasium.wrappers:FlattenObservation", "gymnasium:CartPole-v1", "")
    with pytest.raises(atari_dqn.ConfigError, match="a file is not trusted"):
        check_modules(name)


def test_a_program_s_own_output_is_seen_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, quiet=True)
    panel = Terminal(console, "a run", 1_000, 0)
    with StatusLine(console, "working"):
        print("mine")
    panel.close()
    assert capsys.readouterr().out == "mine\n"
