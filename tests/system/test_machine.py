"""What is recorded about the machine."""

from __future__ import annotations

import pytest

from atari_dqn.system import machine


def test_a_distribution_without_the_expected_name_is_null_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """As opencv-python is where a build from source takes its place."""
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "opencv-python", "no-such-distribution"))
    packages = machine.describe_system()["packages"]
    assert packages["torch"]
    assert packages["opencv-python"], "or its headless build"
    assert packages["no-such-distribution"] is None


def test_memory_needs_no_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has none, nor has a container where they are not mounted."""
    monkeypatch.setattr(machine, "cgroup_memory", list)
    assert machine.available_memory() > 0
