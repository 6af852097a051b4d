"""What goes on beside a run is found on a real machine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from unittest.mock import create_autospec

import psutil
import pytest

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


def moment(totals, device=Reading()):  # noqa: B008  it is frozen
    """A snapshot of a machine of two cores."""
    return replace(conditions.snapshot(Cpu()), cores=2, totals=totals, device=device)


def later(than, **grown):
    """The snapshot when some totals have grown."""
    return replace(than, totals=than.totals | {k: than.totals[k] + v for k, v in grown.items()})


def test_what_goes_on_in_pauses_is_not_beside_a_run():
    """A duel's other side has the machine then; strangers may have it at any time."""
    start = moment(
        {"total_s": 100.0, "busy_s": 50.0, "own_s": 20.0, "stolen_s": 1.0, "swapped_bytes": 100}
        | {"nr_periods": 10, "nr_throttled": 5},
        device=Reading(throttled_s={"heat": 0.1}),
    )
    begun = later(start, total_s=4, busy_s=3, own_s=2)
    ended = replace(
        later(begun, total_s=10, busy_s=9, stolen_s=0.5, swapped_bytes=800),
        device=Reading(processes=(7,), throttled_s={"heat": 0.3}),
    )
    ended = later(ended, nr_periods=10, nr_throttled=10)
    end = later(ended, total_s=4, busy_s=3, own_s=2, nr_periods=10, nr_throttled=1)
    found = conditions.between(start, end, [(begun, ended)])
    assert found.other_processes == pytest.approx(2 / 8)
    assert (found.stolen, found.swapped_bytes, found.quota_used_up) == (0, 0, 1 / 10)
    assert (found.throttled, found.accelerator_processes, found.is_alone) == ((), (), False)
    alone = conditions.between(start, end)
    assert alone.other_processes == pytest.approx(11 / 18)
    assert (alone.swapped_bytes, alone.throttled, alone.is_alone) == (800, ("heat",), True)
    assert alone.quota_used_up == 11 / 20


def test_what_was_not_read_each_time_is_unknown():
    before = moment(
        {"total_s": 1.0, "busy_s": 1.0, "own_s": 1.0, "nr_periods": 4, "nr_throttled": 1}
    )
    after = later(before, total_s=9)
    pause = (before, moment({"total_s": 1.0, "busy_s": 1.0, "own_s": 1.0}))
    for found in (conditions.between(before, after), conditions.between(before, after, [pause])):
        assert found.quota_used_up is None, "no period ended, or in the pause nothing was counted"
        assert (found.stolen, found.swapped_bytes) == (None, None)


def test_passes_too_short_to_tell_are_looked_at_with_the_ceiling_after_them():
    """Seen to fail: nothing was said of a busy machine for a single pass of BERT-Large."""
    before = moment({"total_s": 9.0, "busy_s": 5.0, "own_s": 2.0})
    passes = later(before, total_s=0.6, busy_s=0.6)
    ceiling = later(passes, total_s=0.6, busy_s=0.6, own_s=0.6)
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
