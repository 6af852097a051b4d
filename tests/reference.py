"""Outputs of transformers' BertModel, called directly, and choices that must all equal them."""

from __future__ import annotations

import torch

from bert_infer.tokens import load

BATCHINGS = [
    ["batching=padded", "batch=4"],
    ["batching=by_length", "batch=4"],
    ["batching=token_budget", "batching.max_tokens=1024"],
]
PACKED = ["batching=packed", "batching.max_tokens=1024", "engine=fused"]
OUTPUTS_ALONE = ["warmup=0", "drift.texts=0"]
"""Where nothing but outputs is looked at: half the time."""
EAGER = [*BATCHINGS, PACKED, *([*batching, "engine=fused"] for batching in BATCHINGS)]


def directly(bert, texts):
    """Hidden states and pooled output of each text, alone in its forward."""
    tokenizer = load(None, 30522).backend
    tokenizer.enable_truncation(512)
    with torch.inference_mode():
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text).ids])
            outputs = bert(input_ids=ids)
            yield outputs.last_hidden_state[0], outputs.pooler_output[0]


def largest_difference(result, reference):
    assert len(result.hidden_states) == len(result.pooled) == len(reference)
    return max(
        max((mine - theirs).abs().max(), (pooled - their_pooled).abs().max()).item()
        for mine, pooled, (theirs, their_pooled) in zip(
            result.hidden_states, result.pooled, reference, strict=True
        )
    )


def smallest_cosine(result, reference):
    """Of any token's states."""
    return min(
        torch.nn.functional.cosine_similarity(mine.float(), theirs, dim=-1).min().item()
        for mine, (theirs, _) in zip(result.hidden_states, reference, strict=True)
    )
