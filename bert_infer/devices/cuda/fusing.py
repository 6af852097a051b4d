"""Embeddings and layers compiled by inductor: what lies between matmuls becomes few Triton kernels.

Adding a residual, LayerNorm and quantising to 8 bits become one; kernels of our own (``kernels``)
are called as they are. One compilation serves all layers: dynamo requires a layer of the same kind,
not the same layer.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from typing import TYPE_CHECKING

from bert_infer import machine

if TYPE_CHECKING:
    from bert_infer.devices import Function


OLDEST = (7, 0)
"""The least compute capability that inductor compiles for."""


def is_possible() -> bool:
    """Tell whether this machine has Triton, the C compiler that it takes, and Python's headers."""
    chosen = os.environ.get("CC")
    compilers = ("gcc", "clang") if chosen is None else (chosen,)
    has_triton = find_spec("triton") is not None
    return has_triton and any(map(shutil.which, compilers)) and machine.python_header().is_file()


def compiled(function: Function) -> Function:
    """Return ``function``, compiled when it is called: first for that shape, later for any.

    It is compiled as one graph: what does not fit in one is an error, rather than slow.
    """
    import torch

    # Compilations of earlier runs in this process would count towards dynamo's limit.
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True)  # type: ignore[return-value]  # of the same type
