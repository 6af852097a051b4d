"""Buckets: few shapes, nothing lost, and what fills up changes no output."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bert_infer import buckets, compose
from bert_infer.batching import ByLength, Packed, Padded, TokenBudget
from bert_infer.errors import RefusedError
from bert_infer.graphs.hpu_graphs import HpuGraphs
from bert_infer.layouts import PackedBatch, PaddedBatch
from bert_infer.records import Tokens

LENGTHS = st.lists(st.integers(2, 64), min_size=1, max_size=60).map(np.array)
POLICIES = st.sampled_from(
    [Padded(), ByLength([8, 32, 64], 100), TokenBudget(128, 100), Packed(128, 100)]
)
LAYOUTS = st.sampled_from([PaddedBatch, PackedBatch])


def tokens_of(lengths):
    ids = np.arange(1, lengths.sum() + 1, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(ids, offsets, np.arange(len(lengths)), 0, 0, "")


@given(LENGTHS, POLICIES, LAYOUTS, st.integers(1, 8), st.sampled_from([(), (16, 64)]))
def test_every_batch_of_a_bucket_has_one_shape_and_its_own_sequences(
    lengths, policy, layout, batch, edges
):
    # No engine lays packed groups out in rows.
    assume(not (policy.layout is PackedBatch and layout is PaddedBatch))
    tokens = tokens_of(lengths)
    groups = list(policy.plan(lengths, batch, 64))
    found = buckets.of(groups, lengths, layout, edges)
    shapes = set()
    for group in groups:
        filled = found.fill(group)
        laid_out = layout.of(filled, tokens, pad_token_id=0)
        shape = layout.shape_of(filled, lengths)
        shapes.add((shape.sequences, shape.slots))
        assert laid_out.token_ids.size == shape.slots
        assert laid_out.real_tokens == lengths[group.sequences].sum()
        for index, sequence in enumerate(group.sequences):
            assert laid_out.states(laid_out.token_ids, index).tolist() == tokens[sequence].tolist()
    assert len(shapes) <= len(found)
    if edges and policy.layout is PaddedBatch:
        assert len(found) <= len(edges)


def test_rows_that_fill_up_attend_to_their_first_token():
    tokens = tokens_of(np.array([3, 2]))
    (group,) = Padded().plan(tokens.lengths, 2, 64)
    batch = PaddedBatch.of(group._replace(rows=3), tokens, pad_token_id=0)
    assert batch.token_ids.tolist() == [[1, 2, 3], [4, 5, 0], [0, 0, 0]]
    assert batch.mask.tolist() == [[True] * 3, [True, True, False], [True, False, False]]


def test_tokens_that_fill_up_are_a_sequence_of_their_own():
    tokens = tokens_of(np.array([3, 2]))
    (group,) = Packed(9, 10).plan(tokens.lengths, 1, 64)
    batch = PackedBatch.of(group._replace(rows=3, slots=8), tokens, pad_token_id=0)
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 8, 8]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 0, 0, 0]


@given(LENGTHS, st.integers(1, 6))
def test_edges_that_fit_hold_every_length_and_are_not_too_many(lengths, most):
    edges = buckets.fitting_edges(lengths, most, limit=64)
    assert edges == sorted(set(edges))
    assert len(edges) <= most
    assert lengths.max() <= edges[-1] <= 64


def test_too_many_widths_are_refused_and_the_edges_advised_are_taken():
    lengths = np.arange(2, 60)
    policy = TokenBudget(64, 100)
    groups = list(policy.plan(lengths, 1, 64))
    with pytest.raises(RefusedError) as refused:
        HpuGraphs(max_buckets=2).buckets(groups, lengths, policy, PaddedBatch, 64)
    assert "graph.max_buckets=2" in str(refused.value)
    edges = str(refused.value).partition("graph.edges=[")[2].partition("]")[0]
    graph = HpuGraphs([int(edge) for edge in edges.split(",")], max_buckets=2)
    assert len(graph.buckets(groups, lengths, policy, PaddedBatch, 64)) == 2


def test_edges_beyond_what_the_model_takes_end_there():
    lengths = np.array([60])
    groups = list(Padded().plan(lengths, 1, 64))
    found = HpuGraphs([512]).buckets(groups, lengths, Padded(), PaddedBatch, 64)
    assert found.fill(groups[0]).width == 64


def test_without_buckets_groups_stay_as_they_are():
    prepared = compose(["model=tiny", "device=cpu"]).prepare()
    assert len(prepared.buckets) == 0
    (group,) = prepared.groups.values()
    assert prepared.buckets.fill(group) is group
