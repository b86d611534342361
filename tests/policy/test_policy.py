"""`Policy` in other programs: gymnasium's envs, plain loops, and the same actions as in an evaluation."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from atari_dqn import Policy
from atari_dqn.agent.actor import Actor
from atari_dqn.agent.network import QNetwork
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import make_vector_env
from atari_dqn.envs.protocol import PROTOCOLS, Protocol
from atari_dqn.evaluation.evaluation import BRANCH, evaluate
from atari_dqn.policy.files import ONNX, SAFETENSORS, to_safetensors
from atari_dqn.policy.onnx import to_onnx
from atari_dqn.policy.trained import load_policy
from atari_dqn.replay.ring import FrameRing
from atari_dqn.workers.history import env_seeds
from tests.run_dirs import make_run, python

RAW: dict[str, Any] = {"frameskip": 1, "repeat_action_probability": 0.0}


def export(run_dir: Path) -> Path:
    """Both files of a run's newest network, in the directory returned."""
    trained = load_policy(run_dir)
    assert isinstance(trained.network, QNetwork)
    header, network = trained.header(), trained.network.reference()
    (run_dir / "export").mkdir()
    (run_dir / "export" / SAFETENSORS).write_bytes(to_safetensors(header, network))
    (run_dir / "export" / ONNX).write_bytes(to_onnx(header, network))
    return run_dir / "export"


@pytest.fixture(scope="module")
def breakout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    run_dir = make_run(tmp_path_factory.mktemp("runs") / "breakout", "ALE/Breakout-v5")
    export(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    run_dir = make_run(tmp_path_factory.mktemp("runs") / "cartpole", "CartPole-v1")
    export(run_dir)
    return run_dir


def play(policy: Policy, env: gym.Env[Any, Any], **reset: Any) -> float:
    """The loop that everybody writes; the score of one game."""
    observation, _ = env.reset(**reset)
    score, over = 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(policy.act(observation))
        score, over = score + float(reward), terminated or truncated
    env.close()
    return score


# ---------------------------------------------------------------------- the same as in our own evaluation


@pytest.mark.parametrize("file", ["", f"export/{SAFETENSORS}", f"export/{ONNX}"])
def test_its_scores_equal_those_of_an_evaluation(file: str, cartpole: Path) -> None:
    trained = load_policy(cartpole)
    device, seed, games = torch.device("cpu"), 7, 4
    result = evaluate(
        trained.network,
        trained.spec,
        PROTOCOLS["nature"],
        episodes=games,
        num_envs=1,
        epsilon=0.4,
        seed=seed,
        device=device,
    )
    env_seed, actor_seed, _ = (int(s) for s in np.random.SeedSequence((seed, BRANCH)).generate_state(3))
    policy = Policy.load(cartpole / file, seed=actor_seed)
    env, scores = policy.make_env(), []
    for game in range(games):
        observation, _ = env.reset(seed=None if game else env_seeds(env_seed, 1)[0])
        score, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(policy.act(observation, epsilon=0.4))
            score, over = score + float(reward), terminated or truncated
        policy.act(observation, epsilon=0.4)  # the evaluation's actor acts in the tick of the reset, too, unheard
        scores.append(score)
    assert scores == result.returns.tolist()
    assert len(set(scores)) > 1


@pytest.mark.parametrize("game", ["Breakout", pytest.param("Seaquest", marks=pytest.mark.slow)])
def test_same_frames_same_actions_as_in_training(game: str, breakout: Path, tmp_path: Path) -> None:
    """Over a whole game and a reset: our emulators, ring and actor beside gymnasium's envs and `act`."""
    run_dir = breakout
    if game != "Breakout":
        run_dir = make_run(tmp_path / game, f"ALE/{game}-v5")
        export(run_dir)
    trained = load_policy(run_dir)
    spec, still = trained.spec, Protocol(**{**vars(PROTOCOLS["nature"]), "noop_max": 0})
    actor, epsilon = Actor(trained.network, spec.num_actions, seed=5), 0.3
    exact, near = Policy.load(run_dir / "export", seed=5), Policy.load(run_dir / "export" / ONNX, seed=5)
    theirs = exact.wrap(gym.make(exact.env_id, **RAW))
    ours = make_vector_env(spec, still, 1)
    ring = FrameRing(spec.stack + 2, 1, spec.frame_shape, np.uint8, spec.stack, 1)
    observation, _ = theirs.reset(seed=11)
    ours.reset([11])
    ring.append(ours.out.frames, last=[False])
    left = 20  # steps of the second game
    while left:
        expected = ring.latest_observation()
        np.testing.assert_array_equal(observation, expected[0].numpy())
        actions = actor.act(expected, epsilon)
        with torch.inference_mode():
            np.testing.assert_array_equal(exact.q_values(observation), trained.network(expected)[0].numpy())
        assert exact.act(observation, epsilon) == actions[0] == near.act(observation, epsilon)
        observation, reward, terminated, truncated, _ = theirs.step(int(actions[0]))
        ours.step(actions)
        step, ended = ours.out, ours.out.terminated
        assert (reward, terminated, truncated) == (step.rewards[0], ended[0], False)
        ring.append(step.frames, last=ended, actions=actions, rewards=step.rewards, terminal=ended)
        left -= left < 20
        if terminated:
            left -= 1
            observation, _ = theirs.reset()
            ours.step(actions)
            ring.append(step.frames, last=[False], actions=actions, rewards=[0.0], terminal=[False])
    theirs.close()


@pytest.mark.parametrize("name", ["nature", "machado"])
def test_make_env_presents_a_game_as_its_training_did(name: str, tmp_path: Path) -> None:
    policy = Policy.load(make_run(tmp_path / "run", "ALE/Breakout-v5", protocol=name))
    protocol = PROTOCOLS[name]
    env = policy.make_env(render_mode="rgb_array")
    ale = env.unwrapped.ale  # type: ignore[attr-defined]
    starts = []
    for game in range(40):
        observation, _ = env.reset(seed=None if game else 1)
        starts.append(ale.getEpisodeFrameNumber())
    assert ale.getFloat("repeat_action_probability") == protocol.repeat_action_probability
    assert env.action_space == gym.spaces.Discrete(18 if protocol.full_action_space else 4)
    assert min(starts) == 0
    assert 20 < max(starts) < 30 if protocol.noop_max else max(starts) == 0
    assert observation.shape == (4, 84, 84)
    assert observation.dtype == np.uint8
    before = ale.getEpisodeFrameNumber()
    env.step(policy.act(observation))
    assert ale.getEpisodeFrameNumber() == before + 4
    assert np.asarray(env.render()).shape == (210, 160, 3)
    env.close()


# ---------------------------------------------------------------------- plain observations


@pytest.mark.parametrize("file", [SAFETENSORS, ONNX])
def test_ten_lines_play_cartpole_and_breakout(file: str, cartpole: Path, breakout: Path) -> None:
    policy = Policy.load(cartpole / "export" / file)
    assert play(policy, gym.make("CartPole-v1"), seed=1) > 0
    policy = Policy.load(str(breakout / "export" / file), seed=1)
    env = policy.wrap(gym.make("ALE/Breakout-v5", max_num_frames_per_episode=400, **RAW))
    assert play(policy, env, seed=1) >= 0


def test_an_env_that_is_preprocessed_already_is_not_wrapped(breakout: Path) -> None:
    policy = Policy.load(breakout)
    frames = AtariPreprocessing(gym.make("ALE/Breakout-v5", **RAW), noop_max=0)
    stacks = FrameStackObservation(frames, 4)
    assert policy.wrap(stacks) is stacks
    stacked, whole = policy.wrap(frames), policy.wrap(gym.make("ALE/Breakout-v5", obs_type="grayscale", **RAW))
    for env in (stacked, whole):
        assert env.observation_space == stacks.observation_space
    for seed in range(2):
        np.testing.assert_array_equal(stacked.reset(seed=seed)[0], whole.reset(seed=seed)[0])
        for action in (1, 2, 3, 3, 3):
            np.testing.assert_array_equal(stacked.step(action)[0], whole.step(action)[0])


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({}, "frameskip=1"),
        ({"obs_type": "ram", **RAW}, "memory"),
        ({"full_action_space": True, **RAW}, r"Discrete\(18\).*trained with 4"),
    ],
)
def test_an_env_that_hides_what_the_network_must_see_is_refused(
    kwargs: dict[str, Any], words: str, breakout: Path
) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        Policy.load(breakout).wrap(gym.make("ALE/Breakout-v5", **kwargs))
    assert "\n" not in str(refused.value)


def test_an_env_of_another_kind_is_refused(breakout: Path, cartpole: Path) -> None:
    with pytest.raises(ConfigError, match="trained with 4"):
        Policy.load(breakout).wrap(gym.make("CartPole-v1"))
    with pytest.raises(ConfigError, match="trained with 2"):
        Policy.load(cartpole).wrap(gym.make("Acrobot-v1"))
    with pytest.raises(ConfigError, match=r"this env shows Discrete\(500\)"):
        Policy.load(make_run(breakout.parent / "acrobot", "Acrobot-v1")).wrap(
            gym.wrappers.TransformAction(gym.make("Taxi-v4"), lambda action: action, gym.spaces.Discrete(3))
        )


@pytest.mark.parametrize("file", [SAFETENSORS, ONNX])
def test_a_batch_gives_the_same_as_its_parts(file: str, cartpole: Path, breakout: Path) -> None:
    rng = np.random.default_rng(0)
    vectors, pixels = rng.normal(size=(5, 4)), rng.integers(256, size=(5, 4, 84, 84), dtype=np.uint8)
    for run_dir, batch in ((cartpole, vectors), (breakout, pixels)):
        policy = Policy.load(run_dir / "export" / file)
        actions, values = policy.act(batch), policy.q_values(batch)
        assert (actions.shape, actions.dtype, values.dtype) == ((5,), np.int64, np.float32)
        assert values.shape == (5, policy.num_actions)
        assert actions.tolist() == [policy.act(part) for part in batch] == values.argmax(1).tolist()
        assert type(policy.act(batch[0])) is int
        assert policy.q_values(batch[0]).shape == (policy.num_actions,)
        np.testing.assert_allclose(policy.q_values(batch[0]), values[0], atol=1e-6)
        np.testing.assert_array_equal(policy.act(torch.from_numpy(batch)), actions)
        assert policy.act(batch[:0]).shape == (0,)


def test_it_plays_vector_envs_of_gymnasium(cartpole: Path) -> None:
    policy = Policy.load(cartpole / "export")
    envs = gym.vector.SyncVectorEnv([policy.make_env] * 3)
    observations, _ = envs.reset(seed=1)
    for _ in range(30):
        observations, rewards, *_ = envs.step(policy.act(observations))
    assert rewards.shape == (3,)
    envs.close()


@pytest.mark.parametrize(
    "observation",
    [
        np.zeros((210, 160, 3), np.uint8),
        np.zeros((84, 84), np.uint8),
        np.zeros((84, 84, 4), np.uint8),
        np.zeros((2, 3, 4, 84, 84), np.uint8),
        np.zeros((4, 84, 84), np.float32),  # scaled by somebody else, and then again by the network
        None,
    ],
)
def test_other_observations_are_refused_with_what_would_be_right(observation: Any, breakout: Path) -> None:
    with pytest.raises(ValueError, match=r"observes uint8 \[4, 84, 84\] or a batch of them, not .*wrap"):
        Policy.load(breakout / "export").act(observation)


def test_random_actions_are_drawn_from_its_seed(breakout: Path) -> None:
    observations = np.zeros((400, 4, 84, 84), np.uint8)
    file = breakout / "export" / ONNX
    first, again, other = (Policy.load(file, seed=seed).act(observations, 1.0) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert (np.bincount(first, minlength=4) > 70).all()
    best = Policy.load(file).act(observations[0])
    mixed = Policy.load(file, seed=1).act(observations, 0.5)
    assert 0.5 < (mixed == best).mean() < 0.75
    for epsilon in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="epsilon is"):
            Policy.load(file).act(observations[0], epsilon)


@pytest.mark.parametrize("file", ["", f"export/{SAFETENSORS}", f"export/{ONNX}"])
def test_actions_are_the_envs_own_numbers(file: str, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "tests.stubs:Shifted-v0")
    export(run_dir)
    policy = Policy.load(run_dir / file, seed=0)
    assert policy.env_id == "tests.stubs:Shifted-v0"
    actions = policy.act(np.random.default_rng(0).normal(size=(60, 4)), epsilon=0.5)
    assert set(actions.tolist()) == {5, 6, 7}
    assert play(policy, policy.make_env()) > 0


@pytest.mark.parametrize("file", ["", f"export/{SAFETENSORS}", f"export/{ONNX}"])
def test_coloured_frames_are_stacked(file: str, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "tests.stubs:Colors-v0")
    export(run_dir)
    policy = Policy.load(run_dir / file)
    assert policy.observation_shape == (4, 40, 36, 3)
    env = policy.make_env()
    env.reset()
    for _ in range(5):
        observation, *_ = env.step(0)
    assert observation[:, 0, 0, 0].tolist() == [2, 3, 4, 5]
    assert policy.act(observation) in (0, 1)


# ---------------------------------------------------------------------- what is imported


def imports(program: str, *modules: str) -> list[str]:
    result = python("-c", f"{program}\nimport sys; print(*(name for name in {modules!r} if name in sys.modules))")
    assert result.stderr == ""
    return result.stdout.split()


def test_an_onnx_policy_needs_no_torch(cartpole: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"  # whoever imports it gets an ImportError
        "from atari_dqn import Policy\n"
        f"policy = Policy.load({str(cartpole / 'export' / ONNX)!r})\n"
        "env = policy.make_env()\n"
        "observation, _ = env.reset(seed=0)\n"
        "env.step(policy.act(observation))"
    )
    assert imports(program, "gymnasium", "labml") == ["gymnasium"]


@pytest.mark.parametrize("seconds", [0, pytest.param(12, marks=pytest.mark.long)])
def test_nobody_is_called_and_nothing_written_at_home(seconds: int, cartpole: Path, tmp_path: Path) -> None:
    """onnxruntime would write a device's id and, seconds later, ask for the address of its maker's server."""
    strace = shutil.which("strace")
    if strace is None and seconds:
        pytest.skip("needs strace")
    program = (
        "import sys, time, numpy as np\n"
        "from atari_dqn import Policy\n"
        f"Policy.load({str(cartpole / 'export' / ONNX)!r}).act(np.zeros(4))\n"
        f"time.sleep({seconds})"
    )
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    watched = [strace, "-f", "-e", "trace=connect,sendto,sendmmsg", "-o", str(trace)] if strace else []
    env = {name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")}
    subprocess.run([*watched, sys.executable, "-c", program], env=env | {"HOME": str(home)}, check=True, timeout=300)
    assert list(home.rglob("*")) == []
    assert "AF_INET" not in (trace.read_text() if strace else "")


def test_nothing_but_gymnasium_and_policy_is_needed_for_a_game(breakout: Path) -> None:
    program = (
        "import gymnasium as gym\n"
        "from atari_dqn import Policy\n"
        f"policy = Policy.load({str(breakout / 'export' / ONNX)!r})\n"
        "env = policy.wrap(gym.make('ALE/Breakout-v5', frameskip=1))\n"
        "observation, _ = env.reset(seed=0)\n"
        "print(policy.act(observation) in env.action_space)"
    )
    result = python("-c", program)  # which has the emulator's banner on stderr
    assert (result.returncode, result.stdout) == (0, "True\n")


def test_the_package_itself_stays_light_for_workers() -> None:
    assert imports("import atari_dqn.workers.worker", "torch", "onnx", "safetensors", "atari_dqn.policy.policy") == []
    assert imports("import atari_dqn", "gymnasium", "numpy", "tyro") == []


def test_a_file_does_not_choose_what_is_imported(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", "tests.stubs:Catch-v0")
    directory = export(run_dir)
    program = (
        "import numpy as np\n"
        "from atari_dqn import Policy\n"
        f"policy = Policy.load({str(directory)!r})\n"
        "assert policy.act(np.zeros((4, 84, 84), np.uint8)) in (0, 1, 2)\n"
        "try:\n"
        "    policy.make_env()\n"
        "except ValueError as error:\n"
        "    assert 'not trusted to name a module' in str(error), error\n"
        "else:\n"
        "    raise AssertionError"
    )
    assert imports(program, "tests.stubs") == []
    import tests.stubs  # noqa: F401

    assert play(Policy.load(directory), Policy.load(directory).make_env()) in (-1, 1)


def test_other_paths_are_refused_in_one_line(tmp_path: Path, cartpole: Path) -> None:
    for path, words in (
        (tmp_path, "is not a run directory"),
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "nowhere.onnx", "does not exist"),
    ):
        with pytest.raises(ConfigError, match=words):
            Policy.load(path)
    with pytest.raises(ConfigError, match="holds one network"):
        Policy.load(cartpole / "export", checkpoint="best")
    with pytest.raises(ImportError, match="cannot import name 'Polizei'"):
        from atari_dqn import Polizei  # noqa: F401
