"""Tests of helper processes: what a session of its own changes."""

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from atari_dqn.system.linux import libc
from atari_dqn.system.processes import end_with_parent

GROUP = Path("/proc/self/autogroup")


def tell_session(answer: Connection, hang_up_children: bool) -> None:
    os.nice(3)
    end_with_parent(hang_up_children=hang_up_children)
    answer.send((os.getsid(0), GROUP.read_text()))


@pytest.mark.skipif(not (GROUP.exists() and libc("prctl")), reason="the kernel does not schedule sessions as groups")
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


PARENT = """
import subprocess
from atari_dqn.system.processes import hang_up_after_parent
for _ in range(2):
    subprocess.Popen(["sleep", "600"], start_new_session=True, preexec_fn=hang_up_after_parent())
print(flush=True)
input()
"""


@pytest.mark.parametrize("system", ["", "without_linux"])
def test_what_a_killed_process_started_hangs_up(system: str) -> None:
    path = [*([str(Path(__file__).parents[1] / system)] if system else []), os.environ["PYTHONPATH"]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout
        parent.stdout.readline()
        family = psutil.Process(parent.pid).children(recursive=True)
        assert [each.name() for each in family].count("sleep") == 2
        parent.kill()
    left = psutil.wait_procs(family, 60)[1]
    for each in left:
        each.kill()
    assert not left
