"""The measuring code on a device whose time is scripted."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from conftest import QUICK
from test_metrics import finished

from bert_infer import compose, metrics
from bert_infer.batching.layouts import PaddedBatch
from bert_infer.configuration.settings import Until
from bert_infer.devices.cpu import Cpu
from bert_infer.measuring import warmup
from bert_infer.measuring.measure import (
    Pace,
    Phases,
    fastest_s,
    measured_pass,
    timed,
    without_garbage_collection,
)
from bert_infer.measuring.warmup import (
    WarmUp,
    run_once_in_time,
    warm_up_passes,
    warm_up_until_steady,
)
from bert_infer.records import Forward, Outputs
from bert_infer.running.execution import execute
from bert_infer.running.run_record import Record
from bert_infer.running.schedule import as_long_as_asked
from bert_infer.running.status import Status


class Time:
    """A clock that only moves when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def tick_and_fail(self):
        self.now += 1
        raise ZeroDivisionError


class AsynchronousDevice(Cpu):
    """Returns at once and works later, as an accelerator does; copying takes 1 s each way."""

    def __init__(self, time, copy_s=1.0):
        super().__init__()
        object.__setattr__(self, "copy_s", copy_s)
        object.__setattr__(self, "time", time)
        object.__setattr__(self, "queue", [0.0])

    def work_for(self, seconds):
        self.queue[0] += seconds

    def copy_in(self, arrays):
        self.work_for(self.copy_s)
        return tuple(torch.from_numpy(a) for a in arrays)

    def copy_out(self, outputs):
        self.work_for(self.copy_s)
        return outputs

    def synchronize(self):
        self.time.now += self.queue[0]
        self.queue[0] = 0.0


def one_batch():
    ids = np.ones((1, 3), np.int32)
    return PaddedBatch(np.array([0]), np.array([3]), ids), (ids,)


@pytest.fixture
def time():
    return Time()


def test_an_asynchronous_device_is_waited_for(time):
    device = AsynchronousDevice(time)
    durations = iter([5.0, 7.0])

    def encode(ids):
        device.work_for(next(durations))
        return ids, ids

    forwards = [f for f, _, _ in measured_pass(0, [one_batch(), one_batch()], encode, device, time)]
    assert [f.duration_s for f in forwards] == [5.0, 7.0]
    assert [f.wall_s for f in forwards] == [7.0, 9.0]
    assert [(f.lay_out_s, f.copy_in_s, f.copy_out_s) for f in forwards] == [(0.0, 1.0, 1.0)] * 2
    assert [f.start_s for f in forwards] == [0.0, 7.0]


def test_what_happens_between_forwards_is_not_measured(time):
    device = AsynchronousDevice(time)
    wall = 0.0
    for forward, _, _ in measured_pass(0, [one_batch()] * 3, lambda i: (i, i), device, time):
        wall += forward.wall_s
        time.now += 100  # saving, drawing
    assert wall == 6.0


def test_laying_a_batch_out_is_measured(time):
    def batches():
        time.now += 4  # sorting and padding
        yield one_batch()

    ((forward, batch, outputs),) = measured_pass(
        0, batches(), lambda i: (i, i), AsynchronousDevice(time), time
    )
    assert forward.wall_s == 6.0
    assert forward.lay_out_s == 4.0
    assert forward.duration_s == 0.0
    assert (forward.sequences, forward.real_tokens, forward.padded_tokens) == (1, 3, 3)
    assert isinstance(outputs, Outputs)
    assert batch.real_tokens == 3


def test_phases_add_up_and_remember_where_it_ended(time):
    phases = Phases(time)
    for _ in range(2):
        with phases("load"):
            time.now += 3
    with pytest.raises(ZeroDivisionError), phases("measure"):
        time.tick_and_fail()
    assert phases.seconds["load"] == 6
    assert phases.seconds["measure"] == 1
    assert phases.seconds["drift"] is None
    assert phases.current == "measure"


def test_what_takes_long_is_done_seldomer(time):
    """Seen to fail: what took longer than the time between two was done without end."""
    pace, begun = Pace(5.0, time), []

    def work():
        begun.append(time.now)
        time.now += time.now / 100

    while time.now < 1000:
        pace.do(work)
        time.now += 1
    assert begun[1] - begun[0] == pytest.approx(5)
    assert sum(start / 100 for start in begun) < 0.06 * time.now


def test_timed(time):
    def work():
        time.now += 2
        return "done"

    assert timed(work, time) == ("done", 2.0)


class Scripted:
    """An encoder whose forwards take what a script says, on an asynchronous device."""

    def __init__(self, time, script, copy_s=1.0):
        self.device = AsynchronousDevice(time, copy_s)
        self.remaining = iter(script)
        self.calls = 0

    def __call__(self, ids):
        self.calls += 1
        self.device.work_for(next(self.remaining))
        return ids, ids


def test_warm_up_goes_on_until_passes_are_steady(time):
    # The last two gain less than 2 % over the fastest before them.
    encode = Scripted(time, [1.0, 0.5, 0.2, 0.21, 0.199, 99], copy_s=0)
    result = warm_up_until_steady(lambda: [one_batch()], encode, encode.device, time)
    assert result == WarmUp(5, steady=True)


def test_warm_up_ends_at_its_limit_and_says_that_it_was_not_steady(time):
    encode = Scripted(time, [0.95**n for n in range(40)], copy_s=0)
    result = warm_up_until_steady(lambda: [one_batch()], encode, encode.device, time)
    assert result == WarmUp(13, steady=False)  # the 14th ends after 10.2 s
    assert warmup.LIMIT_S < time.now < warmup.LIMIT_S + 1


def test_a_pass_longer_than_the_limit_is_broken_off(time):
    encode = Scripted(time, [6.0] * 100)
    result = warm_up_until_steady(lambda: [one_batch()] * 100, encode, encode.device, time)
    assert result == WarmUp(0, steady=None)  # seen to fail: said not to have settled
    assert encode.calls == 2


def test_so_many_passes_warm_up_as_are_asked(time):
    encode = Scripted(time, [1.0] * 9)
    assert warm_up_passes(3, lambda: [one_batch()] * 2, encode, encode.device).passes == 3
    assert encode.calls == 6


class Passes:
    """Measures as ``as_long_as_asked`` says, a second a pass."""

    def __init__(self, iterations, until, intervals):
        self.forwards, self.looked = [], 0
        self.intervals = iter(intervals)
        for index in as_long_as_asked(iterations, until, self.forwards, self.relative_ci):
            self.forwards.append(Forward(index, 0, 1, 1, 1, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0))

    def relative_ci(self):
        self.looked += 1
        return next(self.intervals)


def test_passes_are_as_many_as_asked():
    assert len(Passes(7, Until(None, 60), []).forwards) == 7


def test_passes_go_on_until_the_interval_is_narrow():
    passes = Passes(10, Until(0.02, 60), [None, 0.05, 0.03, 0.019])
    assert passes.looked == 4
    assert len(passes.forwards) == 15  # it looked after 10, 11, 13 and 15


def test_passes_end_when_the_time_is_up():
    assert len(Passes(5, Until(0.001, 30), iter(lambda: 0.5, None)).forwards) == 30


@pytest.mark.parametrize(
    ("until", "turns", "total"),
    [("null", None, 3), ("0.9", None, None), ("null", lambda *_: iter(range(3)), None)],
)
def test_how_many_forwards_there_will_be_is_known_where_passes_are_counted(until, turns, total):
    chosen = ["model=tiny", "drift.texts=0", "iterations=3", "until.max_s=1e-9"]
    runner, told = compose([*chosen, f"until.relative_ci={until}"]), []
    told_of = lambda *given: told.append(given)  # noqa: E731
    execute(runner.prepare(), runner.new_record(), progress=told_of, turns=turns)
    assert told == [(1, total), (2, total), (3, total)]


def test_no_collection_begins_by_itself_while_measuring():
    assert gc.isenabled()
    with without_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


class Knot:
    """Refers to itself: only the collector frees it."""

    tied = 0

    def __init__(self):
        self.me = self
        Knot.tied += 1

    def __del__(self):
        Knot.tied -= 1


def test_what_a_pass_leaves_behind_is_collected_before_the_next(time):
    left = []

    def encode(ids):
        for _ in range(20_000):
            Knot()
        left.append(Knot.tied)
        return ids, ids

    with without_garbage_collection():
        for index in range(3):
            list(measured_pass(index, [one_batch()], encode, AsynchronousDevice(time), time))
    assert left == [20_000] * 3


@pytest.mark.parametrize("before", ["", "gc.freeze(); "])
def test_no_collection_of_a_first_run_passes_over_what_it_imports(before):
    """What a program has frozen itself stays so.

    Seen to fail: collections of a short run took a tenth of its time; a later run thawed all.
    """
    script = (
        f"import gc; from bert_infer import compose; frozen = []; {before}"
        "gc.callbacks.append(lambda *_: frozen.append(gc.get_freeze_count())); "
        f"runner = compose({list(QUICK)}); runner.run('one'); "
        "print(max(frozen), gc.get_freeze_count()); "
        "gc.freeze(); kept = gc.get_freeze_count(); runner.run('one'); "
        "print(gc.get_freeze_count() / kept)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    most, left, kept = map(float, done.stdout.split())
    assert most > 100_000
    assert (left > 0) == bool(before)
    assert kept > 0.99


def test_nothing_comes_between_the_warm_up_and_the_passes():
    """Seen to fail: the ceiling, or a collection, which made the first forward half as slow again.

    A small model's, of which a single one may be the whole figure.
    """
    runner = compose(["model=tiny", "text=Hello world!"])
    record, seen = runner.new_record(), []
    record.phases.entered = seen.append

    def collected(phase, _info):
        seen.append(f"collection {phase}")

    gc.callbacks.append(collected)
    try:
        execute(runner.prepare(), record)
    finally:
        gc.callbacks.remove(collected)
    at = seen.index("warmup")
    assert seen[at : at + 2] == ["warmup", "measure"]


@dataclass(frozen=True)
class Noted(Cpu):
    """Notes each forward."""

    seen: list[str] = field(default_factory=list, compare=False)

    def submit(self, encode, inputs, clock):
        self.seen.append("forward")
        return super().submit(encode, inputs, clock)


@pytest.mark.parametrize(("warmup", "are_more"), [("auto", True), ("3", True), ("0", False)])
def test_forwards_come_between_a_written_file_and_the_first_that_is_measured(
    monkeypatch, warmup, are_more
):
    """Seen to fail: the first took half as long again as the others, of a small model."""
    monkeypatch.setattr(
        "bert_infer.running.passes._SETTLE_S", 1.0
    )  # longer than any of these forwards
    runner = compose(["model=tiny", "drift.texts=0", "iterations=4", f"warmup={warmup}"])
    device, record = Noted(), runner.new_record()
    record.phases.entered = device.seen.append  # as where files are written
    execute(replace(runner.prepare(), device=device), record)
    after = device.seen[device.seen.index("measure") + 1 :]
    assert len(record.forwards) == 4
    assert (after.count("forward") > 4) == are_more


def test_nothing_is_written_between_the_first_forwards(tmp_path, monkeypatch):
    """Seen to fail: status.json and two more files, after the first of them."""
    monkeypatch.setattr("bert_infer.running.status._FIRST_AFTER_S", 60.0)
    kept, record = Status(tmp_path, lambda _phase: None), Record()
    kept.follow(record)
    with record.phases("measure"):
        before = (tmp_path / "status.json").stat().st_ino
        kept.measured()
        assert (tmp_path / "status.json").stat().st_ino == before
    assert json.loads((tmp_path / "status.json").read_text())["phase"] == "measure"


def test_shapes_that_were_not_warmed_up_are_a_warning(monkeypatch):
    """Seen to fail: nothing was said, as after a complete warm-up before a single pass."""
    texts = ["word " * length for length in (1, 20, 40, 45)]
    chosen = ["model=tiny", "batching=token_budget", "batching.max_tokens=50", "iterations=2"]
    record = compose(chosen).run(texts).record
    assert record["measurement"]["warmup_shapes_left"] == 0
    assert record["measurement"]["warmup_passes"] > 0
    monkeypatch.setattr("bert_infer.measuring.warmup.LIMIT_S", -1.0)
    record = compose(chosen).run(texts).record
    shapes = record["workload"]["forwards_per_pass"]
    assert record["measurement"]["warmup_shapes_left"] == shapes - 1 > 0
    assert record["measurement"]["warmup_passes"] == 0
    (warning,) = (w for w in record["warnings"] if w["code"] == "shapes_not_warmed")
    assert warning["message"].startswith(f"{shapes - 1} of the batch shapes had not run")
    assert "warmup=1" in warning["remedy"]


def test_the_shortest_call_counts_and_the_first_does_not(time):
    encode = Scripted(time, [0.1, 5.0, 3.0, 4.0, 9.0])
    shortest = fastest_s(lambda: encode(None), encode.device, 13.0, time)
    assert shortest == 3.0
    assert encode.calls == 4


def record_of(time, script):
    """What a run of one batch a pass records when its forwards take what ``script`` says."""
    encode = Scripted(time, script)
    record = finished(forwards=[])
    with without_garbage_collection():
        for index in range(len(script)):
            passed = measured_pass(index, [one_batch()], encode, encode.device, time)
            record.forwards += [forward for forward, _, _ in passed]
    return record


def warned(record):
    return {warning["code"] for warning in metrics.of(record)["warnings"]}


NOISE = list(np.random.default_rng(0).normal(10, 0.05, 30))
CHANGES = {"trend", "step", "outliers", "not_independent"}


def test_steady_passes_are_not_warned_of(time):
    assert not warned(record_of(time, NOISE)) & CHANGES


def test_a_slow_first_forward_in_the_figures_is_seen(time):
    """Warm-up keeps it out; where there was none, it is an outlier, and dropped from nothing."""
    content = metrics.of(record_of(time, [100.0, *NOISE]))
    assert content["measurement"]["outliers"]["severe"] == 1
    assert content["latency_ms"]["max"] == pytest.approx(100_000)
    assert content["latency_ms"]["samples"] == 31


def test_a_step_while_measuring_is_warned_of(time):
    record = record_of(time, [*NOISE[:15], *(1.3 * value for value in NOISE[15:])])
    assert warned(record) & CHANGES == {"step"}
    assert metrics.of(record)["measurement"]["step"]["at"] == 15
    (said,) = [w["message"] for w in metrics.of(record)["warnings"] if w["code"] == "step"]
    assert said.startswith("From number 16 of ")


def test_a_trend_while_measuring_is_warned_of(time):
    record = record_of(time, [v * (1 + 0.01 * i) for i, v in enumerate(NOISE)])
    assert metrics.of(record)["measurement"]["trend"] == pytest.approx(0.25, abs=0.04)
    assert warned(record) & {"trend", "step"}


def test_passes_that_are_like_the_ones_before_are_warned_of(time):
    spells = [value + 0.2 * ((i // 5) % 2) for i, value in enumerate(NOISE)]
    record = record_of(time, spells)
    assert warned(record) & CHANGES == {"not_independent"}
    assert metrics.of(record)["measurement"]["autocorrelation"] == pytest.approx(0.6, abs=0.2)


def test_outliers_are_counted_and_kept(time):
    record = record_of(time, [*NOISE[:10], 20.0, *NOISE[10:20], 25.0, *NOISE[20:]])
    content = metrics.of(record)
    assert content["measurement"]["outliers"]["high"] == 2
    assert content["latency_ms"]["samples"] == 32
    assert "outliers" in warned(record)


def test_few_timings_near_the_fences_are_noise(time):
    """Seen to fail: two, as a tenth of runs of ten or twenty normal timings have."""
    steady = np.random.default_rng(0).permutation(np.linspace(9.9, 10.1, 21))
    for high, is_said in (([10.3, 10.31], False), ([10.3, 10.31, 10.32], True)):
        record = record_of(time, [*steady, *high])
        outliers = metrics.of(record)["measurement"]["outliers"]
        assert (outliers["high"], outliers["severe"]) == (len(high), 0)
        assert ("outliers" in warned(record)) == is_said


def test_without_synchronising_the_clock_would_lie(time):
    """The device really is asynchronous: a bare clock around the call sees nothing."""
    encode = Scripted(time, [10.0])
    _, seconds = timed(lambda: encode(None), time)
    assert seconds == 0.0


def test_shapes_that_do_not_fit_the_limit_are_left_out(time):
    encode = Scripted(time, [6.0] * 9, copy_s=0)
    assert run_once_in_time([one_batch()] * 3, encode, encode.device, time) == 2
    assert encode.calls == 2
    assert run_once_in_time([one_batch()] * 2, encode, encode.device, time) == 2
