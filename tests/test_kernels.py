"""Attention by our own Triton kernel, interpreted: nothing is compiled, and no GPU is needed.

In half precision: the interpreter has neither bfloat16 nor E4M3 arithmetic that can be trusted, nor
a card's own instructions. Kernels that need these are tested in test_cuda.py.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_infer.devices.cuda.attention import Blocked
from bert_infer.operators.attention import BySdpa

pytest.importorskip("triton", reason="there is no Triton, which the dev extra brings on Linux")
if "TRITON_INTERPRET" not in os.environ:
    pytest.skip("there is a GPU, where test_cuda.py tests them", allow_module_level=True)


def attended(qkv, ends):
    attend = Blocked()
    return attend(qkv, attend.bounds(qkv, ends))


def drawn(lengths, heads, head_dim, seed):
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(lengths), 3, heads, head_dim, generator=generator).half()
    return qkv, torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


LENGTHS = st.lists(st.sampled_from([0, 1, 2, 31, 32, 33, 63, 64, 65, 130]), min_size=1, max_size=5)


@settings(max_examples=15, deadline=None)
@given(LENGTHS.filter(any), st.sampled_from([1, 3]), st.sampled_from([16, 32, 64, 128]))
def test_attention_is_that_of_each_sequence_by_itself(lengths, heads, head_dim):
    qkv, ends = drawn(lengths, heads, head_dim, 0)
    expected = BySdpa()(qkv.float(), ends)
    torch.testing.assert_close(attended(qkv, ends).float(), expected, rtol=0, atol=4e-3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of NaN
@settings(max_examples=15, deadline=None)
@given(LENGTHS.filter(lambda lengths: sum(map(bool, lengths)) > 1), st.data())
def test_nothing_of_another_sequence_is_read(lengths, data):
    qkv, ends = drawn(lengths, 2, 16, 1)
    index = data.draw(st.sampled_from([i for i, length in enumerate(lengths) if length]))
    start, end = ends[index : index + 2].tolist()
    alone = attended(qkv[start:end], torch.tensor([0, end - start], dtype=torch.int32))
    broken = torch.full_like(qkv, torch.nan)
    broken[start:end] = qkv[start:end]
    assert torch.equal(attended(broken, ends)[start:end], alone)
