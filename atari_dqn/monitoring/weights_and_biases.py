"""Weights & Biases, behind a thread of its own: that may wait for the service, the training never does."""

import contextlib
import os
import queue
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import psutil

from atari_dqn.monitoring.views import Row
from atari_dqn.system.files import replace

ROWS_KEPT = 2_000
"""Number of rows that wait for a slow service; those beyond are left out"""
START_SECONDS, LAST_SECONDS = 60.0, 10.0
"""Time for the service to accept the run, and to take the last rows when training is over"""
ID = "wandb-id.txt"
"""File in the run's directory, by which a resumed run continues the same one on the server"""


class WeightsAndBiases:
    """Logs rows by env step to the project of WANDB_PROJECT, or `atari_dqn`; without an API key to RUN/wandb alone.

    A service that is down, slow or broken costs its rows and one line of warning.
    """

    def __init__(self, run_dir: Path, settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
        self._run_dir, self._settings, self._say = run_dir, dict(settings), say
        self._rows: queue.Queue[Row | None] = queue.Queue(ROWS_KEPT)
        self._left_out = 0
        self._failed = False
        self._thread = threading.Thread(target=self._report, name="wandb", daemon=True)
        self._thread.start()

    def write(self, row: Row) -> None:
        try:
            self._rows.put_nowait(row)
        except queue.Full:
            self._left_out += 1

    def close(self) -> None:
        """Wait `LAST_SECONDS` for the service to take what is left."""
        with contextlib.suppress(queue.Full):
            self._rows.put(None, timeout=LAST_SECONDS)
        self._thread.join(LAST_SECONDS)
        left = self._left_out + self._rows.qsize()
        if self._failed or not (left or self._thread.is_alive()):
            return
        self._say(f"wandb was too slow: {left:,} rows left out; metrics.jsonl has them all")
        if self._thread.is_alive():
            self._failed = True
            self._say(f"wandb did not finish; `wandb sync {self._run_dir}/wandb/*run-*` may send what it has")
            for child in psutil.Process().children():
                with contextlib.suppress(Exception):
                    if child.name() == "wandb-core":  # or this process would wait for it as it exits
                        child.kill()
            with contextlib.suppress(Exception):
                sys.modules["wandb"].teardown()

    def _report(self) -> None:
        try:
            run = self._start()
            while (row := self._rows.get()) is not None:
                run.log({"env_step": row["env_step"], **{name: row[name] for name in row if "/" in name}})
            run.finish()
        except BaseException as error:  # whatever a service, or its client, may come to
            if self._failed:
                return
            self._failed = True
            with contextlib.suppress(queue.Empty):
                while True:
                    self._rows.get_nowait()  # `close` is not to wait for room
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            self._say(f"warning: wandb failed and gets no rows from here on: {reason}; metrics.jsonl has them all")

    def _start(self) -> Any:
        import wandb

        file = self._run_dir / ID
        if not file.exists():
            replace(file, f"{uuid.uuid4().hex[:8]}\n".encode())
        offline: Literal["offline"] | None = (
            None if os.environ.get("WANDB_MODE") or wandb.api.api_key else "offline"
        )  # no prompt for a key
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "atari_dqn"),
            id=file.read_text().strip(),
            name=self._run_dir.resolve().name,
            dir=str(self._run_dir),
            config=self._settings,
            resume="allow",
            mode=offline,
            settings=wandb.Settings(init_timeout=START_SECONDS, console="off", silent=True),
        )
        run.define_metric("env_step", hidden=True)
        run.define_metric("*", step_metric="env_step")
        offline_dir = Path(run.dir).parent
        self._say(f"wandb: {f'offline; wandb sync {offline_dir} sends what is logged' if run.offline else run.url}")
        return run
