"""`python -m atari_dqn.sweep` on this machine: what becomes a run, what is refused, and what a rerun does."""

from __future__ import annotations

import dataclasses
import io
import json
import signal
import sys
from pathlib import Path

import pytest
from rich.console import Console

from atari_dqn import compare, sweep
from atari_dqn.cli.command import DONE, INTERRUPTED
from atari_dqn.config.file import load_config
from atari_dqn.config.presets import PRESETS, cpu
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.checkpoints import load_weights
from atari_dqn.runs.lock import locked
from atari_dqn.sweeps import flags, plan
from atari_dqn.sweeps.members import Member, Progress, command, is_done, progress
from atari_dqn.sweeps.suites import SUITES
from atari_dqn.sweeps.table import Board
from atari_dqn.system.machine import usable_cores
from tests.faults.trainings import LIMIT, training
from tests.run_dirs import make_run
from tests.test_train import TRAIN, rows, run

SWEEP = [sys.executable, "-m", "atari_dqn.sweep"]
SMALL = ["--env-id", "CartPole-v1"]
PLAN = """
[base]
env_id = "CartPole-v1"
learning_starts = 2000
[grid]
learning_rate = [1e-4, 0.00025]
mlp_hidden = [[64], [128, 128]]
"""
VARIANTS = """
[[variant]]
name = "slow"
epsilon_values = [1, 0.1]
epsilon_at = [0, 1]
[[variant]]
name = "three-step"
n_step = 3
"""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def names(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Names of the runs that the flags make."""
    assert sweep.main([*words, "--dry-run"]) == DONE
    return capsys.readouterr().out.splitlines()


def test_every_combination_is_a_run_and_the_first_seed_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = names(capsys, "--env-id", "pong", "breakout", "--seeds", "2", "--learning-rate", "1e-4", "2.5e-4")
    assert found == [
        f"{game}-learning_rate-{rate}/seed-{seed}"
        for seed in (1, 2)
        for game in ("Pong", "Breakout")
        for rate in ("0.0001", "0.00025")
    ]
    assert names(capsys, *SMALL, "--seed", "3", "7") == ["CartPole-v1/seed-3", "CartPole-v1/seed-7"]


def test_a_file_has_lists_and_settings_that_vary_together(capsys: pytest.CaptureFixture[str]) -> None:
    Path("plan.toml").write_text(PLAN + VARIANTS)
    found = names(capsys, "--file", "plan.toml", "--learning-rate", "1e-3")
    assert found == [
        f"CartPole-v1-{variant}-mlp_hidden-{hidden}/seed-1"
        for hidden in ("64", "128-128")
        for variant in ("slow", "three-step")
    ]


def test_settings_reach_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of the file, those of another run below them, and those of flags above."""
    make_run(Path("other"), "CartPole-v1", env_step=100, stop_score=9.0)
    Path("plan.toml").write_text('[base]\ngamma = 0.9\nn_step = 3\n[grid]\nactivation = ["relu", "silu"]\n')
    words = [
        "--config",
        "other",
        "--file",
        "plan.toml",
        "--n-step",
        "2",
        "--no-dueling",
        "--stop-score",
        "None",
        "--epsilon-at",
        "0",
        "0.1",
        "1",
    ]
    command = sweep._parse([*words, "--deterministic"], "sweep")
    made, specs, _ = sweep._plan(command, Path("swept"))
    assert [member.name for member in made.members] == [
        f"CartPole-v1-activation-{each}/seed-1" for each in ("relu", "silu")
    ]
    config = made.members[1].config
    assert (config.replay.gamma, config.replay.n_step, config.network.activation) == (0.9, 2, "silu")
    assert (config.network.dueling, config.run.deterministic, config.exploration.epsilon_at) == (
        False,
        True,
        (0, 0.1, 1),
    )
    assert config.learner == load_config(Path("other/config.json")).learner
    assert config.run.stop_score is None
    assert {spec.kind for spec in specs.values()} == {"vector"}


@pytest.mark.parametrize(
    ("flags", "said", "preset"),
    [
        ("", "paper", "paper"),
        ("--preset cpu", "cpu", "cpu"),
        ("--preset auto --device cpu", "auto", "cpu"),
        ("--preset auto --cluster auto", "cpu", "cpu"),
        ("--preset auto --cluster auto --gpus-per-run 0.5", "gpu", "gpu"),
    ],
)
def test_runs_begin_with_the_preset_that_is_asked_for(flags: str, said: str, preset: str) -> None:
    words = ["--env-id", "pong", "--total-env-steps", "1000000", "--n-step", "7", *flags.split()]
    made, _, notes = sweep._plan(sweep._parse(words, "sweep"), Path("swept"))
    config, begun = made.members[0].config, PRESETS[preset](usable_cores(), 1_000_000)
    assert notes == [f"preset {said}"]
    assert config == begun.replace(env_id="ALE/Pong-v5", n_step=7, device=config.run.device, record_interval=0)


def test_a_suite_is_its_games_with_its_settings() -> None:
    command = sweep._parse(["--suite", "atari-5", "--total-env-steps", "1000"], "sweep")
    grid = sweep._grid(command, flags.given(command))
    assert tuple(grid.axes["env_id"]) == SUITES["atari-5"].games
    assert (grid.base["protocol"], list(grid.axes["total_env_steps"])) == ("nature", [1000])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", "nothing to run: give settings"),
        ("--env-id pong braekout", "did you mean ALE/Breakout-v5?"),
        ("--learning-rate", "--learning-rate has no value"),
        ("--learning-rate 1e-4 7", "--learning-rate is 7; it must be above 0 to 1"),
        ("--learning-rate 1e-4 0.0001", "two runs have the name Breakout-learning_rate-0.0001/seed-1"),
        ("--n-step 1 64 --learning-starts 500", "--learning-starts is 500; with 16 envs and --n-step 64"),
        ("--seeds 2 --seed 1 2", "--seeds and several values of --seed"),
        ("--suite atari-5 --env-id pong", "--suite atari-5 says which games"),
        ("--env-id pong --sweep-dir full", "full is not a sweep's directory, nor empty"),
        ("--env-id pong --sweep-dir full/run", "full/run is a single run"),
        ("--file nowhere.toml", "--file nowhere.toml: No such file"),
        ("--file wrong.toml", "--file wrong.toml is not TOML"),
        ("--file plan.toml --n-step 2", "--n-step varies in --file, too"),
        ("--init-from nowhere --env-id pong", "--init-from nowhere does not exist"),
        ("--env-id pong --sweep-dir s3://bucket/swept", "--sweep-dir s3:/bucket/swept is not a folder"),
        ("--env-id pong --preset cpu --config full/run", "--preset cpu: --config has settings of its own"),
        ("--env-id pong CartPole-v1 --preset cpu", "--preset cpu is for Atari games; leave it out for CartPole-v1"),
        ("--env-id CartPole-v1 --sweep-dir swept", "is training in swept; choose another --sweep-dir"),
        ("--env-id pong --retries 0", "--retries is for Ray; add --cluster local"),
        ("--env-id pong breakout --cluster local --stop-early", "--stop-early compares scores of one game"),
        ("--env-id pong --seeds 3 --cluster local --stop-early", "--stop-early would stop seeds of one setting"),
        ("--env-id pong --cluster local --search optuna", "--search optuna and the ranges of [search]"),
        ("--env-id pong --cluster local --trials 3", "add --search optuna"),
        ("--env-id pong --cluster 127.0.0.1:1", "no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_a_mistake_is_one_line_before_anything_begins(words: str, said: str) -> None:
    make_run(Path("full/run"), "CartPole-v1", env_step=100)
    Path("wrong.toml").write_text("[base")
    Path("plan.toml").write_text(PLAN + VARIANTS)
    plan.save(plan.Plan([]), Path("swept"))
    with locked(Path("swept")):
        before = sorted(Path().rglob("*"))
        with pytest.raises(ConfigError) as caught:
            sweep.main(words.split())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[grid]\nlearning_rate = []", "learning_rate in [grid] must be a list with a value for each run"),
        ("[grid]\nlearning_rate = 1e-4", "learning_rate in [grid] must be a list"),
        ("[grid]\nepsilon_at = [0, 1]", "epsilon_at in [grid] must be a list of lists"),
        ("[grid]\nlerning_rate = [1]", "unknown setting 'lerning_rate'"),
        ("[base]\nlearning_rate = 'x'", "--file plan.toml: --learning-rate is 'x'; it must be float"),
        ("[base]\ngamma = 7", "--file plan.toml: --gamma is 7; it must be"),
        ("[grid]\ngamma = [0.9, 7]", "--file plan.toml: --gamma is 7; it must be"),
        ("[[variant]]\nname = 'a'\ngamma = 7", "--file plan.toml: --gamma is 7; it must be"),
        ("variant = []", "--file plan.toml: variant is empty, so there is nothing to run"),
        pytest.param(f"[[variant]]\nname = '{'名' * 50}'", "is too long; give such settings a short name", id="bytes"),
        ("[bass]\nlearning_rate = 1", "unknown table 'bass'"),
        ("learning_rate = 1", "unknown table 'learning_rate'"),
        ("[[variant]]\nn_step = 3", "each [[variant]] needs a name"),
        ("[search]\nlearning_rate = {low = 0.1}", "learning_rate in [search] must be a list of choices, or {low"),
        ("[search]\nlearning_rate = {low = 0.1, high = 2}", "--learning-rate is 2; it must be above 0"),
        ("[search]\nlearning_rate = {low = 'a', high = 'b'}", "--learning-rate is 'a'; it must be float"),
        ("[search]\nn_step = {low = 1.5, high = 3}", "--n-step is 1.5; it must be int"),
        ("[search]\nlearning_rate = [1e-4, -1]", "--learning-rate is -1; it must be above 0"),
        ("[search]\nepsilon_values = [[1, 7]]", "--epsilon-values is 7; it must be"),
        ("[search]\nseed = [1, 2]", "seed cannot be in [search]"),
        ("[search]\ngamma = {low = 0.1, high = 0.5, log = 'no'}", "log must be true or false"),
        ("[search]\ngamma = {low = 0, high = 0.5, log = true}", "low must be below high, and above 0"),
    ],
)
def test_a_mistake_in_a_file_is_one_line(text: str, said: str) -> None:
    Path("plan.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        sweep.main(["--file", "plan.toml", "--dry-run"])
    assert said in str(caught.value)


def test_a_plan_may_grow_and_is_kept_as_it_was(tmp_path: Path) -> None:
    members = [Member(f"a/seed-{seed}", TrainConfig().replace(seed=seed)) for seed in (1, 2)]
    ray = plan.OnRay("auto", gpus_per_run=0.5)
    made = plan.Plan(members, {"init_from": "x"}, {}, 3, ray)
    plan.save(made, tmp_path)
    assert plan.load(tmp_path) == made
    more = plan.Plan([*members, Member("a/seed-3", TrainConfig())], {"init_from": "x"}, on_ray=ray)
    assert plan.check_extends(more, made, tmp_path) == "1 runs more than before"
    assert plan.check_extends(made, made, tmp_path) == ""
    with pytest.raises(ConfigError, match=r"another plan: a/seed-2 would be left out; give --sweep-dir alone"):
        plan.check_extends(plan.Plan(members[:1], on_ray=ray), made, tmp_path)
    with pytest.raises(ConfigError, match="another plan: --init-from would not be the same in all runs"):
        plan.check_extends(dataclasses.replace(more, flags={}), made, tmp_path)
    length = {"total_env_steps": 10**8, "schedule_env_steps": 10**7}
    longer = [dataclasses.replace(each, config=each.config.replace(**length)) for each in members]
    assert plan.check_extends(dataclasses.replace(made, members=longer), made, tmp_path) == ""
    faster = [dataclasses.replace(each, config=each.config.replace(learning_rate=1e-3)) for each in members]
    with pytest.raises(ConfigError, match=r"another plan: --learning-rate of a/seed-1 was 0.0001, not 0.001; give"):
        plan.check_extends(dataclasses.replace(made, members=faster), made, tmp_path)
    search = dataclasses.replace(made, ranges={"n_step": [1, 3]}, on_ray=plan.OnRay("auto", search="optuna", trials=2))
    with pytest.raises(ConfigError, match=r"^--trials is 2 in the plan that is kept; a search is not continued"):
        plan.overridden(search, None, {"trials": 4})
    assert plan.overridden(search, None, {"trials": 2, "cluster": "local"}).on_ray == plan.OnRay(
        "local", search="optuna", trials=2
    )
    early = plan.Plan(members, {"init_from": "x"}, on_ray=plan.OnRay("auto", stop_early=True))
    with pytest.raises(ConfigError, match="--stop-early or --search nothing can be added"):
        plan.check_extends(early, made, tmp_path)
    with pytest.raises(ConfigError, match="--stop-early or --search nothing can be added or made longer"):
        plan.check_extends(dataclasses.replace(early, members=longer), early, tmp_path)
    explores = [dataclasses.replace(each, config=each.config.replace(schedule_env_steps=500)) for each in members]
    with pytest.raises(ConfigError, match=r"--schedule-env-steps of a/seed-1 was 10000000, not 500; give"):
        plan.check_extends(dataclasses.replace(made, members=explores), made, tmp_path)
    with pytest.raises(ConfigError, match="no cluster"):
        _refused(more, tmp_path)
    assert plan.load(tmp_path) == made


def _refused(made: plan.Plan, root: Path) -> None:
    with plan.kept(made, root):
        assert plan.load(root) == made
        raise ConfigError("no cluster")


def test_a_member_is_done_when_a_checkpoint_has_all_its_steps(tmp_path: Path) -> None:
    member = Member("a/seed-1", TrainConfig().replace(total_env_steps=900))
    assert not is_done(member, tmp_path)
    make_run(tmp_path / "a/seed-1", "CartPole-v1", env_step=900)
    assert is_done(member, tmp_path)
    assert not is_done(Member("a/seed-1", TrainConfig().replace(total_env_steps=901)), tmp_path)


def test_a_member_that_was_made_longer_keeps_its_knots_when_it_is_resumed(tmp_path: Path) -> None:
    member = Member("a/seed-1", TrainConfig().replace(total_env_steps=900))
    make_run(member.run_dir(tmp_path), "CartPole-v1", env_step=300, total_env_steps=900, schedule_env_steps=300)
    assert "--schedule-env-steps" not in command(member, tmp_path, {})


@pytest.mark.parametrize("schedule", [{}, {"schedule_env_steps": 500_000}])
def test_runs_of_a_plan_that_was_made_longer_keep_its_knots_and_added_seeds_get_them(schedule: dict[str, int]) -> None:
    """The new plan has the schedule of its own length, as a preset gives it."""
    old = TrainConfig().replace(total_env_steps=50_000, **schedule)
    new = TrainConfig().replace(total_env_steps=300_000, schedule_env_steps=2_000_000)
    before = plan.Plan([Member("a/seed-1", old)])
    asked = plan.Plan([Member(name, new) for name in ("a/seed-1", "a/seed-2", "b/seed-1")])
    made = plan.as_begun(asked, before, ())
    kept = old.schedule_length
    assert [member.config.schedule_length for member in made.members] == [kept, kept, 2_000_000]
    assert {member.config.run.total_env_steps for member in made.members} == {300_000}
    assert plan.as_begun(asked, before, {"schedule_env_steps": [2_000_000]}) == asked


def test_the_workers_that_a_preset_chose_on_another_machine_are_kept(tmp_path: Path) -> None:
    def planned(cores: int) -> plan.Plan:
        return plan.Plan([Member("a/seed-1", cpu(cores, 10_000))])

    assert plan.as_begun(planned(4), planned(2), ()) == planned(2)
    given = {"num_workers": [4]}
    assert plan.as_begun(planned(4), planned(2), given) == planned(4)
    with pytest.raises(ConfigError, match="--num-workers of a/seed-1 was 2, not 4"):
        plan.check_extends(plan.as_begun(planned(4), planned(2), given), planned(2), tmp_path)


def test_progress_is_the_newest_whole_row(tmp_path: Path) -> None:
    assert progress(tmp_path) == Progress()
    row = {"env_step": 100, "charts/SPS": 50.0}
    text = json.dumps(row) + "\n" + json.dumps(row | {"env_step": 200, "charts/episodic_return": 9.5}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(text + '{"env_step": 3')
    assert progress(tmp_path) == Progress(200, 9.5, 50.0)
    (tmp_path / "metrics.jsonl").write_text('{"env_step": 3')
    assert progress(tmp_path) == Progress()


def test_the_table_shows_who_runs_first_and_how_long_the_rest_takes() -> None:
    config = TrainConfig().replace(total_env_steps=1000)
    members = [Member(f"Pong-n_step-{n_step}/seed-1", config) for n_step in (1, 2, 3)]
    out = io.StringIO()
    board = Board(Console(file=out, width=100), members)
    first, _, third = board.lines.values()
    first.state, first.progress = "done", Progress(1000, 21.0, 100.0)
    third.state, third.progress, third.where = "running", Progress(500, -3.25, 50.0), "node7"
    assert board.summary() == "1 done, 1 waiting, 1 running; 1,500 of 3,000 env steps, 50 a second, 30s left"
    Console(file=out, width=100).print(board)
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert "Pong-n_step-3 seed 1 running 500 (50%) -3.25 10s node7" in lines
    assert lines.index("Pong-n_step-3 seed 1 running 500 (50%) -3.25 10s node7") < lines.index(
        "Pong-n_step-1 seed 1 done 1,000 (100%) 21.00"
    )


@pytest.mark.long
def test_a_stopped_sweep_resumes_by_its_directory_and_ends_with_the_weights_of_runs_made_alone(tmp_path: Path) -> None:
    flags = [
        *("--num-workers", "1", "--envs-per-worker", "2", "--replay-capacity", "1024", "--learning-starts", "100"),
        *("--batch-size", "8", "--log-interval", "100", "--checkpoint-interval", "200", "--deterministic"),
        *("--torch-threads", "1", "--total-env-steps", "800"),
    ]
    grid = ["--env-id", "CartPole-v1", "breakout", "--seeds", "2"]
    with training(tmp_path, [*SWEEP, *flags, *grid, "--sweep-dir", "run"]) as harmed:
        first = tmp_path / "run/CartPole-v1/seed-1"
        harmed.until(lambda: (first / "metrics.jsonl").exists() and rows(first), 2 * LIMIT)
        harmed.signal(signal.SIGINT, group=True)
        assert harmed.end(300) == INTERRUPTED, harmed.said
    assert "CartPole-v1 seed 1 stopped" in harmed.said.splitlines()
    assert "resume with --sweep-dir run" in harmed.said
    assert "Traceback" not in harmed.said
    result = run([*SWEEP, "--sweep-dir", "run"], tmp_path, 600)
    assert result.returncode == DONE, result.stdout + result.stderr
    assert "Breakout seed 2 done" in result.stdout.splitlines()
    assert run([*SWEEP, "--sweep-dir", "run"], tmp_path, 600).stdout.count("4 of 4 runs are done already") == 1
    alone = [*TRAIN, "--preset", "paper", *flags, "--env-id", "breakout", "--seed", "2", "--run-dir", "alone"]
    assert run(alone, tmp_path, 300).returncode == DONE
    one, other = load_weights(tmp_path / "alone"), load_weights(tmp_path / "run/Breakout/seed-2")
    assert all((one[name] == other[name]).all() for name in one)
    assert compare.main([*map(str, (tmp_path / "run").glob("[!.]*")), "--out", "picture.png"]) == DONE
