"""Processes that end at once still do all that was promised for their end."""

from __future__ import annotations

import pstats
import subprocess
import sys

from conftest import ROOT

SCRIPT = """
import atexit, sys
from bert_infer.processes import ending

class Taken:
    def __del__(self):
        print("taken apart")

taken = Taken()
atexit.register(print, "registered")
if len(sys.argv) > 1:
    ending.leave_at_once(3)
sys.exit(3)
"""


def ended(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (3, "")
    return done.stdout.splitlines()


def test_what_is_registered_is_called_once_and_nothing_is_taken_apart():
    assert ended("at once") == ["registered"]
    assert ended() == ["registered", "taken apart"]


def test_a_run_collects_garbage_though_the_fork_server_does_not(tmp_path):
    script = f"""
import gc
from pathlib import Path
from bert_infer.processes import preloaded, process
print(gc.isenabled(), flush=True)
with process.set_apart(Path({str(tmp_path)!r}), 0.0):
    print(gc.isenabled(), flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == "False\n"
    assert (tmp_path / "run.log").read_text() == "True\n"


def test_a_profiler_around_a_command_writes_what_it_found(tmp_path):
    run = ["-m", "cProfile", "-o", "found", str(ROOT / "run.py"), "--version"]
    done = subprocess.run([sys.executable, *run], cwd=tmp_path, check=True, capture_output=True)
    assert done.stdout.startswith(b"bert_infer ")
    assert pstats.Stats(str(tmp_path / "found")).total_calls > 1000
