import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_infer.batching import ByLength, Padded, TokenBudget, lay_out, shapes
from bert_infer.errors import InputError, OptionError
from bert_infer.records import Tokens

EDGES = [32, 64, 96, 128, 192, 256, 384, 512]
LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=200).map(np.array)
BATCH = st.integers(1, 40)
WINDOW = st.integers(1, 60)
POLICIES = st.one_of(
    st.just(Padded()),
    st.builds(ByLength, edges=st.just(EDGES), window=WINDOW),
    st.builds(TokenBudget, max_tokens=st.integers(512, 4096), window=WINDOW),
)


@given(POLICIES, LENGTHS, BATCH)
def test_every_sequence_is_in_one_group_and_fits(policy, lengths, batch):
    groups = list(policy.plan(lengths, batch, 512))
    assert sorted(np.concatenate([g.sequences for g in groups])) == list(range(len(lengths)))
    assert all(lengths[g.sequences].max() <= g.width <= 512 for g in groups)


@given(LENGTHS, BATCH)
def test_padded_keeps_input_order_and_has_one_width(lengths, batch):
    groups = list(Padded().plan(lengths, batch, 512))
    assert list(np.concatenate([g.sequences for g in groups])) == list(range(len(lengths)))
    assert {g.width for g in groups} == {lengths.max()}
    assert all(len(g.sequences) == batch for g in groups[:-1])


@given(LENGTHS, BATCH)
def test_by_length_makes_few_shapes(lengths, batch):
    groups = list(ByLength(EDGES, 16384).plan(lengths, batch, 512))
    assert {g.width for g in groups} <= set(EDGES)
    # One shape an edge, and one more for the rest that does not fill a batch.
    assert len({(len(g.sequences), g.width) for g in groups}) <= len(EDGES) + 1


def test_by_length_never_exceeds_what_the_model_takes():
    (group,) = ByLength([32, 64], 100).plan(np.array([40]), 1, limit=50)
    assert group.width == 50


@given(LENGTHS, st.integers(512, 4096), WINDOW)
def test_token_budget_is_kept_and_used(lengths, max_tokens, window):
    groups = list(TokenBudget(max_tokens, window).plan(lengths, 1, 512))
    assert all(len(g.sequences) * g.width <= max_tokens for g in groups)
    assert all(g.width == lengths[g.sequences].max() for g in groups)
    if window >= len(lengths):
        # No group could have taken its neighbour's first sequence as well.
        assert all((len(g.sequences) + 1) * g.width > max_tokens for g in groups[:-1])


@given(POLICIES, LENGTHS, BATCH)
def test_laying_out_gives_the_tokens_back(policy, lengths, batch):
    tokens = ragged(lengths)
    for group in policy.plan(lengths, batch, 512):
        laid_out = lay_out(group, tokens, pad_token_id=0)
        assert laid_out.token_ids.shape == (len(group.sequences), group.width)
        for row, sequence in enumerate(group.sequences):
            length = lengths[sequence]
            assert (laid_out.token_ids[row, :length] == tokens[sequence]).all()
            assert (laid_out.token_ids[row, length:] == 0).all()
            assert laid_out.mask[row].sum() == length


@given(POLICIES, LENGTHS, BATCH)
def test_shapes_are_those_of_the_batches(policy, lengths, batch):
    groups = list(policy.plan(lengths, batch, 512))
    found = {lay_out(g, ragged(lengths), 0).shape for g in groups}
    assert set(shapes(iter(groups), lengths)) == found


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(OptionError, match="edges"):
        ByLength([64, 32], 1)
    with pytest.raises(OptionError, match="window"):
        TokenBudget(1, 0)
    with pytest.raises(OptionError, match="Add 512"):
        ByLength([32], 1).check(512)
    with pytest.raises(InputError, match="max_tokens=17 or more"):
        TokenBudget(16, 1).check_lengths(np.array([3, 17]))


def ragged(lengths):
    ids = np.arange(1, lengths.sum() + 1, dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Tokens(ids, offsets, np.arange(len(lengths)), 0, 0, "")
