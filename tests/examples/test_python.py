"""The examples of training from Python, and docs/python.md, run; each shortened."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_readme import blocks

ROOT = Path(__file__).parents[2]
BLOCKS = [text for language, text in blocks(ROOT / "docs" / "python.md") if language == "python"]


def run(program: str, cwd: Path) -> str:
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=cwd, env=None, capture_output=True, text=True, timeout=1_200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_of_the_page_runs(number: int, tmp_path: Path) -> None:
    run(re.sub(r"total_env_steps=(30|100)_000", "total_env_steps=6_000", BLOCKS[number]), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("own_network.main(300, num_workers=1, envs_per_worker=2, learning_starts=100, torch_threads=1)", "mean "),
        ("own_environment.main(2_000)", "mean "),
        ("with_optuna.main(2, 1_000)", "learning_rate"),
        ("with_wandb.main(1_000)", ""),
    ],
)
def test_an_example_runs(call: str, said: str, tmp_path: Path) -> None:
    name = call.split(".")[0]
    if name == "with_wandb":
        pytest.importorskip("wandb")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    assert said in run(f"from examples import {name}; {call}", tmp_path)


@pytest.mark.long
def test_the_notebook_runs(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook: Any = nbformat.read(ROOT / "examples" / "first_run.ipynb", 4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("20_000", "2_000").replace("5_000", "2_000")
    kernel = nbclient.NotebookClient(notebook, timeout=1_200, resources={"metadata": {"path": str(tmp_path)}})
    kernel.execute()
    shown = [json.dumps(cell.get("outputs", [])) for cell in notebook.cells]
    assert '"image/png"' in shown[2]
    assert "mean " in shown[3]
    assert "video/mp4" in shown[3]
    assert shown[5].count("charts") == 0
    assert "2000" in shown[5] or "2001" in shown[5]
