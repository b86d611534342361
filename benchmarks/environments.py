"""Virtual environments for software that is measured beside ours: a file of pinned requirements flows in, the
interpreter of an environment that has them flows out.

An environment is made once and kept: a stamp in it holds a hash of the requirements and of the Python that made it,
and one whose stamp is absent (an installation that was cut short) or another's is made anew.
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
"""Where environments lie by default; git ignores it."""
STAMP = "stamp"
EVERY = 10.0
"""Seconds between signs of life while an installation lasts."""
DOINGS = ("Collecting", "Processing", "Building", "Installing")
"""How the installer's lines begin that say what it is about."""


class InstallError(RuntimeError):
    """An environment could not be made; the message is one line, what the installer complained of first."""


def interpreter(requirements: Path, directory: Path = DIRECTORY, say: Callable[[str], object] = print) -> Path:
    """The Python of `directory/STEM`, an environment with what `requirements` (STEM.txt) pins; made where absent.

    Raises `InstallError` when it cannot be made. What the installer says goes to `directory/STEM.log`.
    """
    place = directory.absolute() / requirements.stem
    inside, stamp, wanted = place / "bin" / "python", place / STAMP, _stamp(requirements)
    if stamp.is_file() and stamp.read_text() == wanted and inside.exists():
        return inside
    say(f"making an environment for {requirements.stem}; a few minutes, once")
    log = directory.absolute() / f"{requirements.stem}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    # Our own pip serves: to put one into every environment takes longer than all that a small one needs.
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
                    said = [line for line in log.read_text().splitlines() if line.startswith(DOINGS)] or ["..."]
                    say(f"  {time.monotonic() - start:.0f} s: {said[-1][:100]}")
        finally:
            process.kill()
    if process.returncode:
        said = [line for line in log.read_text().splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["no word"]
        say(f"  the installer's own words: {log}")
        raise InstallError(textwrap.shorten(errors[0], 160))
