import os
import subprocess
import sys
from dataclasses import replace

import pytest

from pipeline.shared.process_identity import ProcessIdentity, process_state


def test_a_process_is_known_by_its_number_and_start_until_it_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        known = ProcessIdentity.of(child.pid)
        assert known.is_visible
        assert known.state is not None
        assert replace(known, start_ticks=known.start_ticks + 1).state is None
        child.communicate(b"\n")
    assert known.state is None
    with pytest.raises(ProcessLookupError):
        ProcessIdentity.of(child.pid)


def test_a_process_that_nobody_has_waited_for_is_dead() -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        known = ProcessIdentity.of(child.pid)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert known.state is None


def test_processes_of_another_boot_or_container_are_not_looked_up() -> None:
    known = ProcessIdentity.of_this_process()
    assert known.is_same_boot
    assert not replace(known, boot="another").is_same_boot
    assert not replace(known, pid_namespace="pid:[1]").is_visible
    assert replace(known, pid_namespace="pid:[1]").is_same_boot


def test_the_name_of_a_program_may_hold_anything() -> None:
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b') Z 1 (', 0, 0, 0); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        state = process_state(child.pid)
        assert state is not None
        assert not state.is_dead
        child.communicate(b"\n")
