"""A run's trace by PyTorch's profiler."""

from __future__ import annotations

import json

from bert_infer import compose
from bert_infer.processes import worker


def test_a_trace_is_left_of_one_more_pass_that_is_not_measured(tmp_path):
    for name, asked in (("with", "true"), ("without", "false")):
        (tmp_path / name).mkdir()
        finished = worker.carry_out(
            lambda asked=asked: compose(
                ["model=tiny", "device=cpu", "iterations=2", f"profile={asked}"]
            ),
            tmp_path / name,
        )
        assert finished.metrics["latency_ms"]["samples"] == 2
    assert not (tmp_path / "without" / "trace.json").exists()
    events = json.loads((tmp_path / "with" / "trace.json").read_text())["traceEvents"]
    products = [event for event in events if event.get("name") == "aten::addmm"]
    assert len(products) == 13  # six in each of two layers, and the pooler's: one pass
