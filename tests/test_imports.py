"""Who may import whom: arrows point down, there is no circle, and commands never import each other.

The package's `__init__.py` offers `api.py`, which offers a command to programs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "atari_dqn"

MAY_IMPORT = {
    # floor 1
    "config": "",
    "system": "",
    # floor 2
    "cli": "system",
    "envs": "system",
    "replay": "system",
    "runs": "system",
    # floor 3
    "workers": "envs system",
    "agent": "replay system",
    "labml": "cli system",
    # floor 4
    "evaluation": "agent workers envs replay runs cli system",
    "policy": "agent envs runs cli system",
    # floor 5
    "monitoring": "evaluation runs cli system",
    "render": "policy evaluation agent envs replay runs cli system",
    "comparison": "evaluation runs envs cli system",
    # floor 6
    "training": "monitoring render evaluation agent workers labml envs replay runs cli system",
    "ending": "comparison render policy evaluation envs runs cli system",
    # floor 7
    "diagnostics": "training monitoring render policy evaluation agent workers labml envs replay runs cli system",
    "sweeps": "training monitoring render evaluation agent workers labml envs replay runs cli system",
    "distributed": "training workers envs cli system",
}
"""Every package, in order of floors, and what it may import besides `config`."""
RAY = ("system", "distributed", "sweeps")
NEVER_TORCH = ("config", "system", "cli", "envs", "workers", "labml", "comparison")


def packages_imported(file: Path) -> Iterator[tuple[str, int]]:
    """First part of each imported name, `atari_dqn.` removed where it is ours, and its line; lazy imports included."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            ours = name.startswith("atari_dqn.")
            yield (name.removeprefix("atari_dqn.") if ours else f"library {name}").split(".")[0], node.lineno


def modules() -> list[tuple[str, Path]]:
    """Every module with its package; a command, and the package's own two files, with its name and `.py`."""
    files = sorted(PACKAGE.rglob("*.py"))
    return [(file.relative_to(PACKAGE).parts[0], file) for file in files]


@pytest.mark.parametrize(("package", "file"), modules(), ids=lambda each: str(each).removeprefix(f"{PACKAGE}/"))
def test_a_module_imports_only_what_lies_below_it(package: str, file: Path) -> None:
    command = package.endswith(".py")
    allowed = {*MAY_IMPORT} if command else {package, "config", *MAY_IMPORT[package].split()}
    allowed |= {"api.py": {"train"}, "__init__.py": {"api"}}.get(package, set())
    for imported, line in packages_imported(file):
        if imported.startswith("library "):
            assert imported != "library torch" or package not in NEVER_TORCH, f"{file}:{line}: {package} without torch"
            assert imported != "library ray" or package in RAY, f"{file}:{line}: {package} without ray"
        else:
            assert imported in allowed, f"{file}:{line}: {package} may not import {imported}"


def test_the_table_has_no_circle_and_names_every_package() -> None:
    assert {*MAY_IMPORT} == {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    below: set[str] = set()
    for package, names in MAY_IMPORT.items():
        assert {*names.split()} <= below, f"{package} imports what is not above it in the table"
        below.add(package)


def test_every_package_says_what_it_is_in_one_sentence_and_is_small() -> None:
    for init in PACKAGE.glob("*/__init__.py"):
        (docstring,) = ast.parse(init.read_text()).body
        assert isinstance(docstring, ast.Expr), f"{init}: one sentence, and nothing else"
        assert len(list(init.parent.glob("*.py"))) <= 12, f"{init.parent} has too many files"
