"""Doctor's checks of the Python version and of the installed libraries.

What this package requires itself is compared with its own metadata, what its dependencies require by `pip check`.
"""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from atari_dqn.diagnostics.finding import Finding
from atari_dqn.system.machine import installed_version

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "atari_dqn"
MODULES = {"opencv-python": "cv2", "pillow": "PIL"}
"""Modules whose name cannot be derived from that of their distribution."""


def check_python() -> Iterator[Finding]:
    """The version of Python against the range of the installed package."""
    from packaging.specifiers import SpecifierSet

    version = platform.python_version()
    try:
        supported = metadata.metadata(PACKAGE)["Requires-Python"]
    except metadata.PackageNotFoundError:
        yield Finding("warning", f"{version}; {PACKAGE} is not installed: cannot check versions", "pip install .")
        return
    if SpecifierSet(supported).contains(version, prereleases=True):
        yield Finding("ok", version)
    else:
        yield Finding("error", f"{version} is not supported", f"create a virtual environment of Python {supported}")


def check_libraries() -> Iterator[Finding]:
    """Every dependency: installed, in the range that is required of it, and its own dependencies met."""
    direct = list(requirements(PACKAGE))
    problems = [finding for wanted in direct if (finding := _unmet(wanted))]
    yield from problems
    if not problems:
        versions = (f"{wanted.name} {installed_version(wanted.name)}" for wanted in direct)
        yield Finding("ok", f"versions in range: {', '.join(versions)}")
    yield from _pip_check(dependencies(direct))


def requirements(distribution: str, extras: Iterable[str] = ()) -> Iterator[Requirement]:
    """What `distribution` requires here, with these of its extras; nothing if it is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return
    for wanted in map(Requirement, lines):
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield wanted


def dependencies(direct: Iterable[Requirement]) -> set[str]:
    """Canonical names of the distributions in `direct`, and of all that they require in turn."""
    from packaging.utils import canonicalize_name

    names, left = set[str](), list(direct)
    while left:
        wanted = left.pop()
        if (name := canonicalize_name(wanted.name)) not in names:
            names.add(name)
            left += requirements(wanted.name, wanted.extras)
    return names


def _unmet(wanted: Requirement) -> Finding | None:
    """Why a requirement is not met; None if it is.

    A distribution may be installed under another name (opencv-python-headless, conda, a build from source): only its
    module shows that it is there.
    """
    install, version = f'python -m pip install "{wanted.name}{wanted.specifier}"', installed_version(wanted.name)
    if version is None:
        if importlib.util.find_spec(MODULES.get(wanted.name, wanted.name.replace("-", "_"))):
            return Finding("note", f"{wanted.name} is installed under another name: cannot check its version")
        return Finding("error", f"{wanted.name} is not installed", install)
    if not wanted.specifier.contains(version, prereleases=True):
        return Finding("error", f"{wanted.name} is {version}; it must be {wanted.specifier}", install)
    return None


def _pip_check(names: set[str]) -> Iterator[Finding]:
    """What `pip check` reports about the distributions in `names`."""
    from packaging.utils import canonicalize_name

    if importlib.util.find_spec("pip") is None:
        yield Finding("note", "pip is not installed: cannot check what the libraries require of each other")
        return
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, timeout=60)
    for line in result.stdout.splitlines():  # "NAME VERSION requires ..."
        if result.returncode and canonicalize_name(line.split()[0]) in names:
            yield Finding("warning", line, "reinstall with --constraint constraints.txt")
