"""Weights & Biases: a real client in offline mode, and services that are slow or broken."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from atari_dqn.monitoring import weights_and_biases
from atari_dqn.monitoring.weights_and_biases import WeightsAndBiases


def row(env_step: int) -> dict[str, float]:
    return {"env_step": env_step, "update": 3, "charts/episodic_return": env_step / 10}


def records(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, as wandb writes it behind seven bytes of its own."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if (left := 32_768 - place % 32_768) < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def logged(run_dir: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Each row in the records of an offline client, with the id of its run, the first first."""
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(run_dir.glob("*/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime):
        run_id = ""
        for record in map(Record.FromString, records(file.read_bytes())):
            run_id = record.run.run_id or run_id
            items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
            if items:
                yield run_id, {name: json.loads(text) for name, text in items.items() if not name.startswith("_")}


def test_an_offline_client_has_the_rows_by_name_and_a_resume_continues_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    said: list[str] = []
    for env_steps in ((100, 200), (300,)):
        view = WeightsAndBiases(tmp_path, {"batch_size": 32}, said.append)
        for env_step in env_steps:
            view.write(row(env_step))
        monkeypatch.setattr(weights_and_biases, "LAST_SECONDS", 120.0)
        view.close()
        # Two folders of one second would have one name.
        (tmp_path / "wandb").rename(tmp_path / str(env_steps))
    wandb.teardown()  # as at the end of the process: until its service has ended, the last row may not be in the file
    assert len(said) == 2
    assert all(line.startswith("wandb: offline; wandb sync ") for line in said)
    found = [*logged(tmp_path)]
    assert {run_id for run_id, _ in found} == {(tmp_path / "wandb-id.txt").read_text().strip()}
    assert [values for _, values in found] == [
        {"env_step": step, "charts/episodic_return": step / 10} for step in (100, 200, 300)
    ]


def client(monkeypatch: pytest.MonkeyPatch, init: Any) -> None:
    """A wandb whose `init` is this one."""
    module: Any = ModuleType("wandb")
    module.init, module.Settings, module.api = init, dict, SimpleNamespace(api_key=None)
    monkeypatch.setitem(sys.modules, "wandb", module)


def test_a_broken_client_is_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**given: Any) -> None:
        assert given["mode"] == "offline", "without a key there would be a prompt"
        raise RuntimeError("no service\nand a long report")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    client(monkeypatch, init)
    said: list[str] = []
    view = WeightsAndBiases(tmp_path, {}, said.append)
    for env_step in range(5_000):
        view.write(row(env_step))
    view.close()
    assert said == ["warning: wandb failed and gets no rows from here on: no service; metrics.jsonl has them all"]


def test_a_service_that_hangs_keeps_neither_the_rows_nor_the_end_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    client(monkeypatch, lambda **_: over.wait(300))
    monkeypatch.setattr(weights_and_biases, "LAST_SECONDS", 0.01)
    killed: list[bool] = []
    service = SimpleNamespace(name=lambda: "wandb-core", kill=lambda: killed.append(True))
    process = SimpleNamespace(children=lambda: [service])
    monkeypatch.setattr(weights_and_biases, "psutil", SimpleNamespace(Process=lambda: process))
    said: list[str] = []
    view = WeightsAndBiases(tmp_path, {}, said.append)
    for env_step in range(weights_and_biases.ROWS_KEPT + 3):
        view.write(row(env_step))
    view.close()
    over.set()
    assert killed == [True], "or the process would wait for it as it exits"
    assert said == [
        f"wandb was too slow: {weights_and_biases.ROWS_KEPT + 3:,} rows left out; metrics.jsonl has them all",
        f"wandb did not finish; `wandb sync {tmp_path}/wandb/*run-*` may send what it has",
    ]
