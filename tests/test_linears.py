"""Every way of multiplying multiplies, and what does not work here is not used."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional

from bert_infer import compose
from bert_infer.devices import cpu
from bert_infer.devices.cpu import Cpu
from bert_infer.dtypes import Fp32, Int8
from bert_infer.errors import RefusedError
from bert_infer.measuring import ceiling
from bert_infer.operators import attention, int8, linears
from bert_infer.operators.int8 import Int8Linear
from bert_infer.running.execution import execute

FLOATS = [torch.float32, torch.bfloat16]


def forget():
    """Have everything tried anew that is tried once a process."""
    for tried in (linears.can_pack, linears.multiplies_int8_exactly, ceiling.search):
        tried.cache_clear()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("make", [linears.Plain, linears.OneDnnPacked])
@pytest.mark.parametrize("rows", [1, 7])
def test_a_linear_multiplies_adds_and_activates(make, dtype, rows):
    if make is linears.OneDnnPacked and not linears.can_pack(dtype):
        assert make not in Cpu().linears(dtype)
        return
    x, weight, bias, residual = (
        torch.randn(*shape).to(dtype) for shape in ((rows, 16), (5, 16), (5,), (rows, 5))
    )
    linear, near = make(weight, bias), {"rtol": 2e-2, "atol": 8e-2}
    expected = functional.linear(x.float(), weight.float(), bias.float())
    torch.testing.assert_close(linear(x).float(), expected, **near)
    torch.testing.assert_close(linear.gelu(x).float(), functional.gelu(expected), **near)
    together = linear.plus(x, residual).float()
    torch.testing.assert_close(together, expected + residual.float(), **near)
    without = make(weight, None)(x).float()
    torch.testing.assert_close(without, x.float() @ weight.float().T, **near)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_one_compilation_of_packed_weights_serves_every_number_of_rows(dtype):
    """Seen to fail: a kernel's result whose rows were counted as a number, not as a symbol."""
    many_sizes = ["input=synthetic", "input.texts=30", "batching=packed", "batching.max_tokens=400"]
    chosen = ["model=tiny", "engine=fused", "graph=compile", f"dtype={dtype}", *many_sizes]
    runner = compose([*chosen, "drift.texts=0", "warmup=0", "iterations=1"])
    prepared, before = runner.prepare(), counters["stats"]["unique_graphs"]
    assert len(prepared.shapes) > 8
    execute(prepared, runner.new_record())
    assert counters["stats"]["unique_graphs"] - before <= 2
    torch.compiler.reset()


def test_where_packing_does_not_work_plain_linears_compute_the_same(monkeypatch):
    def absent(*_):
        raise NotImplementedError

    choices, texts = ["model=minilm", "engine=fused"], ["One text.", "And another one."]
    packed = compose(choices).run(texts)
    with monkeypatch.context() as patched:
        patched.setattr(linears.OneDnnPacked, "__init__", absent)
        forget()
        assert Cpu().linears(torch.float32) == (linears.Plain,)
        plain = compose(choices).run(texts)
    forget()
    torch.testing.assert_close(plain.pooled, packed.pooled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (5, 16), (33, 65), (64, 1024)])
@pytest.mark.parametrize("rows", [1, 17, 1500])
def test_sums_of_codes_are_exact_at_their_largest(shape, rows):
    """Without care, pairs of products overflow 16 bits on processors without VNNI."""
    weight = torch.randn(*shape).sign() * (1 + torch.rand(*shape) / 10)
    codes, scale = int8.codes(weight)
    assert codes.abs().max() >= 63
    x = torch.full((rows, shape[1]), 255, dtype=torch.uint8)
    found = linears.OneDnnInt8(codes, None)(x)
    assert torch.equal(found.double(), x.double() @ codes.double().T)
    largest = (weight / scale[:, None] - codes).abs().max()
    assert largest <= 0.5 + 1e-5  # rounding alone


@pytest.mark.parametrize("inputs", [1, 6, 7])
@pytest.mark.parametrize("adds_in_32_bits", [True, False])
def test_codes_are_as_large_as_a_processor_adds_them_up(monkeypatch, inputs, adds_in_32_bits):
    """Mutations of this had survived: the processor of the tests adds in 32 bits."""
    monkeypatch.setattr(int8, "_adds_in_32_bits", lambda: adds_in_32_bits)
    codes, scale = int8.codes(torch.randn(64, inputs))
    of_pairs = functional.pad(codes.abs().int(), (0, inputs % 2)).view(64, -1, 2).sum(2)
    if adds_in_32_bits:
        assert (codes.abs().amax(1) == 127).all()
    else:
        assert of_pairs.max() <= 128
        assert (of_pairs.amax(1) >= 126).all()
    assert scale.shape == (64,)


@pytest.mark.parametrize("rows", [0, 1, 5, 2500])
def test_quantised_rows_are_near_and_do_not_depend_on_each_other(rows):
    weight, bias = torch.randn(48, 64), torch.randn(48)
    x = torch.randn(rows, 64) * torch.rand(rows, 1) * 100  # of very different scales
    linear = Int8Linear(weight, bias)
    found, expected = linear(x), functional.linear(x, weight, bias)
    assert found.shape == expected.shape
    if rows:
        error = (found - expected).norm(dim=1) / (expected - bias).norm(dim=1)
        assert error.max() < 0.03
        assert torch.equal(linear(x[:1]), found[:1])


@pytest.mark.parametrize("inputs", [1, 2, 3, 78, 80])
@pytest.mark.parametrize("rows", [1, 2, 1025])
def test_rows_of_any_width_are_quantised(rows, inputs):
    """Seen to fail: a single row of 78, whose scale lies at no multiple of 4 bytes."""
    weight, x = torch.randn(16, inputs), torch.randn(rows, inputs)
    found, expected = Int8Linear(weight, None)(x), x @ weight.T
    assert (found - expected).norm() < 0.03 * expected.norm()


def test_a_row_of_zeros_gives_the_bias_and_one_that_is_no_number_gives_none():
    weight, bias = torch.randn(3, 8), torch.randn(3)
    linear = Int8Linear(weight, bias)
    assert torch.equal(linear(torch.zeros(2, 8)), bias.expand(2, 3))
    broken = linear(torch.full((1, 8), torch.nan))
    assert not broken.isfinite().any()


def test_int8_is_refused_where_sums_are_wrong(monkeypatch):
    monkeypatch.setattr(cpu, "cpu_flags", frozenset)
    with pytest.raises(RefusedError, match="dtype=int8"):
        compose(["model=tiny", "engine=fused", "dtype=int8"]).prepare()
    monkeypatch.setattr(
        linears.OneDnnInt8, "__call__", lambda _self, x: x.float().cumsum(1)[:, :33]
    )
    linears.multiplies_int8_exactly.cache_clear()
    with pytest.raises(RefusedError, match="wrong sums"):
        Int8().linear(Cpu())
    linears.multiplies_int8_exactly.cache_clear()


def test_int8_is_refused_where_pytorch_cannot_code_rows(monkeypatch):
    def lacking(_x):
        raise AttributeError

    monkeypatch.setattr(int8, "codes_of_rows", lacking)
    linears.multiplies_int8_exactly.cache_clear()
    with pytest.raises(RefusedError) as refused:
        Int8().linear(Cpu())
    linears.multiplies_int8_exactly.cache_clear()
    assert "another version of torch" in refused.value.remedy


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "attend",
    [
        attention.ByMatmul(),
        attention.BySdpa(),
        attention.ByCopyAndMatmul(torch.bfloat16),
        attention.BySdpaIn(torch.bfloat16),
    ],
    ids=lambda attend: type(attend).__name__,
)
def test_every_way_of_attending_attends_to_ones_own_sequence(attend, dtype):
    """The last two in bfloat16, whatever they are given, for more than a few tokens."""
    lengths, heads, head_dim = [3, 1, 47], 2, 8
    qkv = torch.randn(sum(lengths), 3, heads, head_dim).to(dtype)
    cu_seqlens = torch.tensor([0, 3, 4, 51], dtype=torch.int32)
    found = attend(qkv, cu_seqlens)
    assert found.dtype is dtype
    for own, mine in zip(qkv.split(lengths), found.split(lengths), strict=True):
        q, k, v = own.float().permute(1, 2, 0, 3)
        expected = torch.softmax(q @ k.mT / head_dim**0.5, -1) @ v
        expected = expected.transpose(0, 1).reshape(len(own), heads * head_dim)
        torch.testing.assert_close(mine.float(), expected, rtol=2e-2, atol=2e-2)


def test_the_best_way_comes_first():
    assert Fp32().linear(Cpu()) is Cpu().linears(torch.float32)[0]
    assert Cpu().linears(torch.float32)[-1] is linears.Plain
