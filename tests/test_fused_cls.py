"""The fused engine for first tokens alone: they are as among the states of all tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import LENGTHS, check_isolation, check_order_and_neighbours, encoder
from reference import BATCHINGS, PACKED, largest_difference
from safetensors.torch import load_file

from bert_infer import compose
from bert_infer.engines.fused_cls import FusedCls
from bert_infer.errors import RefusedError

FIRSTS = ["model=minilm", "engine=fused_cls"]
PACKED_FIRSTS = [*FIRSTS, PACKED[0]]


def cosines(ours, theirs):
    return torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=-1)


@pytest.fixture(scope="module")
def encode():
    return encoder("device=cpu", engine=FusedCls())


@pytest.fixture(scope="module")
def firsts(minilm_reference):
    return [(states[:1], pooled) for states, pooled in minilm_reference]


@pytest.mark.parametrize("graph", ["eager", "compile"])
@pytest.mark.parametrize("batching", [*BATCHINGS, PACKED[:1]], ids=lambda b: b[0])
def test_first_tokens_equal_transformers(graph, batching, prose, firsts):
    """Seen to fail: the rows of sequences' last tokens; the last layer applied twice."""
    result = compose([*FIRSTS, "warmup=0", f"graph={graph}", *batching]).run(prose)
    assert [tuple(states.shape) for states in result.hidden_states] == [(1, 384)] * len(prose)
    assert largest_difference(result, firsts) <= 2e-5


@pytest.mark.parametrize("pooling", ["pooler", "cls"])
@pytest.mark.parametrize(("dtype", "least"), [("bf16", 0.9999), ("int8", 0.995)])
def test_what_is_pooled_is_what_all_tokens_would_give(dtype, least, pooling, prose):
    chosen = [f"dtype={dtype}", f"output.pooling={pooling}", "drift.texts=0"]
    ours = compose([*PACKED_FIRSTS, *chosen]).run(prose).pooled
    theirs = compose(["model=minilm", *PACKED, *chosen]).run(prose).pooled
    assert cosines(ours, theirs).min() >= least


@settings(max_examples=10, deadline=None)
@given(LENGTHS, st.integers(0, 99), st.randoms(use_true_random=False))
def test_order_and_neighbours_change_nothing_beyond_rounding(encode, lengths, seed, random):
    check_order_and_neighbours(encode, lengths, seed, random, 1e-5)


@settings(max_examples=10, deadline=None)
@given(LENGTHS.filter(lambda lengths: len(lengths) > 1), st.integers(0, 99), st.data())
def test_no_sequence_sees_anothers_tokens(encode, lengths, seed, data):
    check_isolation(encode, lengths, seed, data)


def test_drift_is_of_first_tokens_alone(prose, minilm_reference):
    """Seen to fail: the reference's states of all tokens, which no others are there to meet."""
    done = compose([*PACKED_FIRSTS, "dtype=bf16", f"drift.texts={len(prose)}"]).run(prose)
    of_texts = [
        cosines(mine[0], theirs[0]).item()
        for mine, (theirs, _) in zip(done.hidden_states, minilm_reference, strict=True)
    ]
    assert done.record["drift"]["min_cosine"] == pytest.approx(min(of_texts), abs=1e-6)
    assert done.record["drift"]["texts"] == len(prose)


def test_what_nobody_needs_is_no_part_of_the_rate(prose):
    """Of the last layer: two projections, the feed-forward network, and attention's products."""
    everything = compose(["model=minilm", *PACKED, "drift.texts=0"]).run(prose)
    record = compose([*PACKED_FIRSTS, "drift.texts=0"]).run(prose).record
    compute, workload = record["compute"], record["workload"]
    lengths = [len(states) for states in everything.hidden_states]
    by_hand = [2 * (n - 1) * (2 * 384**2 + 2 * 384 * 1536 + 2 * n * 384) for n in lengths]
    assert compute["unneeded_flop"] == sum(by_hand)
    per_s = record["throughput"]["sequences_per_s"] / workload["sequences"]
    computed = compute["useful_flop"] - compute["unneeded_flop"]
    assert compute["useful_flop_per_s"] == pytest.approx(computed * per_s)
    assert everything.record["compute"]["unneeded_flop"] == 0
    assert everything.record["compute"]["useful_flop"] == compute["useful_flop"], "the model's"


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        (["output.pooling=mean"], "output.pooling=mean takes every token's state"),
        (["output=files"], "output.save=hidden_states takes every token's state"),
        (["dtype=bf16_autocast"], "engine=fused_cls does not take dtype=bf16_autocast"),
    ],
)
def test_what_takes_every_token_is_refused(choices, says):
    with pytest.raises(RefusedError, match=says) as refused:
        compose([*FIRSTS, *choices]).prepare()
    assert "engine=" in refused.value.remedy


def test_pooled_outputs_are_saved_in_input_order(command, prose, minilm_reference):
    (command.directory / "texts.txt").write_text("\n".join(["", *prose]), "utf-8")
    texts = ["input=lines", "input.path=texts.txt", "output.save=pooled", "output.pooling=cls"]
    done = command(*PACKED_FIRSTS, *texts, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    saved = load_file(command.directory / "run" / "pooled.safetensors")
    assert saved["positions"].tolist() == list(range(1, len(prose) + 1))
    for row, (states, _) in zip(saved["pooled"], minilm_reference, strict=True):
        assert (row - states[0]).abs().max() <= 2e-5
