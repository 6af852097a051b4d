"""transformers on an accelerator, as a user would write it: the baseline of ``cuda.py``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from peer_engines import Engine, Files, Measure, Passes, Workload
from peer_pytorch import bert

from bert_infer.measuring.measure import without_garbage_collection

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from bert_infer.records import Tokens

BATCH = 64


def encode(
    model: Callable[..., Any], tokens: Tokens, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return every sequence's first state and pooled output in host memory, in input order.

    Longest first, each batch as wide as its longest. What a batch computes stays on the device
    until the end. Copies to it, and the model's look at whether the mask masks anything, wait for
    the device all the same. The other tokens' states are given up: ours brings all of them to host
    memory in the same time.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    with torch.inference_mode():
        order = torch.from_numpy(np.argsort(-tokens.lengths, kind="stable"))
        first_states, pooled = [], []
        for rows in torch.split(order, BATCH):
            texts = [torch.from_numpy(tokens[row]) for row in rows.tolist()]
            ids = pad_sequence(texts, batch_first=True).to(device)
            lengths = torch.tensor([len(text) for text in texts]).to(device)
            mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
            outputs = model(input_ids=ids, attention_mask=mask)
            first_states.append(outputs.last_hidden_state[:, 0].clone())
            pooled.append(outputs.pooler_output)
        back = order.argsort()
        return torch.cat(first_states).cpu()[back], torch.cat(pooled).cpu()[back]


@dataclass(frozen=True)
class OnCard(Engine):
    """Eager, with scaled_dot_product_attention."""

    label: str = f"transformers, eager SDPA, bf16, sorted, batch {BATCH}"

    dtypes: ClassVar[tuple[str, ...]] = ("bf16",)
    lacks: ClassVar[str] = "is measured in bf16 alone"

    def load(self, files: Files, dtype: str) -> Measure:
        """Load it."""
        import torch

        start = time.perf_counter()
        model = bert(files, dtype).to(files.device)
        load_s = time.perf_counter() - start
        is_cuda = files.device == "cuda"
        synchronize: Callable[[], None] = torch.cuda.synchronize if is_cuda else lambda: None

        def measure(workload: Workload, passes: Passes) -> dict[str, Any]:
            durations_s: list[float] = []

            def waited_for(**inputs: torch.Tensor) -> Any:  # noqa: ANN401  transformers'
                """Call the model between two synchronisations, as a forward of ours is timed."""
                synchronize()
                start = time.perf_counter()
                outputs = model(**inputs)
                synchronize()
                durations_s.append(time.perf_counter() - start)
                return outputs

            # They would cost throughput, where a batch is laid out while another is computed.
            forward = waited_for if workload.is_latency else model
            if is_cuda:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            latest = [encode(forward, workload.tokens, files.device)]
            warmup_s = time.perf_counter() - start
            with without_garbage_collection():
                for index in passes(lambda: list(latest[0][0])):
                    if index == 1:
                        durations_s.clear()
                    latest[0] = encode(forward, workload.tokens, files.device)
            p50 = float(np.median(durations_s)) * 1e3 if durations_s else None
            peak = torch.cuda.max_memory_allocated() if is_cuda else None
            return {
                "latency_ms": {"scope": "forward", "p50": p50},
                "memory": {"peak_device_bytes": peak},
                "phases_s": {"load": load_s, "compile": None, "warmup": warmup_s},
            }

        return measure
