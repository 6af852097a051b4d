"""Buckets: few shapes, nothing lost, and what fills up changes no output."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from test_metrics import ARCHITECTURE

from bert_infer import compose
from bert_infer.batching import ByLength, Packed, Padded, TokenBudget
from bert_infer.batching.groups import Group
from bert_infer.batching.layouts import PackedBatch, PaddedBatch
from bert_infer.errors import RefusedError
from bert_infer.graphs import Work
from bert_infer.graphs.buckets import Buckets
from bert_infer.graphs.cuda_graphs import CudaGraphs
from bert_infer.graphs.hpu_graphs import HpuGraphs
from bert_infer.models.architecture import Architecture
from bert_infer.records import Tokens

LENGTHS = st.lists(st.integers(2, 64), min_size=1, max_size=60).map(np.array)
POLICIES = st.sampled_from(
    [Padded(), ByLength([8, 32, 64], 100), TokenBudget(128, 100), Packed(128, 100)]
)
LAYOUTS = st.sampled_from([PaddedBatch, PackedBatch])


def buckets_of(graph, groups, lengths, layout, limit):
    """The buckets of a model that takes ``limit`` tokens."""
    model = Architecture({**ARCHITECTURE.config, "max_position_embeddings": limit})
    same, found = graph.settled(Work(groups, lengths, Padded(), layout, model))
    assert same is graph
    return found


def tokens_of(lengths):
    return Tokens.of(np.arange(1, lengths.sum() + 1, dtype=np.int32), lengths)


@given(LENGTHS, POLICIES, LAYOUTS, st.integers(1, 8), st.sampled_from([(), (16, 64)]))
def test_every_batch_of_a_bucket_has_one_shape_and_its_own_sequences(
    lengths, policy, layout, batch, edges
):
    # No engine lays packed groups out in rows.
    assume(not (policy.layout is PackedBatch and layout is PaddedBatch))
    tokens = tokens_of(lengths)
    groups = list(policy.plan(lengths, batch, 64))
    found = Buckets.of(groups, lengths, layout, edges)
    shapes = set()
    for group in groups:
        filled = found.fill(group, lengths)
        laid_out = layout.of(filled, tokens, pad_token_id=0)
        shape = layout.shape_of(filled, lengths)
        shapes.add((shape.sequences, shape.slots))
        assert laid_out.token_ids.size == shape.slots
        assert laid_out.real_tokens == lengths[group.sequences].sum()
        for index, sequence in enumerate(group.sequences):
            assert laid_out.states(laid_out.token_ids, index).tolist() == tokens[sequence].tolist()
    assert len(shapes) <= len(found)
    if edges and layout is PaddedBatch:
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
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 8]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 0, 0, 0]


@given(LENGTHS, POLICIES, st.integers(1, 8), st.integers(1, 5), st.booleans())
def test_what_fills_a_packed_batch_up_touches_no_real_token(lengths, policy, batch, most, asked):
    """Seen to fail: all that fills up as one sequence; one row too few for it."""
    tokens = tokens_of(lengths)
    groups = list(policy.plan(lengths, batch, 64))
    graph = CudaGraphs([64, 10_000] if asked else [], max_buckets=2 if asked else most)
    found = buckets_of(graph, groups, lengths, PackedBatch, 64)
    assert len(found) <= graph.max_buckets
    shapes = set()
    for group in groups:
        laid_out = PackedBatch.of(found.fill(group, lengths), tokens, pad_token_id=0)
        ends, count = laid_out.cu_seqlens, len(group.sequences)
        shapes.add((len(ends), laid_out.token_ids.size, laid_out.width))
        assert len(ends) == laid_out.rows + 1
        assert ends[0] == 0
        assert ends[-1] == laid_out.token_ids.size, "each token belongs to a sequence"
        steps = np.diff(ends)
        assert steps.min() >= 0
        assert steps.max() <= laid_out.width <= lengths.max()
        # Real sequences first, each by itself; then nothing but what fills up.
        assert steps[:count].tolist() == lengths[group.sequences].tolist()
        assert (laid_out.token_ids[: ends[count]] > 0).all()
        assert not laid_out.token_ids[ends[count] :].any()
    assert len(shapes) == len(found), "and one shape a bucket"


def test_a_packed_bucket_has_no_more_rows_than_it_needs():
    """One of its forwards has three sequences, the other one, and 17 tokens to be filled with."""
    lengths = np.array([10, 10, 7, 10])
    groups = [Group(np.array([0, 1, 2]), 10), Group(np.array([3]), 10)]
    size = PackedBatch.size_of(32, groups, lengths)
    assert (size.width, size.slots, size.rows) == (10, 27, 3)
    assert PackedBatch.size_of(32, groups[::-1], np.array([4, 4, 4, 5])).rows == 3
    assert PackedBatch.size_of(32, groups, np.array([10, 10, 10, 7])).rows == 4


def test_full_forwards_share_a_bucket_and_the_last_is_not_filled_up_to_theirs():
    """Seen to fail: a bucket by width, which is one for all packed forwards."""
    lengths = np.full(100, 10)
    groups = list(Packed(160, 1000).plan(lengths, 1, 64))
    found = buckets_of(CudaGraphs(), groups, lengths, PackedBatch, 64)
    filled = [found.fill(group, lengths) for group in groups]
    assert [group.slots for group in filled] == [160] * 6 + [40]


@given(LENGTHS, st.integers(1, 6))
def test_edges_that_fit_hold_every_width_and_are_not_too_many(lengths, most):
    groups = list(TokenBudget(64, 100).plan(lengths, 1, 64))
    edges = PaddedBatch.fitting_edges(groups, lengths, most, limit=64)
    assert edges == sorted(set(edges))
    assert len(edges) <= most
    assert lengths.max() <= edges[-1] <= 64


@given(LENGTHS, POLICIES, st.integers(1, 8), st.integers(1, 6))
def test_even_edges_hold_every_forward_and_are_not_too_many(lengths, policy, batch, most):
    groups = list(policy.plan(lengths, batch, 64))
    edges = PackedBatch.fitting_edges(groups, lengths, most, limit=64)
    assert edges == sorted(set(edges))
    assert len(edges) <= most
    assert edges[-1] == max(lengths[group.sequences].sum() for group in groups)


@pytest.mark.parametrize(
    ("policy", "lengths"),
    [
        (TokenBudget(64, 100), np.arange(2, 60)),
        # Seen to fail: edges by the texts' lengths, none of which is as wide as a batch of them.
        (ByLength([32, 64, 128, 384], 100), np.array([20] * 8 + [60] * 8 + [90, 100, 300, 300])),
    ],
)
def test_too_many_widths_are_refused_and_the_edges_advised_are_taken(policy, lengths):
    groups = list(policy.plan(lengths, 2, 512))
    with pytest.raises(RefusedError) as refused:
        buckets_of(HpuGraphs(max_buckets=2), groups, lengths, PaddedBatch, 512)
    assert "graph.max_buckets=2" in str(refused.value)
    edges = str(refused.value).partition("graph.edges=[")[2].partition("]")[0]
    graph = HpuGraphs([int(edge) for edge in edges.split(",")], max_buckets=2)
    assert len(buckets_of(graph, groups, lengths, PaddedBatch, 512)) == 2


def test_token_counts_are_refused_only_where_edges_were_asked_for():
    lengths = np.arange(2, 60)
    policy = TokenBudget(64, 100)
    groups = list(policy.plan(lengths, 1, 64))
    assert len(buckets_of(HpuGraphs(max_buckets=2), groups, lengths, PackedBatch, 64)) == 2
    with pytest.raises(RefusedError, match=r"(?s)token counts.*graph.edges=\[32,63\]"):
        buckets_of(HpuGraphs([1], max_buckets=2), groups, lengths, PackedBatch, 64)


def test_edges_beyond_what_the_model_takes_end_there():
    lengths = np.array([60])
    groups = list(Padded().plan(lengths, 1, 64))
    found = buckets_of(HpuGraphs([512]), groups, lengths, PaddedBatch, 64)
    assert found.fill(groups[0], lengths).width == 64


def test_without_buckets_groups_stay_as_they_are():
    prepared = compose(["model=tiny", "device=cpu"]).prepare()
    assert len(prepared.buckets) == 0
    (group,) = prepared.shapes.values()
    assert prepared.buckets.fill(group, prepared.tokens.lengths) is group
