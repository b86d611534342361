"""Virtual environments for the software that is compared with ours, created from files of pinned requirements.

An environment is created once and kept. A stamp in it holds a hash of the requirements and of the Python that created
it; an environment without a stamp (an interrupted installation) or with another one is created again.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

DIRECTORY = Path(__file__).parent / ".environments"
"""Default directory of the environments; git ignores it."""
STAMP = "stamp"
EVERY = 10.0
"""Seconds between lines of progress during an installation."""
STEPS = ("Collecting", "Processing", "Building", "Installing")
"""First words of the installer's lines that tell its progress."""


class InstallError(RuntimeError):
    """An environment cannot be created; the message is one line, the installer's first error."""


def interpreter(requirements: Path, directory: Path = DIRECTORY, say: Callable[[str], object] = print) -> Path:
    """Create the environment `directory/STEM` from `requirements` (STEM.txt), unless it is up to date.

    Args:
        requirements: File of pinned requirements.
        directory: Where the environments and the installer's logs (STEM.log) are.
        say: Called with lines of progress.

    Returns:
        The environment's Python.

    Raises:
        InstallError: The environment cannot be created.
    """
    place = directory.absolute() / requirements.stem
    inside, stamp, wanted = place / "bin" / "python", place / STAMP, _stamp(requirements)
    if stamp.is_file() and stamp.read_text() == wanted and inside.exists():
        return inside
    say(f"creating an environment for {requirements.stem}: a few minutes, once")
    log = directory.absolute() / f"{requirements.stem}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    # Our own pip is used: to install one into a small environment takes longer than everything else.
    _run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(place)], log, say)
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(inside),
        "install",
        "--no-input",
        "--disable-pip-version-check",
    ]
    _run([*install, "--progress-bar", "off", "--requirement", str(requirements)], log, say)
    stamp.write_text(wanted)
    return inside


def _stamp(requirements: Path) -> str:
    return hashlib.sha256(requirements.read_bytes() + sys.executable.encode()).hexdigest()


def _run(command: list[str], log: Path, say: Callable[[str], object]) -> None:
    start = time.monotonic()
    with log.open("a") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                try:
                    process.wait(EVERY)
                except subprocess.TimeoutExpired:
                    said = [line for line in log.read_text().splitlines() if line.startswith(STEPS)] or ["..."]
                    say(f"  {time.monotonic() - start:.0f} s: {said[-1][:100]}")
        finally:
            process.kill()
    if process.returncode:
        said = [line for line in log.read_text().splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["no output"]
        say(f"  output of the installer: {log}")
        raise InstallError(textwrap.shorten(errors[0], 160))
