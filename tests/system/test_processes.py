"""Tests of helper processes: what a session of its own changes."""

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from atari_dqn.system.processes import end_with_parent

GROUP = Path("/proc/self/autogroup")


def tell_session(answer: Connection, hang_up_children: bool) -> None:
    os.nice(3)
    end_with_parent(hang_up_children=hang_up_children)
    answer.send((os.getsid(0), GROUP.read_text()))


@pytest.mark.skipif(not GROUP.exists(), reason="the kernel does not schedule sessions as groups")
@pytest.mark.parametrize("leads", [False, True])
def test_a_helper_does_not_escape_its_niceness_in_a_session_of_its_own(leads: bool) -> None:
    answer, theirs = multiprocessing.Pipe()
    helper = multiprocessing.get_context("spawn").Process(target=tell_session, args=(theirs, leads), daemon=True)
    helper.start()
    session, group = answer.recv()
    helper.join()
    if leads:
        assert (session, group.split()[1:]) == (helper.pid, ["nice", str(os.nice(0) + 3)])
    else:
        assert (session, group) == (os.getsid(0), GROUP.read_text())
