from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_infer import compose
from bert_infer.batching import ByLength, Packed, Padded, TokenBudget, best_fit
from bert_infer.batching.groups import Group
from bert_infer.batching.layouts import PackedBatch, PaddedBatch
from bert_infer.devices.cpu import Cpu
from bert_infer.errors import InputError, OptionError, RefusedError
from bert_infer.records import Tokens

EDGES = [32, 64, 96, 128, 192, 256, 384, 512]
LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=200).map(np.array)
BATCH = st.integers(1, 40)
WINDOW = st.integers(1, 60)
POLICIES = st.one_of(
    st.just(Padded()),
    st.builds(ByLength, edges=st.just(EDGES), window=WINDOW),
    st.builds(TokenBudget, max_tokens=st.integers(512, 4096), window=WINDOW),
    st.builds(Packed, max_tokens=st.integers(512, 4096), window=WINDOW),
)
LAYOUTS = st.sampled_from([PaddedBatch, PackedBatch])


@given(POLICIES, LENGTHS, BATCH)
def test_every_sequence_is_in_one_group_and_fits(policy, lengths, batch):
    groups = list(policy.plan(lengths, batch, 512))
    assert sorted(np.concatenate([g.sequences for g in groups])) == list(range(len(lengths)))
    assert all(lengths[g.sequences].max() <= g.width <= 512 for g in groups)


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [Group(np.array([0]), 8)],
        [Group(np.array([0, 1]), 8), Group(np.array([1]), 8)],
        [Group(np.array([0, 2]), 8)],
        [Group(np.array([0, 1]), 2)],
        [Group(np.array([0, 1]), 513)],
        [Group(np.array([0, 1]), 8), Group(np.array([], int), 8)],
        [Group(np.array([0.0, 1.0]), 8)],
        [Group(0, 8), Group(1, 8)],
    ],
    ids=["none", "lost", "twice", "beyond", "narrow", "wide", "empty", "floats", "numbers"],
)
def test_a_policy_of_ones_own_that_loses_or_repeats_sequences_is_refused(groups):
    """Seen to fail: throughput, and useful FLOP, of sequences that nobody had computed."""

    @dataclass(frozen=True)
    class Wrong(Padded):
        name = "wrong"

        def plan(self, *_):
            yield from groups

    runner = replace(compose(["model=tiny", "text=[one, two]"]), batching=Wrong())
    with pytest.raises(RefusedError, match="batching=wrong"):
        runner.prepare()


@pytest.mark.parametrize("policy", [TokenBudget(9, 10), Packed(9, 10)])
def test_a_budget_as_large_as_the_longest_sequence_holds_it(policy):
    assert policy.resolve(Cpu(), PaddedBatch, 9).budget == 9
    with pytest.raises(InputError, match="max_tokens=10 or more"):
        policy.resolve(Cpu(), PaddedBatch, 10)


@pytest.mark.parametrize(("lengths", "has_padding"), [([3, 3], False), ([3, 2], True)])
def test_a_batch_knows_whether_it_has_padding(lengths, has_padding):
    lengths = np.array(lengths)
    tokens = Tokens.of(np.arange(lengths.sum(), dtype=np.int32), lengths)
    (group,) = Padded().plan(lengths, 2, 8)
    assert PaddedBatch.of(group, tokens, 0).has_padding is has_padding
    assert PaddedBatch.shape_of(group, lengths).has_padding is has_padding


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
        laid_out = PaddedBatch.of(group, tokens, pad_token_id=0)
        assert laid_out.token_ids.shape == (len(group.sequences), group.width)
        for row, sequence in enumerate(group.sequences):
            length = lengths[sequence]
            assert (laid_out.token_ids[row, :length] == tokens[sequence]).all()
            assert (laid_out.token_ids[row, length:] == 0).all()
            assert laid_out.mask[row].sum() == length


@given(POLICIES, LENGTHS, BATCH)
def test_packing_gives_the_tokens_back_without_padding(policy, lengths, batch):
    tokens = ragged(lengths)
    for group in policy.plan(lengths, batch, 512):
        packed = PackedBatch.of(group, tokens, pad_token_id=0)
        assert packed.padded_tokens == packed.real_tokens == lengths[group.sequences].sum()
        for index, sequence in enumerate(group.sequences):
            own = packed.states(packed.token_ids, index)
            assert (own == tokens[sequence]).all()
            assert (packed.states(packed.positions, index) == np.arange(len(own))).all()


@given(LAYOUTS, POLICIES, LENGTHS, BATCH)
def test_shapes_are_those_of_the_batches(layout, policy, lengths, batch):
    groups = list(policy.plan(lengths, batch, 512))
    for group in groups:
        laid_out = layout.of(group, ragged(lengths), 0)
        shape = layout.shape_of(group, lengths)
        assert shape.slots == laid_out.padded_tokens
        assert shape.has_padding == (laid_out.padded_tokens > laid_out.real_tokens)


@given(LENGTHS, st.integers(512, 4096), WINDOW)
def test_packed_keeps_its_budget_and_opens_no_batch_in_vain(lengths, max_tokens, window):
    for start in range(0, len(lengths), window):
        part = lengths[start : start + window]
        groups = list(Packed(max_tokens, window).plan(part, 1, 512))
        sizes = [part[g.sequences].sum() for g in groups]
        assert max(sizes) <= max_tokens
        # Every batch's first, its longest, found no room in those before.
        for later in range(1, len(groups)):
            longest = part[groups[later].sequences[0]]
            assert all(size + longest > max_tokens for size in sizes[:later])


def test_best_fit_fills_the_tightest_room():
    lengths = np.array([6, 5, 4, 3, 2])
    assert best_fit(lengths, 10) == [[0, 2], [1, 3, 4]]


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(OptionError, match="edges"):
        ByLength([64, 32], 1)
    with pytest.raises(OptionError, match="window"):
        TokenBudget(1, 0)
    with pytest.raises(OptionError, match="Add 512"):
        ByLength([32], 1).check(512)
    for policy in (TokenBudget, Packed):
        with pytest.raises(InputError, match="max_tokens=17 or more"):
            policy(16, 1).resolve(Cpu(), PaddedBatch, 17)
        with pytest.raises(OptionError, match="max_tokens"):
            policy(0, 1)


@pytest.mark.parametrize("policy", [TokenBudget, Packed])
def test_a_budget_that_nobody_gave_is_the_devices_and_holds_the_longest_text(policy):
    """Seen to fail: the device's alone, by which a text of 3,000 tokens was refused."""

    def budget(asked, longest):
        return policy(asked, 1).resolve(Cpu(), PaddedBatch, longest).budget

    assert budget(None, 10) == 1024
    assert budget(None, 3000) == 3000
    assert budget(3001, 3000) == 3001
    with pytest.raises(ValueError, match="resolve"):
        list(policy(None, 1).plan(np.array([3]), 1, 512))


def ragged(lengths):
    return Tokens.of(np.arange(1, lengths.sum() + 1, dtype=np.int32), lengths)
