"""Which sequences share a forward pass, and the shape that this gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Group(NamedTuple):
    """Sequences that share a forward pass, ``int64 [sequences]``.

    ``width`` is what they are padded to, in a layout that pads. Where a device wants few shapes,
    the batch is filled up to ``rows`` sequences and, in a layout without padding, to ``slots``
    tokens: with sequences that nobody reads, none longer than ``width``.
    """

    sequences: NDArray[np.int64]
    width: int
    rows: int = 0
    slots: int = 0


class Size(NamedTuple):
    """What a group is filled up to: the fields of ``Group``, except its sequences."""

    width: int
    rows: int
    slots: int = 0


class Shape(NamedTuple):
    """What a compiled or recorded forward depends on; slots are tokens computed, real or not."""

    sequences: int
    slots: int
    has_padding: bool
