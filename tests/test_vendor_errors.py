"""What the vendor's script measures wrongly; each test fails if we do it again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_measure import AsynchronousDevice, Time, one_batch

from bert_infer import compose
from bert_infer.measuring.measure import measured_pass


def test_a_batch_repeats_the_sequence_not_the_string():
    one = compose(["model=tiny"]).run(["Good morning BERT!"]).record["workload"]
    twelve = compose(["model=tiny", "batch=12"]).run(["Good morning BERT!"]).record["workload"]
    assert twelve["length"] == one["length"]
    assert (one["sequences"], twelve["sequences"]) == (1, 12)
    assert twelve["real_tokens"] == 12 * one["real_tokens"]


def test_ragged_texts_are_padded_and_the_padding_is_masked():
    texts = ["Short.", "This one is a good deal longer than the other."]
    together = compose(["model=minilm", "batch=2"]).run(texts)
    assert together.record["workload"]["forwards_per_pass"] == 1
    assert together.record["workload"]["padding_waste"] > 0
    for text, states in zip(texts, together.hidden_states, strict=True):
        (alone,) = compose(["model=minilm"]).run([text]).hidden_states
        torch.testing.assert_close(states, alone, rtol=0, atol=2e-5)


def test_the_clock_stops_after_the_device_has_finished():
    time = Time()
    device = AsynchronousDevice(time)

    def encode(ids):
        device.work_for(3.0)
        return ids, ids

    ((forward, _, _),) = measured_pass(0, [one_batch()], encode, device, time)
    assert forward.duration_s == 3.0


@pytest.mark.parametrize(
    ("dtype", "autocasts"), [("fp32", False), ("bf16", False), ("bf16_autocast", True)]
)
def test_only_autocast_autocasts(dtype, autocasts):
    runner = compose(["device=cpu", f"dtype={dtype}"])
    with runner.dtype.active(runner.device):
        assert torch.is_autocast_enabled("cpu") == autocasts


def test_a_checkpoints_content_is_loaded(tmp_path, minilm):
    from safetensors.torch import load_file, save_file

    tensors = load_file(minilm / "model.safetensors")
    tensors["pooler.dense.bias"] = torch.full((384,), 10.0)
    save_file(tensors, tmp_path / "other.safetensors")
    result = compose(["model=minilm", f"model.checkpoint={tmp_path / 'other.safetensors'}"]).run(
        ["a"]
    )
    assert (result.pooled > 0.99).all()  # tanh of what the changed bias pushes up


def test_tokens_are_counted_after_truncation():
    workload = compose(["model=tiny", "max_length=8"]).run(["word " * 100]).record["workload"]
    assert (workload["real_tokens"], workload["truncated_texts"]) == (8, 1)


def test_nothing_is_printed_while_the_clock_runs(capsys):
    printed = []

    def encode(_):
        printed.append(capsys.readouterr())
        return torch.zeros(1, 3, 2), torch.zeros(1, 2)

    runner = compose(["model=tiny", "iterations=3"])
    measured = measured_pass(0, [one_batch()] * 3, encode, runner.device.resolve())
    printed += [capsys.readouterr() for _ in measured]
    assert len(printed) == 6
    assert all((out, err) == ("", "") for out, err in printed)


@pytest.mark.parametrize("graph", ["auto", "eager", "compile"])
def test_the_graph_mode_recorded_is_the_one_used(graph):
    record = compose(["model=tiny", f"graph={graph}"]).run(["Hello"]).record
    assert record["choice"]["graph"] == {"auto": "eager"}.get(graph, graph)
    assert (record["phases_s"]["compile"] is not None) == (graph == "compile")
    drift = record["drift"]
    assert (drift is not None) == (graph == "compile"), "An eager one is the reference."
    assert drift is None or (drift["texts"] == 1 and drift["min_cosine"] > 0.999999)


def test_padding_never_changes_with_the_neighbours():
    lengths = np.array([3, 9, 4])
    (group,) = compose(["batching=padded"]).batching.plan(lengths, 3, 512)
    assert group.width == 9
