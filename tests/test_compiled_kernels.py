"""Our Triton kernels compiled for cards that are not here, with the options they are launched with.

What a card computes with them is seen in test_cuda.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="there is no Triton, which the dev extra brings on Linux")

KIBIBYTES = {"8.0": 163, "8.9": 99, "9.0": 227, "10.0": 227, "12.0": 99}
"""Shared memory that a block may have, by compute capability (the CUDA C++ Programming Guide)."""

COMPILE = """
import json, sys
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bert_infer.devices.cuda import kernels


class Card:
    # Each capability is another device: Triton asks for its target once a device.
    def __init__(self, index, capability):
        self.index, (major, minor) = index, capability
        self.target = GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return self.index

    def get_current_stream(self, _device):
        return 0


def compiled(kernel, *arguments, **options):
    made[kernel.fn.__name__] = run(kernel, *arguments, **options | {"warmup": True}).metadata.shared


run, JITFunction.run = JITFunction.run, compiled
torch.cuda.get_device_properties = lambda _device: SimpleNamespace(multi_processor_count=132)
of_cards = {}
for index, name in enumerate(sys.argv[1:]):
    made = of_cards[name] = {}
    capability = tuple(map(int, name.split(".")))
    driver.set_active(Card(index, capability))
    ends = torch.tensor([0, 30, 70], dtype=torch.int32)
    kernels.attention(torch.zeros(70, 3, 16, 64).bfloat16(), kernels.blocks(ends, 70))
    if capability >= (8, 9):
        kernels.gelu_codes(torch.zeros(70, 4096).bfloat16())
    if capability == (9, 0):
        x, weight = (torch.zeros(rows, 1024).to(torch.float8_e4m3fn) for rows in (70, 4096))
        of_row, of_column = torch.ones(70, 1), torch.ones(4096, 1)
        product = kernels.product_gelu_codes._init_fn  # PyTorch calls it for tensors on a card
        product(x, of_row, weight, of_column, torch.zeros(4096).bfloat16(), of_row)
print(json.dumps(of_cards))
"""


def test_every_kernel_compiles_for_the_cards_that_get_it_and_fits_their_memory(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *KIBIBYTES],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    attention, codes = {"_number", "_attend"}, {"_gelu_codes"}
    assert {card: {*kernels} for card, kernels in made.items()} == {
        "8.0": attention,
        "8.9": attention | codes,
        "9.0": attention | codes | {"_product_gelu_codes"},
        "10.0": attention | codes,
        "12.0": attention | codes,
    }
    for card, kernels in made.items():
        assert max(kernels.values()) <= KIBIBYTES[card] * 1024
