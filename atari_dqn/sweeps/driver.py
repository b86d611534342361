"""The process that talks to Ray: it connects, checks the nodes and runs the members as trials of Ray Tune.

It is a process of its own because Ray ends the one that it runs in when the cluster's head is lost, prints what it
likes, and has signal handlers. It reads a request from standard input, prints events to standard output, one JSON
object a line, and stops when its input is closed. Everything else that is printed goes to standard error.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atari_dqn.cli.command import BAD_INPUT, FAILED, CommandFailed
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.versions import LEARNING, rom_of, versions
from atari_dqn.sweeps.members import Member, cores_for
from atari_dqn.sweeps.plan import HIDDEN, OnRay, Plan, load
from atari_dqn.sweeps.trial import TOKEN, Trial, node_fault, trial_name
from atari_dqn.system.ray_cluster import connect

PROBE_SECONDS = 300.0
"""Seconds that a node has to start a process and answer."""
OBJECT_STORE_BYTES = 150_000_000
"""Shared memory of a cluster that is started here: no run puts anything into it."""
REDUCTION = 3
"""Of the settings that reach a rung the best third continues"""
RUNGS = 9
"""The first rung is at this part of the run's length"""


class Events:
    """Standard output and input as a channel to the command."""

    stop = threading.Event()
    """Set when the command asks to stop, or has ended"""
    _out: Any = None

    @classmethod
    def open(cls) -> dict[str, Any]:
        """Take over standard output. Returns the request."""
        cls._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        request: dict[str, Any] = json.loads(sys.stdin.readline())
        threading.Thread(target=cls._wait, daemon=True).start()
        return request

    @classmethod
    def _wait(cls) -> None:
        sys.stdin.read()
        cls.stop.set()

    @classmethod
    def send(cls, **event: Any) -> None:
        print(json.dumps(event), file=cls._out)


@ray.remote(num_cpus=0)
class Stop:
    """Whether the sweep is to stop; trials ask it."""

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        self._asked = True

    def is_asked(self) -> bool:
        return self._asked


class Report(tune.Callback):  # type: ignore[misc, unused-ignore]
    """Passes on what happens to the trials; makes Tune end once all have saved their states after a request to stop.

    Tune keeps it with its own state, so it has none but the handle of the actor, which a resumed sweep sets anew.
    """

    actor: Any = None
    asked = False
    search = False

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if not Events.stop.is_set():
            return
        if not Report.asked:
            Report.asked = True
            Report.actor.ask.remote()
        running = [trial for trial in trials if trial.status == "RUNNING"]
        if all((trial.last_result or {}).get("state") == "stopped" for trial in running):
            signal.raise_signal(signal.SIGUSR1)  # Tune keeps its state and ends; trials that run can be resumed

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        Events.send(name=name_of(trial), state="running", say="started")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        Events.send(**last_of(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        state = "done" if (trial.last_result or {}).get("state") == "done" else "stopped early"
        Events.send(name=name_of(trial), state=state, say=state)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        Events.send(name=name_of(trial), state="waiting", say=f"failed, and is tried again: {reason_of(trial)}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        Events.send(name=name_of(trial), state="failed", say=f"failed: {reason_of(trial)}")


def last_of(result: dict[str, Any]) -> dict[str, Any]:
    """The event of a trial's report."""
    return {name: result[name] for name in ("name", "state", "env_step", "score", "steps_per_second", "where")}


def name_of(trial: Any) -> str:
    run: str = trial.config["run"]
    return trial_name(run, trial.trial_id) if Report.search else run


def reason_of(trial: Any) -> str:
    """What a trial's newest failure says, in one line."""
    if not trial.error_file or not Path(trial.error_file).exists():
        return "for no reason that Ray names"
    *_, newest = Path(trial.error_file).read_text(errors="replace").split("Failure # ")
    lines = newest.strip().splitlines()[1:] or [newest]
    ours = [line.partition("RuntimeError: ")[2] for line in lines if line.startswith("RuntimeError: ")]
    return ours[-1] if ours else lines[0].partition(" Node Id")[0]


def main() -> None:
    """Carry out the request on standard input. Errors are events."""
    request = Events.open()
    root = Path(request["root"])
    plan = load(root)
    assert plan
    assert plan.on_ray
    try:
        connect(plan.on_ray.cluster, object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        Events.send(info=f"checking {len(nodes)} nodes")
        shared = share(plan, root)
        check_nodes(nodes, shared)
        each = resources(plan.on_ray, plan.members, request, nodes)
        reserved = _resources({"CPU": each["cpu"], "GPU": each["gpu"], "memory": each["memory"]})
        Events.send(info=f"{len(nodes)} nodes; {reserved} for each run")
        if not each["gpu"] and any(node["Resources"].get("GPU") for node in nodes):
            Events.send(info="none of the cluster's GPUs is used; to use them give --gpus-per-run, such as 0.5")
        tune_members(plan, shared, request, each)
        Events.send(end=True)
    except ConfigError as error:
        Events.send(error=str(error), code=BAD_INPUT)
    except CommandFailed as error:
        Events.send(error=str(error), code=FAILED)
    finally:
        ray.shutdown()


def share(plan: Plan, root: Path) -> dict[str, Any]:
    """What every node that takes a run is compared with; a file with a token shows whether it shares `root`."""
    token = secrets.token_hex(8)
    (root / HIDDEN / TOKEN).write_text(token)
    games = sorted({rom_of(member.config.env.env_id) for member in plan.members} - {""})
    return {"root": str(root), "token": token, "games": games, "versions": versions(games, LEARNING)}


def check_nodes(nodes: list[dict[str, Any]], shared: dict[str, Any]) -> None:
    """Raise `ConfigError` unless all nodes share the sweep's folder and have this machine's versions."""
    asked = {
        ray.remote(node_fault)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(shared): node
        for node in nodes
    }
    for answer, node in asked.items():
        try:
            fault = ray.get(answer, timeout=PROBE_SECONDS)
        except Exception as error:  # the node has no such package, cannot read, or does not answer
            late = isinstance(error, ray.exceptions.GetTimeoutError)
            said = f"it did not answer within {PROBE_SECONDS:g} s" if late else str(error).strip()
            fault = f"cannot take a run: {(said or type(error).__name__).splitlines()[-1]}"
        if fault:
            where = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            raise ConfigError(f"--cluster: node {where} {fault}")


def resources(on_ray: OnRay, members: Sequence[Member], request: dict[str, Any], nodes: list[Any]) -> dict[str, float]:
    """What to reserve for each run. Raises `ConfigError` where no node has the cores, GPUs and memory."""
    cpus, gpus, memory = on_ray.cpus_per_run, on_ray.gpus_per_run, max(request["memory"].values())
    least = {"GPU": gpus, "memory": memory, "CPU": cpus or 1}
    fit = [
        node["Resources"]
        for node in nodes
        if all(node["Resources"].get(what, 0) >= need for what, need in least.items())
    ]
    if not fit:
        found = "; ".join(_resources(node["Resources"]) for node in nodes)
        raise ConfigError(
            f"no node has the {_resources(least)} that a run needs ({found}); try a smaller --replay-capacity,"
            " --cpus-per-run or --gpus-per-run"
        )
    wanted = max(cores_for(member.config, on_gpu=gpus > 0) for member in members)
    return {"cpu": cpus or min(wanted, int(max(each["CPU"] for each in fit))), "gpu": gpus, "memory": memory}


def _resources(of: dict[str, float]) -> str:
    return f"{of.get('CPU', 0):g} cores, {of.get('GPU', 0):g} GPUs and {of.get('memory', 0) / 1e9:.1f} GB"


def tune_members(plan: Plan, shared: dict[str, Any], request: dict[str, Any], each: dict[str, float]) -> None:
    """Run members as trials until all have ended, or a stop is asked for."""
    from atari_dqn.agent.device import threads_asked

    assert plan.on_ray
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    Report.actor = Stop.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined, unused-ignore]
    Report.search = plan.on_ray.search is not None
    given = {
        "shared": shared,
        "gpu": each["gpu"],
        "cwd": request["cwd"],
        "flags": plan.flags,
        "search": plan.on_ray.search,
        "members": {member.name: member.config.to_dict() for member in plan.members},
        "threads": {
            member.name: threads_asked(member.config) or (each["cpu"] if member.name in request["pixels"] else 1)
            for member in plan.members
        },
    }
    pending = [member for member in plan.members if member.name in request["pending"]]
    trainable = tune.with_resources(tune.with_parameters(Trial, request=given, stop=Report.actor), each)
    place = Path(shared["root"]) / HIDDEN / "tune"
    ray_decides = plan.on_ray.search or plan.on_ray.stop_early
    if ray_decides and tune.Tuner.can_restore(str(place)):
        tuner = tune.Tuner.restore(str(place), trainable, resume_unfinished=True, resume_errored=True)
    else:
        shutil.rmtree(place, ignore_errors=True)
        tuner = tune.Tuner(
            trainable,
            param_space=space(plan, pending),
            tune_config=tune_config(plan, pending),
            run_config=tune.RunConfig(
                name=place.name,
                storage_path=str(place.parent),
                verbose=0,
                callbacks=[Report()],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a run has its own
                failure_config=tune.FailureConfig(max_failures=plan.on_ray.retries),
            ),
        )
    results = tuner.fit()
    for index in range(len(results)):
        result = results[index]
        last = result.metrics or {}  # of a trial that ended in an earlier session there was no event
        if last.get("name"):
            ended = "failed" if result.error else "stopped early"
            state = last["state"] if last["state"] in ("done", "stopped") else ended
            Events.send(**{**last_of(last), "state": state, "final": True})


def space(plan: Plan, pending: list[Member]) -> dict[str, Any]:
    """What Tune varies: the run, or what a search draws for the only one."""
    if not plan.ranges:
        return {"run": tune.grid_search([member.name for member in pending])}
    return {"run": pending[0].name} | {name: domain(name, wanted) for name, wanted in plan.ranges.items()}


def domain(name: str, wanted: Any) -> Any:
    """Tune's domain for a list of choices or a range."""
    if isinstance(wanted, list):
        return tune.choice(wanted)
    low, high = wanted["low"], wanted["high"]
    if type(TrainConfig().to_dict()[name]) is int:
        return (tune.lograndint if wanted.get("log") else tune.randint)(int(low), int(high) + 1)
    return (tune.loguniform if wanted.get("log") else tune.uniform)(low, high)


def tune_config(plan: Plan, pending: list[Member]) -> tune.TuneConfig:
    """How Tune searches and stops early. ASHA's last rung lies past the end of the runs, which end by themselves."""
    assert plan.on_ray
    total = max(member.config.run.total_env_steps for member in pending)
    beyond = total + max(member.config.num_envs for member in pending)
    asha = ASHAScheduler("env_step", max_t=beyond, grace_period=max(1, total // RUNGS), reduction_factor=REDUCTION)
    search = plan.on_ray.search is not None
    if search:
        from ray.tune.search.optuna import OptunaSearch
    return tune.TuneConfig(
        metric="score",
        mode="max",
        num_samples=plan.on_ray.trials if search else 1,
        max_concurrent_trials=plan.at_most,
        scheduler=asha if plan.on_ray.stop_early else None,
        search_alg=OptunaSearch(seed=pending[0].config.run.seed) if search else None,
    )
