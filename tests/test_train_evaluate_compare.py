"""A short training of a game, evaluated and compared: each command reads what the one before wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from atari_dqn.__main__ import run
from atari_dqn.evaluation.references import human_normalized
from atari_dqn.monitoring import terminal
from atari_dqn.runs.records import read_rows

SHORT = {
    "--env-id": "breakout",
    "--num-workers": "1",
    "--envs-per-worker": "2",
    "--total-env-steps": "500",
    "--learning-starts": "400",
    "--replay-capacity": "1024",
    "--log-interval": "100",
    "--eval-interval": "400",
    "--eval-episodes": "1",
    "--eval-epsilon": "1",
    "--torch-threads": "1",
}


def test_human_normalised_scores_appear_wherever_a_score_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for pause in ("FIRST_LINE_SECONDS", "LINE_SECONDS"):  # so short a run would end before its first line
        monkeypatch.setattr(terminal, pause, 0.0)
    run_dir = tmp_path / "run"
    flags = [word for pair in SHORT.items() for word in pair]
    assert run(["train", *flags, "--run-dir", str(run_dir)]) == 0
    shown = capsys.readouterr().out
    assert "human-normalised" in shown
    assert "% of human)" in shown or "(as random play)" in shown
    rows = read_rows(run_dir / "metrics.jsonl")
    for group in ("charts", "eval"):
        scored = [row for row in rows if f"{group}/episodic_return" in row]
        assert scored
        for row in scored:
            human = human_normalized("ALE/Breakout-v5", row[f"{group}/episodic_return"])
            assert row[f"{group}/human_normalized"] == human

    assert run(["evaluate", str(run_dir), "--episodes", "1", "--num-workers", "1", "--epsilon", "1"]) == 0
    card = capsys.readouterr().out
    assert "0 is random play, 1 a human" in card
    *_, nature, machado = read_rows(run_dir / "evaluations.jsonl")
    assert (nature["protocol"], machado["protocol"]) == ("nature", "machado")

    assert run(["compare", str(run_dir)]) == 0
    compared = capsys.readouterr().out
    assert f"{rows[-1]['charts/human_normalized']:.2f}" in compared
    assert f"{machado['human_normalized']:.2f}" in compared
    assert (run_dir / "plots" / "compare.png").is_file()
