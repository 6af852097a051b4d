"""Kernels of our own in Triton, where PyTorch's and inductor's take longer (benchmarks/notes.md).

A model's sizes are Triton's ``constexpr``, a batch's are not, so no batch is compiled for anew.
"""

from __future__ import annotations

import math

import torch
import triton
from triton import language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from bert_infer.operators.fp8 import LEAST, MOST

_LOG2_E = math.log2(math.e)
_QUERIES, _KEYS = 64, 32
_TILE_ROWS, _TILE_COLUMNS, _TILE_INPUTS, _TILE_ROWS_TOGETHER = 128, 256, 128, 8


def blocks(cu_seqlens: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return ``int32 [blocks, 3]``, where each block of queries lies, for ``attention``.

    A row has the first token of the block's sequence, that sequence's length, and the block's first
    query, counted from that token; a block whose first query is not below the length is empty.
    Blocks are numbered so that the host knows their number without reading a value: the i-th
    sequence, which begins at token s, has those from s // 64 + i on, as many as it fills or one
    more.

    Args:
        cu_seqlens: ``int32 [sequences + 1]``, of all ``tokens``.
        tokens: how many there are.
    """
    sequences = cu_seqlens.shape[0] - 1
    # Where sequences end before the tokens do, a block of zeros does nothing.
    found = cu_seqlens.new_zeros(tokens // _QUERIES + sequences, 3)
    _number[(sequences,)](cu_seqlens, found, rows=_QUERIES, num_warps=1)
    return found


def attention(qkv: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Return ``[tokens, hidden]``: softmax attention of each packed sequence to itself.

    Dao, 2023 (arXiv:2307.08691), in blocks that suit sequences of some hundred tokens.

    Args:
        qkv: ``[tokens, 3, heads, head_dim]``, contiguous, half precision; ``head_dim`` is a power
            of two from 16 on.
        blocks: see the function of that name.
    """
    tokens, _, heads, head_dim = qkv.shape
    out = qkv.new_empty(tokens, heads * head_dim)
    scale = _LOG2_E / math.sqrt(head_dim)
    _attend[(blocks.shape[0] * heads,)](
        qkv, blocks, out,
        scale=scale, heads=heads, head_dim=head_dim, rows=_QUERIES, columns=_KEYS,
        num_warps=4, num_stages=3,
    )  # fmt: skip
    return out


def gelu_codes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return GELU of ``x [rows, columns]`` as E4M3 codes and a scale ``float32 [rows, 1]``.

    GELU is by tanh (Hendrycks and Gimpel, 2016), in float32; codes as by ``operators.fp8.codes``.
    A row stays in registers from its GELU to its codes, so that it is read once.

    Args:
        x: contiguous.
    """
    rows, columns = x.shape
    codes = torch.empty_like(x, dtype=torch.float8_e4m3fn)
    scale = x.new_empty(rows, 1, dtype=torch.float32)
    block = triton.next_power_of_2(columns)
    _gelu_codes[(rows,)](x, codes, scale, columns, least=LEAST, most=MOST, block=block, num_warps=4)
    return codes, scale


@torch.library.custom_op("bert_infer::product_gelu_codes", mutates_args=(), device_types="cuda")
def product_gelu_codes(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
) -> torch.Tensor:
    """Return GELU of a product of E4M3 codes, as codes ``[rows, outputs]`` of a given scale.

    The product never leaves the chip. Hopper loads its tiles by descriptors, which the host makes
    for each call; a custom operator hides them from torch.compile, whose versions differ in their
    support for descriptors. A program computes one tile after the other, and loads the next while
    it finishes one.

    Args:
        x: ``[rows, inputs]``, contiguous; ``inputs`` and ``outputs`` are multiples of 16.
        x_scale: ``float32 [rows, 1]``.
        weight: ``[outputs, inputs]``, contiguous.
        weight_scale: ``float32 [outputs, 1]``.
        bias: ``[outputs]``.
        scale: ``float32 [rows, 1]``; values are clamped to 448 times it.
    """
    rows, inputs = x.shape
    outputs = len(weight)
    codes = x.new_empty(rows, outputs)
    tiles = triton.cdiv(rows, _TILE_ROWS) * triton.cdiv(outputs, _TILE_COLUMNS)
    programs = min(tiles, torch.cuda.get_device_properties(x.device).multi_processor_count)
    _product_gelu_codes[(programs,)](
        TensorDescriptor.from_tensor(x, [_TILE_ROWS, _TILE_INPUTS]),
        TensorDescriptor.from_tensor(weight, [_TILE_COLUMNS, _TILE_INPUTS]),
        TensorDescriptor.from_tensor(codes, [_TILE_ROWS, _TILE_COLUMNS]),
        x_scale, weight_scale, bias, scale, rows,
        inputs=inputs, outputs=outputs, tile_rows=_TILE_ROWS, tile_columns=_TILE_COLUMNS,
        tile_inputs=_TILE_INPUTS, rows_together=_TILE_ROWS_TOGETHER,
        num_warps=8, num_stages=3,
    )  # fmt: skip
    return codes


@product_gelu_codes.register_fake
def _empty(
    x: torch.Tensor, _scale: torch.Tensor, weight: torch.Tensor, *_: torch.Tensor
) -> torch.Tensor:
    # Not len(), which would specialise a symbolic size: each would be compiled for anew.
    return x.new_empty(x.shape[0], weight.shape[0])


@triton.jit
def _number(cu_seqlens, blocks, rows: tl.constexpr):
    sequence = tl.program_id(0)
    start, end = tl.load(cu_seqlens + sequence), tl.load(cu_seqlens + sequence + 1)
    first = start // rows + sequence
    for block in range(first, end // rows + sequence + 1):
        tl.store(blocks + 3 * block, start)
        tl.store(blocks + 3 * block + 1, end - start)
        tl.store(blocks + 3 * block + 2, (block - first) * rows)


@triton.jit
def _attend(
    qkv, blocks, out,
    scale: tl.constexpr, heads: tl.constexpr, head_dim: tl.constexpr,
    rows: tl.constexpr, columns: tl.constexpr,
):  # fmt: skip
    """Take a block of queries of one head past all keys of its sequence, ``columns`` at a time.

    Nothing but that sequence is read.
    """
    # Heads of a block follow each other: what they read of a token lies side by side.
    head, block = tl.program_id(0) % heads, blocks + 3 * (tl.program_id(0) // heads)
    start, length, first = tl.load(block), tl.load(block + 1), tl.load(block + 2)
    if first < length:
        hidden: tl.constexpr = heads * head_dim
        number = tl.arange(0, head_dim)[None, :]
        query = first + tl.arange(0, rows)[:, None]
        of_head = qkv + start.to(tl.int64) * (3 * hidden) + head * head_dim + number
        q = tl.load(of_head + query * (3 * hidden), mask=query < length, other=0.0)
        largest = tl.full([rows], float("-inf"), tl.float32)
        total = tl.zeros([rows], tl.float32)
        sums = tl.zeros([rows, head_dim], tl.float32)
        full = length // columns * columns
        for passed in range(0, full, columns):
            key = passed + tl.arange(0, columns)[:, None]
            of_keys = of_head + key * (3 * hidden)
            k, v = tl.load(of_keys + hidden), tl.load(of_keys + 2 * hidden)
            scores = tl.dot(q, k.T)
            largest, total, sums = _weighed(scores, v, largest, total, sums, scale)
        if full < length:
            key = full + tl.arange(0, columns)[:, None]
            of_keys = of_head + key * (3 * hidden)
            is_there = key < length
            k = tl.load(of_keys + hidden, mask=is_there, other=0.0)
            v = tl.load(of_keys + 2 * hidden, mask=is_there, other=0.0)
            scores = tl.where(is_there.T, tl.dot(q, k.T), float("-inf"))
            largest, total, sums = _weighed(scores, v, largest, total, sums, scale)
        where = (start.to(tl.int64) + query) * hidden + head * head_dim + number
        share = (1 / total)[:, None]  # a division for each row, not for each of its numbers
        tl.store(out + where, (sums * share).to(q.dtype), mask=query < length)


@triton.jit
def _weighed(scores, v, largest, total, sums, scale: tl.constexpr):
    """Add values ``v``, weighted by the softmax of ``scores``, to those of the columns before."""
    now = tl.maximum(largest, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - now[:, None])
    shrunk = tl.exp2(largest - now)
    total = total * shrunk + tl.sum(weights, 1)
    return now, total, tl.dot(weights.to(v.dtype), v, sums * shrunk[:, None])


@triton.jit
def _gelu(x):
    """GELU by the card's own tanh, ``x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2``."""
    tanh = tl.inline_asm_elementwise(
        "tanh.approx.f32 $0, $1;", "=f,f", [x * (0.7978845608 + 0.0356774081 * (x * x))],
        dtype=tl.float32, is_pure=True, pack=1,
    )  # fmt: skip
    half = 0.5 * x
    return half * tanh + half


@triton.jit
def _gelu_codes(
    x, codes, scale, columns,
    least: tl.constexpr, most: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0), tl.arange(0, block)
    where = row.to(tl.int64) * columns + column
    y = _gelu(tl.load(x + where, mask=column < columns, other=0.0).to(tl.float32))
    largest = tl.maximum(tl.max(tl.abs(y), 0), least)
    tl.store(codes + where, (y * (most / largest)).to(tl.float8e4nv), mask=column < columns)
    tl.store(scale + row, largest / most)


@triton.jit
def _product_gelu_codes(
    x, weight, codes, x_scale, weight_scale, bias, scale, rows,
    inputs: tl.constexpr, outputs: tl.constexpr,
    tile_rows: tl.constexpr, tile_columns: tl.constexpr, tile_inputs: tl.constexpr,
    rows_together: tl.constexpr,
):  # fmt: skip
    """Compute this program's tiles, in bands of ``rows_together`` rows of tiles for the cache."""
    down = tl.cdiv(rows, tile_rows)
    across: tl.constexpr = (outputs + tile_columns - 1) // tile_columns
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        band = tile // (rows_together * across)
        height = min(down - band * rows_together, rows_together)
        place = tile % (rows_together * across)
        top = (band * rows_together + place % height) * tile_rows
        left = place // height * tile_columns
        sums = tl.zeros((tile_rows, tile_columns), tl.float32)
        for begin in range(0, inputs, tile_inputs):
            sums = tl.dot(x.load([top, begin]), weight.load([left, begin]).T, sums)
        row, column = top + tl.arange(0, tile_rows), left + tl.arange(0, tile_columns)
        of_row = tl.load(x_scale + row, mask=row < rows, other=0.0)
        of_column = tl.load(weight_scale + column, mask=column < outputs, other=0.0)
        of_bias = tl.load(bias + column, mask=column < outputs, other=0.0).to(tl.float32)
        of_codes = tl.load(scale + row, mask=row < rows, other=1.0)
        y = sums * of_row[:, None] * of_column[None, :] + of_bias[None, :]
        codes.store([top, left], (_gelu(y) * (1 / of_codes)[:, None]).to(tl.float8e4nv))
