"""Kernels that torch.compile calls without looking inside: it cannot trace packed weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cache
from itertools import count
from threading import Lock
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    import torch

_KNOWN: WeakValueDictionary[str, Opaque] = WeakValueDictionary()
_NUMBERS = count()
_REGISTERING = Lock()


class Opaque(ABC):
    """A kernel that takes tensors and returns a new one."""

    def __init__(self) -> None:
        _register()
        # A string: a compiler might make a variable of a number.
        self._handle = str(next(_NUMBERS))
        _KNOWN[self._handle] = self

    def __call__(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Run the kernel, or add it to the graph that is being compiled."""
        import torch

        if torch.compiler.is_compiling():
            return torch.ops.bert_infer.call(list(tensors), self._handle)  # type: ignore[no-any-return]
        return self.kernel(*tensors)

    @abstractmethod
    def kernel(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Compute the result."""

    @abstractmethod
    def empty(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Return an uninitialised tensor of the shape and dtype of ``kernel``'s."""


def _register() -> None:
    """Register the operator ``bert_infer::call`` with PyTorch, if it is not."""
    with _REGISTERING:
        _registered()


@cache
def _registered() -> None:
    import torch

    def call(tensors: list[torch.Tensor], handle: str) -> torch.Tensor:
        return _KNOWN[handle].kernel(*tensors)

    def empty(tensors: list[torch.Tensor], handle: str) -> torch.Tensor:
        return _KNOWN[handle].empty(*tensors)

    schema = "(Tensor[] tensors, str handle) -> Tensor"
    operator = torch.library.custom_op("bert_infer::call", call, mutates_args=(), schema=schema)
    operator.register_fake(empty)
