"""What measuring costs: the loop's own time, beside the forward that it measures.

    python benchmarks/observer.py [MODEL ...]

The loop runs a forward that does nothing, on a batch of the model's; what is left is laying out,
copies and the observer. The same is done without clock, synchronisation and records. Their
difference a forward, over the median of real forwards, is the observer effect: "inside" is what
enters wall_ms and so throughput (below zero where a bare loop spends more between two forwards,
which no wall_ms counts), "in all" also what is done between two forwards.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import TYPE_CHECKING

import torch

from bert_infer import compose
from bert_infer.measuring.measure import measured_pass, without_garbage_collection

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.batching.layouts import Batch

ROUNDS, PASSES = 15, 400


def main(model: str) -> None:
    """Print a line for one model, on a prompt of 5 tokens."""
    runner = compose([f"model={model}", "model.weights=random", "iterations=20"])
    prepared = runner.prepare()
    forward_ms = runner.run().record["latency_ms"]["p50"]
    device = prepared.device
    ((_, group),) = prepared.shapes.items()
    done = (
        torch.zeros(1, group.width, prepared.architecture.hidden),
        torch.zeros(1, prepared.architecture.hidden),
    )

    def one_batch() -> list[tuple[Batch, tuple[NDArray[np.generic], ...]]]:
        pad_token_id = prepared.architecture.pad_token_id
        batch = runner.engine.layout.of(group, prepared.tokens, pad_token_id)
        return [(batch, runner.engine.inputs(batch, keep_mask=False))]

    def encode(*_: object) -> tuple[torch.Tensor, torch.Tensor]:
        return done

    def bare() -> float:
        start = time.perf_counter()
        for _ in range(PASSES):
            for _, inputs in one_batch():
                hidden_states, pooled = encode(*device.copy_in(inputs))
                hidden_states.cpu(), pooled.cpu()
        return (time.perf_counter() - start) / PASSES

    def observed() -> tuple[float, float]:
        forwards = []
        start = time.perf_counter()
        for index in range(PASSES):
            for measured, _, _ in measured_pass(index, (b for b in one_batch()), encode, device):
                forwards.append(measured)
        in_all = (time.perf_counter() - start) / PASSES
        return sum(forward.wall_s for forward in forwards) / PASSES, in_all

    inside, in_all = [], []
    with torch.inference_mode(), without_garbage_collection():
        for _ in range(ROUNDS):
            without = bare()
            wall, everything = observed()
            inside.append((wall - without) * 1e6)
            in_all.append((everything - without) * 1e6)
    print(
        f"{model:<20} forward {forward_ms:8.2f} ms"
        f"   inside {statistics.median(inside):6.1f} us, {_part(inside, forward_ms):.3%}"
        f"   in all {statistics.median(in_all):6.1f} us, {_part(in_all, forward_ms):.3%}"
    )


def _part(microseconds: list[float], forward_ms: float) -> float:
    return statistics.median(microseconds) / 1e3 / forward_ms


if __name__ == "__main__":
    for name in sys.argv[1:] or ["tiny", "minilm", "bert-large-uncased"]:
        main(name)
