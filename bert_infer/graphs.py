"""The ``graph`` group: how the host's overhead for each operator is removed."""

from __future__ import annotations

import shutil
import sysconfig
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from bert_infer.devices import Device
    from bert_infer.engines import Encode
    from bert_infer.layouts import Shape


class Graph(ABC):
    """A graph mode.

    Attributes:
        compiles: the first forward of a shape does more than compute.
        keeps_mask: the attention mask is passed even when it masks nothing, since what was
            recorded on a batch without padding is replayed on one with.
    """

    name: str
    compiles: ClassVar[bool] = False
    keeps_mask: ClassVar[bool] = False

    def resolve(self, device: Device) -> Graph:
        """Return the mode that will really be used."""
        del device
        return self

    def check(self, device: Device) -> None:
        """Refuse a device or machine without this mode.

        Raises:
            RefusedError: naming ``graph``.
        """

    @abstractmethod
    def wrap(self, encode: Encode, shapes: Collection[Shape]) -> Encode:
        """Return ``encode`` made faster for batches of ``shapes``."""


@dataclass(frozen=True)
class Eager(Graph):
    """One operator after the other."""

    name = "eager"

    def wrap(self, encode: Encode, shapes: Collection[Shape]) -> Encode:
        """Return ``encode`` itself."""
        del shapes
        return encode


class CompileMode(Enum):
    """torch.compile's own modes, with underscores for hyphens."""

    default = "default"
    reduce_overhead = "reduce-overhead"
    max_autotune = "max-autotune"
    max_autotune_no_cudagraphs = "max-autotune-no-cudagraphs"


@dataclass(frozen=True)
class Compile(Graph):
    """torch.compile with its default backend, inductor."""

    mode: CompileMode = CompileMode.default

    name = "compile"
    compiles: ClassVar[bool] = True
    keeps_mask: ClassVar[bool] = True

    def check(self, device: Device) -> None:
        """Refuse a machine on which inductor cannot build C++, which it needs on every device."""
        del device
        import os

        compiler = os.environ.get("CXX", "g++")
        headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
        missing = [
            *([] if shutil.which(compiler) else [f"a C++ compiler ({compiler})"]),
            *([] if headers.is_file() else [f"Python's headers ({headers})"]),
        ]
        if missing:
            raise RefusedError(
                f"graph=compile is refused: this machine lacks {' and '.join(missing)}.",
                "Install them (Debian: g++ and python3-dev), set CXX, or use graph=eager.",
            )

    def wrap(self, encode: Encode, shapes: Collection[Shape]) -> Encode:
        """Compile for the one shape there is, or once for several."""
        import torch

        several = len({(shape.sequences, shape.slots) for shape in shapes}) > 1
        # A compilation of an earlier run in this process must not count as one of this run's.
        torch.compiler.reset()
        compiled: Callable[..., tuple[torch.Tensor, torch.Tensor]] = torch.compile(
            encode, dynamic=several, mode=self.mode.value
        )
        return compiled


@dataclass(frozen=True)
class Auto(Graph):
    """The device's preferred mode."""

    name = "auto"

    def resolve(self, device: Device) -> Graph:
        """Ask the device."""
        return device.preferred_graph()

    def wrap(self, encode: Encode, shapes: Collection[Shape]) -> Encode:
        """Never called: the Runner resolves first."""
        raise NotImplementedError
