"""The doctor's checks of what is installed: distributions and their ranges flow in, findings flow out.

Each check imports what it needs by itself, so that a library that is missing or broken is a finding and no crash; here
at the top stands the standard library alone.
"""

from __future__ import annotations

import importlib
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

OK, WARNING, FAULT = "ok", "warning", "fault"

Found = Iterator[tuple[str, str, str]]
"""Level, text and remedy of each finding of one check."""

SOURCE = Path(__file__).resolve().parents[2]
IMPORTED = {"ale-py": "ale_py", "opencv-python": "cv2", "pillow": "PIL"}
"""Names by which libraries are imported, where they are others."""
OPENCV = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")
"""Each brings the same `cv2`, and two of them overwrite each other's files."""


def check_python(runs: Path) -> Found:
    """The version, against the installed package's range."""
    version = platform.python_version()
    try:
        wanted = metadata.metadata("atari_dqn")["Requires-Python"]
    except metadata.PackageNotFoundError:
        yield WARNING, f"{version}; atari_dqn is not installed, so that ranges of versions are not known", _install()
        return
    from packaging.specifiers import SpecifierSet

    fits = SpecifierSet(wanted).contains(version, prereleases=True)
    yield (OK, version, "") if fits else (FAULT, f"{version}; {wanted} is needed", f"make a venv of Python {wanted}")


def check_libraries(runs: Path) -> Found:
    """All that the package requires: there, in range, and importable."""
    try:
        requirements = list(_requirements())
    except ImportError as error:
        yield FAULT, f"versions cannot be compared: {first_line(error)}", pip("packaging")
        return
    names, sound = [], True
    for wanted in requirements:
        name, fault = wanted.name, _misfit(wanted)
        if not fault:
            try:
                importlib.import_module(IMPORTED.get(name, name))
            except (Exception, SystemExit) as error:
                fault = f"{name} {_version(wanted)} cannot be imported: {first_line(error)}"
        if fault:
            sound = False
            yield FAULT, fault, pip(f'"{name}{wanted.specifier}"', "--force-reinstall " if "imported" in fault else "")
        names.append(f"{name} {_version(wanted)}")
    if sound and requirements:
        yield OK, f"in their ranges: {', '.join(names)}", ""


def check_opencv(runs: Path) -> Found:
    """One of its four distributions and no second one; and that it resizes a frame."""
    found = [name for name in OPENCV if _installed(name)]
    if len(found) > 1:
        extra = " ".join(found[1:])
        remedy = f"python -m pip uninstall -y {' '.join(found)}; {pip(found[0])}"
        yield FAULT, f"{found[0]} and {extra} overwrite each other's files", remedy
    import cv2
    import numpy as np

    frame = np.full((210, 160), 77, np.uint8)
    small = cv2.resize(frame, (84, 84), interpolation=cv2.INTER_AREA)
    if small.shape == (84, 84) and (small == 77).all():
        yield OK, f"cv2 {cv2.__version__} of {', '.join(found) or 'another source'} resizes a frame", ""
    else:
        yield FAULT, "cv2 resizes a grey frame wrongly", pip(found[0], "--force-reinstall ")


def check_extras(runs: Path) -> Found:
    """What is optional: extras of the package, and the browser that tests drive."""
    try:
        extras = metadata.metadata("atari_dqn").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in extras:
        faults = [fault for wanted in _requirements(extra) if (fault := _misfit(wanted))]
        if faults:
            yield OK, f"[{extra}] is not whole, and only its commands need it: {'; '.join(faults)}", _install(extra)
        else:
            yield OK, f"[{extra}] is installed", ""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        yield OK, "no Chromium: tests of the dashboard's page are skipped", "Debian: chromium and chromium-driver"


def _requirements(extra: str = "") -> Iterator[Any]:
    """What the installed package requires, always or for an extra; none where it is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("atari_dqn") or []
    except metadata.PackageNotFoundError:
        return
    for wanted in map(Requirement, lines):
        asked = wanted.marker is None or wanted.marker.evaluate({"extra": extra})
        always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if asked and always == (not extra) and wanted.name.replace("_", "-") != "atari-dqn":
            yield wanted


def _misfit(wanted: Any) -> str:
    """Why a requirement is not met; empty when it is."""
    version = _version(wanted)
    if not version:
        return f"{wanted.name} is not installed"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"{wanted.name} is {version}, out of the range {wanted.specifier}"
    return ""


def _version(wanted: Any) -> str:
    """Of the distribution, or for OpenCV of any that brings the same module; empty when there is none."""
    names = OPENCV if wanted.name in OPENCV else (wanted.name,)
    return next((found for name in names if (found := _installed(name))), "")


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def pip(what: str, how: str = "") -> str:
    return f"python -m pip install {how}{what}"


def _install(extra: str = "") -> str:
    suffix = f"[{extra}]" if extra else ""
    if (SOURCE / "pyproject.toml").is_file():
        return pip(f'"{SOURCE}{suffix}"', f"--constraint {SOURCE / 'constraints.txt'} --editable ")
    return pip(f'"atari_dqn{suffix}"')


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
