"""A virtual environment for each peer: its name flows in, the interpreter that has it installed flows out.

Made at first use from the peer's file in `requirements/`, all from the package index; made anew when that file or the
Python version has changed since.
"""

from __future__ import annotations

import hashlib
import platform
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
ENVIRONMENTS = Path(__file__).parent / ".environments"


class InstallFailed(Exception):
    """The message has pip's last lines."""


def ensure(name: str, root: Path, watch: Callable[[str], None]) -> Path:
    """The interpreter of `name`'s environment below `root`. `watch` is told, about once a second, how it goes."""
    requirements = REQUIREMENTS / f"{name}.txt"
    home = root / name
    python, stamp = home / "bin" / "python", home / "installed"
    wanted = stamp_of(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(home, ignore_errors=True)
    root.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def told(line: str) -> None:
        watch(f"installing {name} for {time.monotonic() - start:.0f} s: {line[:100]}")

    _run([sys.executable, "-m", "venv", str(home)], told)
    _run([str(python), "-m", "pip", "install", "--progress-bar", "off", "--requirement", str(requirements)], told)
    stamp.write_text(wanted)
    return python


def stamp_of(requirements: Path) -> str:
    """What an environment's stamp says when it was made from this file by this Python."""
    return f"{platform.python_version()} {hashlib.sha256(requirements.read_bytes()).hexdigest()}\n"


def _run(command: list[str], watch: Callable[[str], None]) -> None:
    lines: queue.Queue[str | None] = queue.Queue()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line.strip())
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    said = [""]
    try:
        while True:
            try:
                line = lines.get(timeout=1)
            except queue.Empty:
                line = said[-1]
            else:
                if line is None:
                    break
                said.append(line)
            watch(line)
    finally:
        if process.poll() is None and sys.exc_info()[0] is not None:
            process.kill()
    if process.wait():
        raise InstallFailed("\n".join([f"exit code {process.returncode}: {' '.join(command)}", *said[-8:]]))
