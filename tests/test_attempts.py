"""A batch that does not fit: which one it was, and which one would."""

from __future__ import annotations

import gc
import json
import sys
import weakref
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import PLUGIN, QUICK, WITH_PLUGIN

from bert_infer import compose
from bert_infer.batching import Padded
from bert_infer.batching.groups import Group
from bert_infer.batching.layouts import PaddedBatch
from bert_infer.devices.cpu import Cpu
from bert_infer.errors import OptionError, OutOfMemoryError
from bert_infer.measuring.attempts import Attempt, first_half_that_fits, out_of_memory
from bert_infer.memory import ran_out
from bert_infer.processes import worker
from bert_infer.records import Computed, Outputs

sys.path.append(str(PLUGIN))
from small import Small

LONG, SHORT = "word " * 14, "word " * 6  # 16 and 8 tokens


def record(tmp_path, *overrides, texts, slots=40, device=None):
    chosen = compose(["model=tiny", "drift.texts=0", f"input.text={texts}", *overrides])
    chosen = replace(chosen, device=device or Small(slots=slots))
    return worker.carry_out(lambda: chosen, tmp_path).metrics


PACKED = ["engine=fused", "batching=packed", "batching.max_tokens=64"]
BY_LENGTH = ["batching=by_length", "batching.edges=[8,16]", "max_length=16", "batch=4"]


@pytest.mark.parametrize(
    ("overrides", "texts", "says"),
    [
        # One shape, and nothing smaller before it: its halves are tried.
        (["batch=8"], [LONG] * 8, ["8 sequences, 128 tokens", "2 sequences, 32", "batch to 2 or"]),
        # A window of short texts comes before that of long ones.
        (
            [*BY_LENGTH, "batching.window=4"],
            [SHORT] * 4 + [LONG] * 4,
            ["4 sequences, 64 tokens", "4 sequences, 32 tokens", "batch to 2 or"],
        ),
        (
            PACKED,
            [LONG] * 4,
            ["4 sequences, 64", "2 sequences, 32", "batching.max_tokens to 32 or"],
        ),
        # As many sequences, and no fewer of them would do.
        (
            ["batching=by_length", "batching.edges=[8,64]", "max_length=64", "batching.window=1"],
            [SHORT, "word " * 60],
            ["1 sequence, 64 tokens", "1 sequence, 8 tokens", "Lower batch or max_length"],
        ),
        (
            ["batch=2"],
            ["word " * 60],
            ["2 sequences, 124 tokens", "none that was tried", "Lower batch or"],
        ),
        (
            PACKED,
            ["word " * 60],
            ["1 sequence, 62 tokens", "none that was tried", "Lower batching.max_tokens or"],
        ),
    ],
)
def test_the_batch_that_failed_is_named_and_the_largest_that_fitted(
    tmp_path, overrides, texts, says
):
    """Seen to fail: no halves tried; the failed taken for fitting; packed told to lower batch."""
    metrics = record(tmp_path, *overrides, texts=texts)
    error = metrics["error"]
    assert (metrics["status"], error["type"]) == ("failed", "OutOfMemoryError")
    assert error["message"].startswith(
        "CUDA out of memory. Tried to allocate 2.00 GiB. The forward"
    )
    failed, fitted, remedy = says
    assert f"of {failed}" in error["message"]
    assert fitted in error["message"]
    assert "(phase: warmup)" in error["message"]
    assert remedy in error["remedy"]
    assert (tmp_path / "metrics.json").is_file()


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("where", ["copy_in", "copy_out", "engine"])
def test_wherever_memory_ends(tmp_path, where, in_flight):
    """Seen to fail: the next batch named where the outputs of the last do not fit the host."""

    @dataclass(frozen=True)
    class Full(Cpu):
        def copy_in(self, arrays):
            if where == "copy_in" and arrays[0].size > 40:
                raise MemoryError
            return super().copy_in(arrays)

        def copy_out(self, outputs):
            if where == "copy_out" and outputs.hidden_states.shape[:2].numel() > 40:
                raise MemoryError
            return super().copy_out(outputs)

        def torch_device(self):
            if where == "engine":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().torch_device()

    class FullAtTwo(Full):
        in_flight = 2

        def submit(self, encode, inputs, _clock):
            outputs = Outputs(*encode(*self.copy_in(inputs)))
            return lambda: Computed(self.copy_out(outputs), 0.0, 0.0, 0.0)

    device = Full() if in_flight == 1 else FullAtTwo()
    chosen = [*BY_LENGTH, "batching.window=4", f"warmup={2 - in_flight}"]  # one by one in it
    error = record(tmp_path, *chosen, texts=[SHORT] * 4 + [LONG] * 4, device=device)["error"]
    assert error["remedy"].startswith("Lower batch")
    if where == "engine":
        assert error["message"] == "CUDA out of memory. (phase: load)"
    else:
        assert "The forward of 4 sequences, 64 tokens did not fit" in error["message"]
        assert "had 4 sequences, 32 tokens." in error["message"]


def test_memory_that_ends_while_a_batch_is_laid_out_is_no_forwards(tmp_path, monkeypatch):
    """Seen to fail: the forward before it, which had been computed, was said not to fit."""
    lay_out, laid_out = PaddedBatch.of, []

    def second_is_too_much(*given):
        laid_out.append(given)
        if len(laid_out) == 2:
            raise MemoryError
        return lay_out(*given)

    monkeypatch.setattr(PaddedBatch, "of", second_is_too_much)
    metrics = record(tmp_path, "warmup=0", texts=[LONG] * 2, slots=1000)
    assert metrics["error"]["type"] == "MemoryError"
    assert "did not fit" not in metrics["error"]["message"]
    assert "Lower batch" in metrics["error"]["remedy"]
    assert metrics["latency_ms"]["samples"] == 1


@pytest.mark.parametrize("lacks", [MemoryError("no more"), ImportError("failed to map segment")])
def test_what_was_measured_is_kept_where_no_memory_is_left_for_statistics(
    tmp_path, monkeypatch, lacks
):
    """Seen to fail: a run of which nothing was left, as its intervals took what was not there."""

    def no_memory(*_):
        raise lacks

    monkeypatch.setattr("bert_infer.measuring.intervals.of_mean", no_memory)
    metrics = record(tmp_path, "iterations=8", texts=[SHORT], slots=1000)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert metrics["status"] == "failed"
    assert metrics["error"]["type"] == type(lacks).__name__
    assert metrics["latency_ms"]["samples"] == 8
    assert metrics["throughput"]["sequences_per_s"] > 0
    assert metrics["throughput"]["sequences_per_s_ci95"] is None


def test_a_program_gets_the_same_words_and_what_the_forward_held_is_given_up():
    """Seen to fail: frames not cleared, which hold the tensors of what failed."""
    held = []

    @dataclass(frozen=True)
    class Watched(Small):
        def fed(self, encode):
            def attempt(*inputs):
                assert not [kept for kept in held if kept()], "of the attempt before"
                state = torch.ones(1 << 10)
                held.append(weakref.ref(state))
                return inner(*inputs)

            inner = super().fed(encode)
            return attempt

    chosen = replace(compose(["model=tiny", "drift.texts=0", "batch=8"]), device=Watched(slots=40))
    gc.disable()
    try:
        with pytest.raises(OutOfMemoryError, match="2 sequences, 32 tokens") as told:
            chosen.run([LONG] * 8)
    finally:
        gc.enable()
    assert len(held) == 3
    assert isinstance(told.value.__cause__, torch.OutOfMemoryError)


def test_a_device_that_is_of_no_more_use_is_not_tried_again():
    tried = []

    def compute(group):
        tried.append(group)
        raise RuntimeError("device lost")

    prepared = compose(["model=tiny", "device=cpu", "batch=8"]).prepare()
    (group,) = prepared.shapes.values()
    assert first_half_that_fits(group, compute) is None
    assert len(tried) == 1


def test_what_is_sure_not_to_fit_the_card_is_refused():
    """Seen to fail: the weights left out; batch refused where max_tokens decides."""

    @dataclass(frozen=True)
    class Card(Cpu):
        def memory_bytes(self):
            return 340_000_000  # and BERT-Large has 335 million parameters

    chosen = compose(["model=bert-large-uncased", "model.weights=random", "batch=64"])
    chosen = replace(chosen, device=Card(), input=compose([f"text={'word ' * 500}"]).input)
    with pytest.raises(
        OptionError, match=r"batch=64 is refused: batch takes at most \d here"
    ) as said:
        chosen.prepare()
    assert "cpu device's memory" in str(said.value)
    replace(chosen, settings=replace(chosen.settings, batch=1)).prepare()
    by_tokens = compose(["batching=token_budget", "batching.max_tokens=99999", "batch=64"])
    with pytest.raises(OptionError, match=r"max_tokens=\d+ is refused: .* at most \d+ here"):
        replace(chosen, batching=by_tokens.batching).prepare()


def test_it_happens_in_a_process_of_its_own_too(command):
    done = command(
        *("--config-dir", str(PLUGIN / "conf"), "device=small", "device.slots=20"),
        *(*QUICK, "batch=8", "isolation=process"),
        env=WITH_PLUGIN,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (metrics,) = command.metrics()
    assert (
        "did not fit; the largest that did had 4 sequences, 20 tokens"
        in metrics["error"]["message"]
    )
    assert "Lower batch to 4 or less" in metrics["error"]["remedy"]
    assert "Lower batch to 4 or less" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("said", "is_of_memory"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::536870912 (512)MB", True),
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9",
            True,
        ),
        ("CUDA error: an illegal memory access was encountered", False),
        ("The tensor has a non-zero number of elements, but its data is not allocated yet.", False),
    ],
)
def test_libraries_say_in_their_own_ways_that_memory_ran_out(said, is_of_memory):
    assert ran_out(RuntimeError(said)) is is_of_memory


def test_two_at_once_that_did_not_fit_are_said_to_be_that():
    """Seen to fail: of 12 sequences that the forward did not fit, and that the largest that did."""
    one = Attempt(Group(np.arange(12), 512), 6144)
    two = out_of_memory(MemoryError("No room"), one, one, batching=Padded(), in_flight=2)
    assert two.message.endswith("Up to 2 were under way at once.")
    assert two.remedy.startswith("Set device.in_flight=1")
    alone = out_of_memory(MemoryError("No room"), one, one, batching=Padded(), in_flight=1)
    assert "in_flight" not in f"{alone}"
