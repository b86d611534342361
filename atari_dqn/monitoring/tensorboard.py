"""TensorBoard event files."""

import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import hparams, text

from atari_dqn.monitoring.views import Film, Row
from atari_dqn.runs.records import Journal

SCORES = "charts/episodic_return", "eval/episodic_return"


class TensorBoard:
    """Writes an event file that `tensorboard --logdir runs` shows, by env step.

    TensorBoard's own writer is not used: on a full disk its thread dies and leaves a torn event that hides all later
    ones.
    """

    def __init__(self, directory: Path, env_steps: int, say: Callable[[str], None]) -> None:
        name = f"events.out.tfevents.{time.time_ns() / 1e9:010.6f}.{socket.gethostname()}.{os.getpid()}"
        self._journal = Journal(directory / name, say)
        self._records = RecordWriter(self._journal)
        self._put(file_version="brain.Event:2")
        # A resume hides what was logged past its checkpoint.
        self._put(step=env_steps + 1, session_log=SessionLog(status=SessionLog.START))

    def describe(self, settings: Mapping[str, Any]) -> None:
        """Show the settings as a text, and among the hyperparameters beside the scores."""
        table = "\n".join(["setting | value", "---|---", *(f"{name} | {value}" for name, value in settings.items())])
        self._put(summary=text("settings", table))
        plain = {name: value if type(value) in (int, float) else str(value) for name, value in settings.items()}
        for summary in hparams(plain, dict.fromkeys(SCORES))[:2]:  # the last one says that all is over
            self._put(summary=summary)

    def write(self, row: Row) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if "/" in name]
        self._put(step=int(row["env_step"]), summary=Summary(value=values))

    def show(self, clip: Film) -> None:
        """Show a film among the images, where an animated GIF plays."""
        height, width = clip.gif_size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=clip.gif)
        self._put(step=clip.env_step, summary=Summary(value=[Summary.Value(tag="clips/game", image=image)]))

    def close(self) -> None:
        self._journal.close()

    def _put(self, **content: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())
