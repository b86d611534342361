"""Runs the commands of the README, the tutorials and the recipes, and checks that what the pages name exists."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.evaluation.result import Evaluation
from atari_dqn.evaluation.scorecard import scorecard
from atari_dqn.runs.lock import is_training
from atari_dqn.train import TrainCommand
from atari_dqn.training.beginning import parse_training
from tests.faults.trainings import LIMIT
from tests.test_bench import TINY

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README, FIRST_RUN, RECIPES = ROOT / "README.md", DOCS / "first-run.md", DOCS / "recipes.md"
TUNE, OWN, SCORECARD = DOCS / "tune-live.md", DOCS / "own-environment.md", DOCS / "scorecard.md"
RUN = [README, FIRST_RUN, TUNE, OWN, SCORECARD, RECIPES]
"""Pages whose commands are run."""
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]

LEFT_OUT = {
    "make": "it makes an environment, and .ci/run calls it",
    "python3 -m venv": "it makes an environment",
    ".venv/bin/python": "of the environment that the line above makes",
    "tensorboard": "it serves until it is stopped; test_trainer.py reads what it would show",
    "import gymnasium as gym\n\nfrom atari_dqn import Policy": "test_export.py runs it",
    "python -m experiments.claims": "it takes an hour; test_claims.py runs it, shortened",
    "python -m atari_dqn.sweep --sweep-dir /shared": "it needs a cluster; tests/sweeps/test_on_ray.py",
    "python -m atari_dqn.train --env-id breakout --cluster": "it needs a cluster; tests/distributed/test_train.py",
    "python -m atari_dqn.sweep --file search.toml": "it starts Ray; tests/sweeps/test_on_ray.py",
    "python -m atari_dqn.sweep --suite": "it is 130 runs; test_cluster_pages.py lists them",
    "python -m atari_dqn.doctor": "test_doctor.py runs it as it is",
    "python -m atari_dqn.train --run-dir runs/live --dashboard": "it fetches from npm; test_dashboard_training.py",
}
"""Commands and programs that are not run here, by their beginning, and why."""

STEPS = 400
"""Environment steps of a training, and of each time it is resumed."""
SHORT = (
    "--num-workers 2 --envs-per-worker 1 --replay-capacity 1024 --learning-starts 100 --batch-size 8"
    " --torch-threads 1 --log-interval 50 --checkpoint-interval 200 --precision fp32"
)
OVERRIDES = {
    "atari_dqn.train": SHORT,
    "atari_dqn.sweep": SHORT,
    "examples.surprise": "",
    "atari_dqn.demo": "",
    "experiments": "",
    "experiments.cartpole": SHORT,
    "atari_dqn.evaluate": "--episodes 1 --num-workers 1",
    "atari_dqn.play": "",
    "atari_dqn.compare": "",
    "atari_dqn.export": "",
    "atari_dqn.tune": "",
    "atari_dqn.bench": TINY,
}
"""Flags that make a command short, by its module."""

PROMISED = {
    README: ["*/videos/*.mp4"],
    FIRST_RUN: [
        *("cartpole/plots/compare.png", "cartpole/videos/*.mp4", "cartpole/evaluations.jsonl"),
        *("cartpole/plots/*-surprise.png", "cartpole/export/*/policy.onnx", "breakout/metrics.jsonl"),
    ],
    TUNE: ["live/hparam_edits.jsonl", "again/metrics.jsonl"],
    OWN: ["corridor/metrics.jsonl"],
    SCORECARD: ["carts/evaluations.jsonl"],
    RECIPES: [
        *("three-step/seed-2/config.json", "rates/*-learning_rate-0.0001/seed-2/metrics.jsonl"),
        *("ablation/*-plain-*/seed-2/config.json", "filmed/videos/*.mp4", "filmed/plots/*.png"),
        "filmed/export/*/policy.safetensors",
    ],
}
"""Files in runs/ after all of a page's commands."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The lines of the blocks with commands, and each block of Python or TOML as a whole."""
    found = []
    for language, text in blocks(page):
        if language in ("python", "toml"):
            found.append(text)
        elif language not in ("text", "math"):
            found += [line.partition("  #")[0].strip() for line in text.splitlines() if line.strip()]
    return found


def is_left_out(command: str) -> bool:
    return command.startswith(tuple(LEFT_OUT))


def module_of(command: str) -> str:
    python, option, module, *_ = [*command.split(), "", ""]
    assert (python, option) == ("python", "-m"), f"unknown command {command!r}: run it, or leave it out"
    return module


def check(flags: str) -> None:
    """Check that they are flags of `train` and together a valid configuration."""
    command = parse_training(TrainCommand, shlex.split(flags), "train", None if "--preset" in flags else TrainConfig())
    TrainConfig(**{section: getattr(command, section) for section in vars(TrainConfig())}).validate()


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_every_command_is_run_or_left_out_for_a_reason(page: Path) -> None:
    for command in commands(page):
        if not is_left_out(command) and "\n" not in command:
            assert module_of(command) in OVERRIDES, f"nothing makes {command!r} short"
            if module_of(command) == "atari_dqn.train" and not re.search("--(help|config) ?", command):
                check(" ".join(command.split()[3:]))


@pytest.mark.parametrize("start", LEFT_OUT)
def test_every_command_left_out_is_in_a_page(start: str) -> None:
    assert any(command.startswith(start) for page in RUN for command in commands(page))


def run_as_main(module: str, arguments: list[str]) -> int:
    """The exit code of `python -m module arguments`, in this process: what it imports is imported already."""
    if module == "atari_dqn.demo":  # it becomes the training
        return subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", [module, *arguments])
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy warns about a module that is imported already
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    return int(ended.value.code or 0)


def expanded(command: str) -> list[str]:
    """The words of a command as a shell expands them."""
    printed = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return printed.stdout.split("\0")[:-1]


@contextlib.contextmanager
def under_way(run_dir: Path) -> Iterator[None]:
    """Train in `run_dir` meanwhile, in a process of its own."""
    command = [sys.executable, "-m", "atari_dqn.train", "--run-dir", str(run_dir), "--total-env-steps", "100000000"]
    before = len((run_dir / "metrics.jsonl").read_text().splitlines())
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + LIMIT
        while len((run_dir / "metrics.jsonl").read_text().splitlines()) <= before:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        try:
            yield
        finally:
            process.terminate()
            process.communicate(timeout=LIMIT)


def run_all(listed: list[str], game: str) -> None:
    """Run the commands in the working directory, in turn, with `game` in place of an Atari game."""
    trained: Counter[str] = Counter()
    with contextlib.ExitStack() as tuned:
        for command in listed:
            if is_left_out(command):
                continue
            if "\n" in command:
                file = command.split()[1]
                assert file.endswith((".py", ".toml")), f"a block whose first line does not name its file: {command}"
                Path(file).write_text(command)
                continue
            module, words = module_of(command), expanded(command)[3:]
            if module == "atari_dqn.tune":
                if len(words) > 1 and not is_training(Path(words[0])):
                    tuned.enter_context(under_way(Path(words[0])))
            else:
                tuned.close()
            words += OVERRIDES[module].split()
            if OVERRIDES[module] == SHORT:
                run_dir = words[words.index("--run-dir") + 1] if "--run-dir" in words else ""
                trained[run_dir] += 1
                words += ["--total-env-steps", str(STEPS * trained[run_dir])]
                words += ["--seeds", "2"] if "--seeds" in words else []
                words += ["--env-id", game] if re.search("--env-id (breakout|pong)", command) else []
            assert run_as_main(module, words) == 0, command


def check_promises(page: Path, folder: str = "") -> None:
    for promise in PROMISED[page]:
        assert not promise.startswith(folder) or list(Path("runs").glob(promise)), promise


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory for commands that change the state of the process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    yield tmp_path
    torch.use_deterministic_algorithms(False)


def test_the_first_run_of_the_tutorial(place: Path) -> None:
    run_all([command for command in commands(FIRST_RUN) if "cartpole" in command], "")
    check_promises(FIRST_RUN, "cartpole")


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_all_commands_of_a_page(page: Path, place: Path) -> None:
    """In games that an untrained network loses soon."""
    run_all(commands(page), "pong" if page in (README, FIRST_RUN) else "CartPole-v1")
    check_promises(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    for module in set(re.findall(r"python -m ([\w.]+)", text)) - {"pip", "venv", "pytest"}:
        if "NAME" not in module:
            assert importlib.util.find_spec(module), module
    for link in re.findall(r"\]\(([^)#]*)(?:#[^)]*)?\)", text):
        assert not link or "://" in link or (page.parent / link).exists(), link
    for folder, anchor in re.findall(r"\]\(([^)#]*)#([^)]*)\)", text):
        headings = re.findall(r"^#+ (.*)$", ((page.parent / folder) if folder else page).read_text(), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, anchor


def table_below(heading: str) -> list[list[str]]:
    """Cells of the rows of the README's first table below a heading, the header first."""
    text = README.read_text().partition(f"# {heading}\n")[2]
    lines = [line for line in text.partition("\n#")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_the_readmes_scores_are_those_of_the_race() -> None:
    (_, *hours), *rows = table_below("Score against core-hours")
    assert rows
    for name, *cells in rows:
        ((contestant, seed),) = re.findall(r"^`([\w-]+)` (\d):", name)
        file = ROOT / "experiments/results/race" / f"{contestant}-breakout-{seed}" / "points.jsonl"
        points = [json.loads(line) for line in file.read_text().splitlines()]
        scores = {f"{point['mark']:g}": f"{point['mean']:.1f}" for point in points}
        assert cells == [scores.get(hour, "") for hour in hours]


def test_the_readmes_speeds_are_those_of_the_benchmark() -> None:
    standings = json.loads((ROOT / "benchmarks/results/peers.json").read_text())["standings"]
    measured = {
        (f"{one['env_steps_per_second']:.0f}", f"{one['peak_memory_bytes'] / 1e9:.2f}") for one in standings.values()
    }
    _, *rows = table_below("Speed on the same work")
    assert len(rows) > 5
    assert {(rate, memory) for *_, rate, memory in rows} <= measured


def test_the_scorecard_of_the_tutorial_is_that_of_its_run() -> None:
    row = json.loads((ROOT / "experiments/results/pong/evaluations.jsonl").read_text().splitlines()[-1])
    result = Evaluation(
        row["env_id"], PROTOCOLS[row["protocol"]], row["epsilon"], row["seed"], np.array(row["returns"]),
        np.array(row["lengths"]), row["truncated"], tuple(row["ci95"]), tuple(row["iqm_ci95"]), row["time"],
    )  # fmt: skip
    console = Console(width=80, file=io.StringIO())
    what = f"{row['env_id']}, the network of env step {row['env_step']:,}"
    console.print(scorecard(what, [result], PROTOCOLS["nature"], 6))
    assert isinstance(console.file, io.StringIO)
    (_, shown), *_ = blocks(SCORECARD)
    assert shown.split() == console.file.getvalue().split()


def test_the_tree_names_every_folder_and_command() -> None:
    tree = (DOCS / "design.md").read_text()
    for path in (ROOT / "atari_dqn").iterdir():
        if (path / "__init__.py").exists():
            assert f"\n  {path.name}/ " in tree, path.name
        elif path.name != "__main__.py" and path.suffix == ".py" and "run_command(" in path.read_text():
            assert path.name in tree, path.name


def test_the_readme_is_a_landing_page() -> None:
    assert len(README.read_text().splitlines()) <= 150


def test_flags_in_the_deviations_are_valid() -> None:
    """Each is valid by itself, except those of `evaluate`."""
    text = (ROOT / "docs" / "deviations.md").read_text()
    for flags in set(re.findall(r"`(--[^`]*)`(?! of `evaluate`)", text)):
        check(flags)
