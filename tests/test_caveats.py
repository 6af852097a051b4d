"""Each warning appears when it should, with its remedy, and not when it should not."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace

import pytest
from test_metrics import finished, forward

from bert_infer import compose, metrics
from bert_infer.devices.cpu import Cpu
from bert_infer.devices.cuda import Cuda
from bert_infer.graphs.cuda_graphs import CudaGraphs
from bert_infer.measuring import ceiling
from bert_infer.measuring.ceiling import Ceiling, Matmul
from bert_infer.measuring.conditions import Conditions
from bert_infer.measuring.drift import Drift
from bert_infer.operators import linears
from bert_infer.running.run_record import Record

RAGGED = ["word " * n for n in (1, 2, 3, 400)]


def codes(overrides, texts):
    record = compose(["model=minilm", *overrides]).run(texts).record
    assert all(w["message"] and w["remedy"] for w in record["warnings"])
    return {warning["code"] for warning in record["warnings"]}


BY_CHANCE = {"outliers", "trend", "step", "ceiling_moved", "clock_moved", "swapping"} | {
    "not_independent",
    "busy_machine",
    "loaded_machine",
    "stolen_time",
}
"""What a noisy machine may add to any run."""


def test_nothing_to_warn_of(monkeypatch):
    monkeypatch.setattr(ceiling, "_REPEAT_S", 0.3)  # or a disturbed call would be the ceiling
    assert codes(["iterations=100"], ["one text"]) <= BY_CHANCE


@pytest.mark.parametrize(
    ("code", "overrides", "texts"),
    [
        ("random_weights", ["model=tiny"], ["a"]),
        ("one_iteration", [], ["a"]),
        ("few_samples", ["iterations=2"], ["a"]),
        ("no_warmup", ["warmup=0"], ["a"]),
        ("padding_waste", ["batch=4"], RAGGED),
        ("padding_waste", ["batching=token_budget"], RAGGED),
        ("truncated_texts", ["max_length=16"], RAGGED),
        ("empty_texts", [], ["a", " "]),
        ("batch_not_filled", ["batch=8"], RAGGED),
        ("batch_ignored", ["batch=8", "batching=token_budget"], RAGGED),
        ("no_interval", ["iterations=2"], ["a"]),
        ("autocast", ["dtype=bf16_autocast"], ["a"]),
        ("max_s_ignored", ["until.max_s=0.05"], ["a"]),
        ("until_not_reached", ["until.relative_ci=0.0001", "until.max_s=0.05"], ["a"]),
    ],
)
def test_what_deserves_a_warning_gets_one(code, overrides, texts):
    assert code in codes(overrides, texts)


def test_warnings_come_in_the_order_in_which_they_matter():
    threads = min(1024, 2 * (os.cpu_count() or 1))
    chosen = ["model=tiny", "batch=8", "batching=token_budget"]
    chosen += ["device=cpu", f"device.threads={threads}"]
    found = [w["code"] for w in compose(chosen).run(["one two", "three"]).record["warnings"]]
    expected = ["random_weights", "batch_ignored", "one_iteration", "more_threads_than_cores"]
    assert [code for code in found if code in expected] == expected


def test_the_default_batch_is_not_called_ignored():
    assert "batch_ignored" not in codes(["batching=token_budget"], RAGGED)


def test_how_near_an_interval_came_is_said():
    asked = ["model=tiny", "iterations=25", "until.relative_ci=0.000001", "until.max_s=0.2"]
    record = compose(asked).run(["one two three"]).record
    (said,) = (w["message"] for w in record["warnings"] if w["code"] == "until_not_reached")
    assert f"half the interval is {record['measurement']['relative_ci']:.1%} of throughput." in said


def test_few_samples_are_called_what_they_are():
    """Seen to fail: 4 passes, where there were 2 of two forwards alike."""
    record = compose(["model=tiny", "iterations=2"]).run(["one two", "three four"]).record
    (said,) = (w["message"] for w in record["warnings"] if w["code"] == "no_interval")
    assert said == "4 forwards are too few for confidence intervals."


@pytest.mark.parametrize(
    ("tokens", "pooled", "says"),
    [
        (0.98, 0.999, "some token's cosine to the fp32 reference is 0.9800"),
        (0.999, 0.97, "some pooled output's cosine to the fp32 reference is 0.9700"),
        (0.999, 0.999, None),
    ],
)
def test_outputs_that_drift_are_warned_of(tokens, pooled, says):
    """Seen to fail: tokens alone were looked at."""
    drift = Drift(1, "the reference", "all", 0.1, 0.995, tokens, pooled)
    record = finished(forwards=[forward(0, 0.0, 1.0)], drift=drift)
    found = [w for w in metrics.of(record)["warnings"] if w["code"] == "large_drift"]
    assert len(found) == (says is not None)
    assert all(says in warning["message"] for warning in found)


def test_a_single_prompt_fills_whatever_batch_is_asked():
    found = codes(["batch=3", "batching=token_budget"], ["a"])
    assert not found & {"batch_not_filled", "batch_ignored", "padding_waste"}


QUIET = Conditions(
    load_average=1.0,
    cores=4,
    other_processes=0.01,
    stolen=0.0,
    quota_used_up=None,
    swapped_bytes=0,
    cpu_mhz=(2000.0, 2000.0),
    accelerator=({}, {}),
    accelerator_processes=(),
    throttled=(),
)


def of_conditions(**changed):
    record = finished(forwards=[forward(0, 0.0, 1.0)], conditions=replace(QUIET, **changed))
    return {warning["code"] for warning in metrics.of(record)["warnings"]}


@pytest.mark.parametrize(
    ("code", "changed"),
    [
        ("busy_machine", {"other_processes": 0.2}),
        ("loaded_machine", {"load_average": 9.0}),
        ("stolen_time", {"stolen": 0.05}),
        ("cpu_quota", {"quota_used_up": 0.3}),
        ("swapping", {"swapped_bytes": 4096}),
        ("clock_moved", {"cpu_mhz": (3000.0, 2000.0)}),
        ("shared_accelerator", {"accelerator_processes": (17,)}),
        ("throttled", {"throttled": ("temperature",)}),
    ],
)
def test_what_the_machine_did_beside_is_warned_of(code, changed):
    assert of_conditions(**changed) - of_conditions() == {code}


@pytest.mark.parametrize(
    ("device", "threads", "codes", "advice"),
    [
        (Cpu(), 1, {"busy_machine"}, None),
        (Cpu(), 2, {"busy_machine"}, "set device=cpu device.threads=N"),
        (Cpu(), 99, {"busy_machine", "more_threads_than_cores"}, "device.threads=N"),
        (Cuda(), 99, {"busy_machine"}, None),
    ],
)
def test_of_threads_only_what_can_be_changed_is_said(monkeypatch, device, threads, codes, advice):
    """Seen to fail: "lower device.threads", at one thread and on a GPU."""
    monkeypatch.setattr("bert_infer.caveats.machine.cores_allowed", lambda: 4)
    record = finished(conditions=replace(QUIET, other_processes=0.2))
    record = replace(record, prepared=replace(record.prepared, device=device))
    record.environment = {"threads": {"intra_op": threads}, "device": {}, "variables": {}}
    found = {w["code"]: w for w in metrics.of(record)["warnings"]}
    assert {"busy_machine", "more_threads_than_cores"} & found.keys() == codes
    remedy = found["busy_machine"]["remedy"]
    assert (advice in remedy) if advice else ("threads" not in remedy)
    assert all("device.threads=4" in found[c]["remedy"] for c in codes - {"busy_machine"})


def test_what_cannot_be_read_is_no_warning():
    unknown = {"load_average": None, "other_processes": None, "stolen": None}
    unknown |= {"quota_used_up": None, "swapped_bytes": None, "cpu_mhz": (None, None)}
    assert of_conditions(**unknown) == of_conditions()


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [(100.0, 80.0, "ceiling_moved"), (100.0, 125.0, "ceiling_moved"), (1.0, 1.0, "above_ceiling")],
)
def test_a_ceiling_that_moves_or_is_exceeded_is_warned_of(before, after, code):
    # A forward of a second does 4704 FLOP: far below the first two ceilings times a hundred.
    scale = 1 if code == "above_ceiling" else 100
    matmul = Matmul(8, 4, 5, linears.Plain)
    record = finished(forwards=[forward(0, 0.0, 1.0)])
    record.ceiling = Ceiling(matmul, scale * before, scale * after)
    assert code in {warning["code"] for warning in metrics.of(record)["warnings"]}
    record.ceiling = Ceiling(matmul, 1e6, 1e6)
    assert code not in {warning["code"] for warning in metrics.of(record)["warnings"]}


@dataclass(frozen=True)
class Graphing(Cpu):
    """A processor that passes for a device with CUDA graphs."""

    graphs = (CudaGraphs,)


@pytest.mark.parametrize(
    ("texts", "graph", "says"),
    [
        (["word " * 18] * 33, "cuda_graphs", "graph=cuda_graphs adds most of it"),
        (RAGGED, "cuda_graphs", "Use batching=by_length"),
        (RAGGED, "eager", "Use batching=by_length"),
    ],
)
def test_padding_that_a_graph_mode_adds_is_told_from_that_of_batching(texts, graph, says):
    """Seen to fail: the remedy was batching=by_length, which pads more."""
    given = f"text={json.dumps(texts)}"
    runner = compose(["model=tiny", "batch=32", f"graph={graph}", given])
    prepared = replace(runner, device=Graphing()).prepare()
    found = metrics.of(Record(prepared=prepared))["warnings"]
    (warning,) = (w for w in found if w["code"] == "padding_waste")
    assert says in warning["remedy"]


@pytest.mark.parametrize(
    ("features", "dtype", "is_emulated"),
    [
        ({"avx2"}, "bf16", True),
        ({"avx2", "avx512_bf16"}, "bf16", False),
        ({"amx_bf16"}, "bf16", False),
        ({"avx512_bf16"}, "fp16", True),
        ({"avx512_fp16"}, "fp16", False),
        ({"avx2"}, "fp32", False),
        (set(), "bf16", False),  # they are not known
    ],
)
def test_an_emulated_format_is_told_by_the_processors_features(
    monkeypatch, features, dtype, is_emulated
):
    monkeypatch.setattr("bert_infer.devices.cpu.cpu_flags", lambda: frozenset(features))
    found = codes(["model=tiny", f"dtype={dtype}", "device=cpu", "drift.texts=0"], ["a"])
    assert ("emulated_dtype" in found) == is_emulated
