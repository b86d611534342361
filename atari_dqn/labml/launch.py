"""Starts a dashboard in a subprocess, and checks whether one is running."""

import re
import subprocess
import sys
import threading
from pathlib import Path

from atari_dqn.cli.command import BAD_INPUT, CommandFailed
from atari_dqn.config.setting import ConfigError
from atari_dqn.labml.http import API, LabmlServer, RequestFailed, check_url

PORT = 5005
"""Default port, as labml's own server."""
SHUTDOWN_SECONDS = 4
"""Time for a reply under way, which may carry an edit: labml's server answers each report after a pause of 3 s."""
START_SECONDS = 120.0
"""Time for `start`; downloading the page's packages over a slow line takes most of it."""


class DashboardProcess:
    """A dashboard in a subprocess. It ends with this process, however this one ends."""

    def __init__(self, process: subprocess.Popen[str], url: str, said: list[str]) -> None:
        self._process, self.pid = process, process.pid
        self.url, self.api_url = url, url + API
        """URL of the page, and for `train --labml-url`."""
        self.said = said
        """Lines printed before the server was ready."""

    def close(self) -> None:
        """Stop it, within some seconds more than `SHUTDOWN_SECONDS`."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(SHUTDOWN_SECONDS + 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start(port: int = PORT, data_dir: Path | None = None) -> DashboardProcess:
    """Start a dashboard at `port` (0: any free one) and return when it answers.

    Raises `ConfigError` if the port or the directory cannot be used or labml-app is not installed, else
    `CommandFailed`.
    """
    command = [sys.executable, "-m", "atari_dqn.dashboard", "--port", str(port), "--until-stdin-ends"]
    if data_dir is not None:
        command += ["--data-dir", str(data_dir)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # only we hold the other end, so the kernel closes it when we end
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # Ctrl-C is for the training, which still has to report its end
    )
    assert process.stdout is not None
    alarm = threading.Timer(START_SECONDS, process.kill)
    alarm.start()
    said: list[str] = []
    try:
        for line in process.stdout:
            ready = re.fullmatch(r"dashboard: (http://\S+)\n", line)
            if ready:
                return DashboardProcess(process, ready[1], said)
            said.append(line.rstrip())
    finally:
        alarm.cancel()
    reason = (said or ["it printed nothing"])[-1].removeprefix("error: ")
    if process.wait() == BAD_INPUT:
        raise ConfigError(f"dashboard: {reason}")
    raise CommandFailed(f"the dashboard did not start: {reason}")


def running(url: str, seconds: float = 2.0) -> bool:
    """Whether a labml server answers within `seconds` at `url`, with or without its `/api/v1`."""
    try:
        return "is_user_logged" in LabmlServer(check_url(url), seconds).ask("GET", "auth/is_logged")
    except (ConfigError, RequestFailed):
        return False
