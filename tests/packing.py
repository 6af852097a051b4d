"""The fused engine given packed sequences, and what must hold of it on any device."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch
from hypothesis import strategies as st

from bert_infer import compose
from bert_infer.batching.groups import Group
from bert_infer.engines.fused import Fused
from bert_infer.measuring.measure import forward
from bert_infer.models import weights
from bert_infer.records import Tokens

LENGTHS = st.lists(
    st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 511, 512])), min_size=1, max_size=12
)


def encoder(*overrides, engine=Fused()):  # noqa: B008  frozen
    """Trained MiniLM, which takes packed sequences: each one's states, and pooled."""
    runner = compose(["model=minilm", *overrides])
    prepared = runner.prepare()
    device, dtype = prepared.device, runner.dtype
    loaded = weights.load(prepared.source, prepared.architecture)

    @contextmanager
    def active():
        with torch.inference_mode(), device.active(), dtype.active(device):
            yield

    with active():
        encode = device.fed(engine.load(prepared.architecture, loaded, dtype, device))

    def run(sequences):
        lengths = np.array([len(ids) for ids in sequences])
        tokens = Tokens.of(np.concatenate(sequences).astype(np.int32), lengths)
        batch = engine.layout.of(Group(np.arange(len(lengths)), 512), tokens, 0)
        with active():
            outputs = forward(encode, engine.inputs(batch, keep_mask=False), device)
        states = [batch.states(outputs.hidden_states, i) for i in range(len(lengths))]
        return states, outputs.pooled

    return run


def drawn(lengths, seed):
    random = np.random.default_rng(seed)
    return [random.integers(1000, 30000, length) for length in lengths]


def check_order_and_neighbours(encode, lengths, seed, random, tolerance):
    """Neither changes anything beyond rounding."""
    sequences = drawn(lengths, seed)
    order = list(range(len(lengths)))
    random.shuffle(order)
    states, pooled = encode(sequences)
    shuffled, shuffled_pooled = encode([sequences[i] for i in order])
    alone, alone_pooled = encode(sequences[:1])
    for place, original in enumerate(order):
        assert (shuffled[place] - states[original]).abs().max() < tolerance
        assert (shuffled_pooled[place] - pooled[original]).abs().max() < tolerance
    assert (alone[0] - states[0]).abs().max() < tolerance
    assert (alone_pooled[0] - pooled[0]).abs().max() < tolerance


def check_isolation(encode, lengths, seed, data):
    """A sequence's tokens change nothing of another's, to the last bit."""
    sequences = drawn(lengths, seed)
    changed = data.draw(st.integers(0, len(lengths) - 1))
    others = [*sequences]
    others[changed] = drawn(lengths, seed + 1)[changed]
    before, pooled = encode(sequences)
    after, pooled_after = encode(others)
    for index in range(len(lengths)):
        if index == changed:
            assert not torch.equal(before[index], after[index])
        else:
            assert torch.equal(before[index], after[index])
            assert torch.equal(pooled[index], pooled_after[index])
