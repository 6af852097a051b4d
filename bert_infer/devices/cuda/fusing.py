"""Embeddings and layers compiled by inductor: what lies between matmuls becomes few Triton kernels.

A residual, its sum, LayerNorm and the codes of 8-bit formats are one; kernels of our own are called
as they are (``kernels``). One compilation serves all layers: dynamo asks of a layer that it be of
the same kind, not the same.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_infer.devices import Function


OLDEST = (7, 0)
"""The least compute capability that inductor compiles for."""


def is_possible() -> bool:
    """Tell whether this machine has Triton, and what it compiles C with."""
    compilers = (os.environ.get("CC") or "cc", "gcc", "clang")
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    has_triton = find_spec("triton") is not None
    return has_triton and any(map(shutil.which, compilers)) and headers.is_file()


def compiled(function: Function) -> Function:
    """Return ``function``, which is compiled when called: for the first shape, then for any.

    In one piece: what it cannot compile so is an error, not slower.
    """
    import torch

    # What earlier runs of this process compiled would count towards the most that dynamo keeps.
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True)  # type: ignore[return-value]  # of the same type
