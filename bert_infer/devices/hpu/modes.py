"""The plugin's two modes, lazy and eager: which one a graph mode runs in, and how it is set.

The plugin reads ``PT_HPU_LAZY_MODE`` once, when it is imported.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bert_infer.devices.hpu import host
from bert_infer.errors import OptionError, RefusedError
from bert_infer.graphs import Compile, CompileMode
from bert_infer.graphs.hpu_graphs import HpuGraphs

if TYPE_CHECKING:
    from bert_infer.graphs import Graph

VARIABLE = "PT_HPU_LAZY_MODE"


def is_lazy(graph: Graph, *, asked: bool | None) -> bool:
    """Tell whether ``graph`` runs in lazy mode; one that can run in either does as ``asked``."""
    needs = _needed(graph)
    return bool(asked) if needs is None else needs


def is_lazy_now() -> bool:
    """Tell whether this process runs in lazy mode."""
    return os.environ.get(VARIABLE) != "0"


def check(graph: Graph, *, asked: bool | None) -> None:
    """Refuse a graph mode that does not exist in the mode ``asked``, or with the torch installed.

    Raises:
        RefusedError: naming the key to change.
    """
    needs = _needed(graph)
    if asked is not None and needs is not None and asked != needs:
        raise RefusedError(
            f"graph={graph.name} is refused with device.lazy={str(asked).lower()}: HPU graphs "
            "exist in lazy mode only, torch.compile without it only.",
            f"Leave device.lazy out, or use graph={'hpu_graphs' if asked else 'compile'}.",
        )
    if isinstance(graph, Compile) and graph.mode is not CompileMode.default:
        raise OptionError(
            "graph.mode", graph.mode.name, "default on device=hpu: the others are inductor's"
        )
    if is_lazy(graph, asked=asked) and not host.has_own_torch():
        raise RefusedError(
            f"graph={graph.name} is refused: it needs lazy mode, and that Gaudi's own build of "
            "torch; the one installed is PyTorch's.",
            "Use graph=compile, or install Gaudi's build: bash habanalabs-installer.sh install "
            "--type pytorch --venv (docs/gaudi.md).",
        )


def _needed(graph: Graph) -> bool | None:
    """Return the mode that ``graph`` needs; None where it runs in both."""
    if isinstance(graph, HpuGraphs):
        return True
    return False if isinstance(graph, Compile) else None
