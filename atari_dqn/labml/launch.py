"""Starting a dashboard server in a subprocess, and finding one that runs."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

from atari_dqn.cli.command import BAD_INPUT, CommandFailed
from atari_dqn.config.setting import ConfigError

PORT = 5005


API = "/api/v1"


GOODBYE_SECONDS = 4
"""labml's server answers each report after a pause of 3 s; a reply under way, which may carry an edit, is let out."""


START_SECONDS = 120.0
"""For `start`: fetching the page's packages over a slow line is the long part."""


class Server:
    """A dashboard in a subprocess; it ends with this process, however that ends."""

    def __init__(self, process: subprocess.Popen[str], url: str, said: list[str]) -> None:
        self._process = process
        self.url = url
        """Of the page."""
        self.api_url = url + API
        """What `train --labml-url` takes."""
        self.said = said
        """Lines for the user, of before it was ready."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """Stop it, within `GOODBYE_SECONDS` and a little."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(GOODBYE_SECONDS + 2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start(port: int = PORT, data_dir: Path | None = None) -> Server:
    """Start a dashboard and return when it answers. Raises `ConfigError` or `CommandFailed` when it does not."""
    command = [sys.executable, "-m", "atari_dqn.dashboard", "--port", str(port), "--until-stdin-ends"]
    if data_dir is not None:
        command += ["--data-dir", str(data_dir)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # nobody else has the other end, so the kernel ends it with us
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
                return Server(process, ready[1], said)
            said.append(line.rstrip())
    finally:
        alarm.cancel()
    why = (said or ["it said nothing"])[-1].removeprefix("error: ")
    if process.wait() == BAD_INPUT:
        raise ConfigError(f"dashboard: {why}")
    raise CommandFailed(f"the dashboard did not start: {why}")


def running(url: str, seconds: float = 2.0) -> bool:
    """Whether a labml server answers at `url` (its page's, or the one with /api/v1), within `seconds` a step."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url.rstrip('/').removesuffix(API)}{API}/auth/is_logged", timeout=seconds) as reply:
            answer = json.loads(reply.read(1000))
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return isinstance(answer, dict) and "is_user_logged" in answer
