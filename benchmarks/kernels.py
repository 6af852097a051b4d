"""Our own kernels for NVIDIA GPUs, and what they replace, on BERT-Large's sizes.

    python benchmarks/kernels.py

Microseconds of a call among many that one CUDA graph replays: nothing is asked of the host in
between, and what a card's cache keeps from one call to the next stays there.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

import torch

from bert_infer import compose
from bert_infer.devices.cuda import Cuda, driver
from bert_infer.devices.cuda.attention import Blocked, Flash
from bert_infer.devices.cuda.linears import Fp8Gelu, Fp8GeluInside
from bert_infer.operators.fp8 import Fp8Linear

if TYPE_CHECKING:
    from collections.abc import Callable

DEVICE = "cuda"
HIDDEN, INTERMEDIATE, HEADS, LONGEST = 1024, 4096, 16, 512
TOKENS = 32_768
RAGGED = 200  # sequences of 165 tokens on average: about as many
FIXED_LENGTHS = (16, 32, 64, 128, 256, 384, 512)
ROWS = (128, 1024, 16_384, 33_792)


def microseconds(work: Callable[[], object]) -> str:
    """Return what a call takes, the mean of a graph full of them."""
    from triton.testing import do_bench_cudagraph

    return f"{do_bench_cudagraph(work) * 1e3:,.1f}"


def ragged() -> list[int]:
    """Return lengths as the runner's synthetic input draws them."""
    chosen = ["model=bert-large-uncased", "input=synthetic", f"input.texts={RAGGED}"]
    lengths: list[int] = compose(chosen).prepare().tokens.lengths.tolist()
    return lengths


def attention() -> None:
    """Print what softmax attention takes, by the lengths of sequences."""
    print("\n| sequences | tokens | flash attention, us | our blocks, us |\n|---|---|---|---|")
    inputs = {"ragged": ragged()} | {f"all of {n}": [n] * (TOKENS // n) for n in FIXED_LENGTHS}
    for name, lengths in inputs.items():
        ends = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)
        shape = (sum(lengths), 3, HEADS, HIDDEN // HEADS)
        qkv = torch.randn(shape, dtype=torch.bfloat16, device=DEVICE)
        took = []
        for attend in (Flash(LONGEST), Blocked()):
            bounds = attend.bounds(qkv, ends)
            took.append(microseconds(partial(attend, qkv, bounds)))
        print(f"| {name} | {sum(lengths):,} | {' | '.join(took)} |")


def gelu_and_codes() -> None:
    """Print what a layer's first feed-forward product, GELU and its codes take, by rows."""
    print(
        "\n| rows | product alone, us | GELU and codes by inductor | by a kernel | inside |"
        "\n|---|---|---|---|---|"
    )
    weight = torch.randn(INTERMEDIATE, HIDDEN, dtype=torch.bfloat16, device=DEVICE) * 0.03
    bias = torch.randn(INTERMEDIATE, dtype=torch.bfloat16, device=DEVICE)
    plain = Fp8Linear(weight, bias)
    by_kernel, inside = (make(weight, bias).gelu for make in (Fp8Gelu, Fp8GeluInside))
    for rows in ROWS:
        x = torch.randn(rows, HIDDEN, dtype=torch.bfloat16, device=DEVICE)
        operand = plain.operand(x)
        took = []
        for way in (plain, plain.gelu, by_kernel, inside):
            torch.compiler.reset()
            compiled = torch.compile(way, fullgraph=True, dynamic=False)
            took.append(microseconds(partial(compiled, operand)))
        print(f"| {rows:,} | {' | '.join(took)} |")


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    is_usable = driver.is_here() and torch.cuda.is_available()
    if not is_usable or Cuda().fp8_linear() is not Fp8GeluInside:
        parser.error("This takes a Hopper GPU that torch can use, Triton and a C compiler.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    with torch.inference_mode():
        attention()
        gelu_and_codes()


if __name__ == "__main__":
    main()
