"""What goes on beside a run is found on a real machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from unittest.mock import create_autospec

import psutil
import pytest

from bert_infer.cgroup import Periods
from bert_infer.devices.cpu import Cpu
from bert_infer.devices.readings import Reading
from bert_infer.measuring import conditions

BESIDE = """
import os, subprocess, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from bert_infer.devices.cpu import Cpu
from bert_infer.measuring import conditions

with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:  # on the same core
    before = conditions.snapshot(Cpu())
    time.sleep(1.5)
    print(conditions.between(before, conditions.snapshot(Cpu())).other_processes)
    other.kill()
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes")
def test_of_a_process_that_is_bound_to_cores_only_those_are_looked_at():
    """Seen to fail: half of the processor's time on a machine of two cores, 2 % on one of 64."""
    done = subprocess.run(
        [sys.executable, "-c", BESIDE], capture_output=True, text=True, check=True
    )
    assert 0.6 < float(done.stdout) <= 1.0


def test_what_goes_on_in_pauses_is_not_beside_a_run():
    """A duel's other side has the machine then; strangers may have it at any time."""
    start = replace(
        conditions.snapshot(Cpu()),
        cores=2,
        total_s=100.0,
        busy_s=50.0,
        own_s=20.0,
        stolen_s=1.0,
        quota=Periods(10, 5),
        swapped_bytes=100,
        device=Reading(throttled_s={"heat": 0.1}),
    )

    def later(than, total, busy, own):
        return replace(
            than, total_s=than.total_s + total, busy_s=than.busy_s + busy, own_s=than.own_s + own
        )

    begun = later(start, 4, 3, 2)
    ended = replace(
        later(begun, 10, 9, 0),
        stolen_s=1.5,
        quota=Periods(20, 15),
        swapped_bytes=900,
        device=Reading(processes=(7,), throttled_s={"heat": 0.3}),
    )
    end = replace(later(ended, 4, 3, 2), quota=Periods(30, 16))
    found = conditions.between(start, end, [(begun, ended)])
    assert found.other_processes == pytest.approx(2 / 8)
    assert (found.stolen, found.swapped_bytes, found.quota_used_up) == (0, 0, 1 / 10)
    assert (found.throttled, found.accelerator_processes, found.is_alone) == ((), (), False)
    alone = conditions.between(start, end)
    assert alone.other_processes == pytest.approx(11 / 18)
    assert (alone.swapped_bytes, alone.throttled, alone.is_alone) == (800, ("heat",), True)


def test_passes_too_short_to_tell_are_looked_at_with_the_ceiling_after_them():
    """Seen to fail: nothing was said of a busy machine for a single pass of BERT-Large."""
    before = replace(conditions.snapshot(Cpu()), cores=2)
    passes = replace(before, total_s=before.total_s + 0.6, busy_s=before.busy_s + 0.6)
    ceiling = replace(
        passes,
        total_s=passes.total_s + 0.6,
        busy_s=passes.busy_s + 0.6,
        own_s=passes.own_s + 0.6,
    )
    found = conditions.between(before, passes)
    assert found.other_processes is None
    assert conditions.completed(found, before, ceiling).other_processes == pytest.approx(0.5)
    long = conditions.between(before, ceiling)
    assert conditions.completed(long, before, passes) is long


@pytest.mark.parametrize("error", [NotImplementedError, FileNotFoundError])
def test_a_clock_that_cannot_be_read_ends_no_run(monkeypatch, error):
    """Seen to fail: where cpufreq is there without its files, as in sandboxes."""
    monkeypatch.setattr(psutil, "cpu_freq", create_autospec(psutil.cpu_freq, side_effect=error))
    assert conditions.snapshot(Cpu()).cpu_mhz is None
