"""The ``batching`` group: how sequences become batches.

A policy is one pure function of the lengths, ``plan``; ``layouts`` makes arrays of its groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bert_infer.batching.groups import Group
from bert_infer.batching.layouts import Batch, PackedBatch
from bert_infer.errors import InputError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from bert_infer.devices import Device


class Batching(ABC):
    """A policy.

    Attributes:
        layout: what its groups have to be laid out as.
        sized_by: the key that limits a group: its tokens where there is a ``budget``, else its
            sequences.
        less_padding: what to change when too much of a batch is padding.
    """

    name: str
    layout: ClassVar[type[Batch]] = Batch  # type: ignore[type-abstract]  # of any class
    sized_by: ClassVar[str] = "batch"
    less_padding: ClassVar[str] = "Use batching=by_length or batching=token_budget."

    @property
    def budget(self) -> int | None:
        """The most tokens, padding included, in a group; None for a policy without a limit."""
        return None

    def resolve(self, device: Device, layout: type[Batch], longest: int) -> Batching:
        """Return the policy with the settings that it leaves to ``device`` filled in.

        Args:
            device: where batches are computed.
            layout: how they are laid out.
            longest: tokens of the longest sequence.

        Raises:
            InputError: the settings cannot hold it; naming the smallest value that works.
        """
        del device, layout, longest
        return self

    @abstractmethod
    def plan(self, lengths: NDArray[np.int64], batch: int, limit: int) -> Iterator[Group]:
        """Yield groups that hold every sequence once.

        Args:
            lengths: ``int64 [sequences]``, real tokens of each.
            batch: sequences in a group, at most.
            limit: the widest group that the model takes.
        """

    def check(self, longest_allowed: int) -> None:
        """Refuse settings that cannot hold a sequence of ``longest_allowed`` tokens.

        Raises:
            OptionError: naming the key to change.
        """


@dataclass(frozen=True)
class Padded(Batching):
    """Input order, one width for the whole input."""

    name = "padded"

    def plan(self, lengths: NDArray[np.int64], batch: int, limit: int) -> Iterator[Group]:
        """Yield ``batch`` sequences at a time, as wide as the longest of all."""
        del limit
        width = int(lengths.max())
        for start in range(0, len(lengths), batch):
            yield Group(np.arange(start, min(start + batch, len(lengths))), width)


@dataclass(frozen=True)
class ByLength(Batching):
    """Sorted by length, widths from a short list of bucket edges."""

    edges: tuple[int, ...]
    window: int

    name = "by_length"
    less_padding: ClassVar[str] = "Use batching=token_budget, a lower batch, or closer edges."

    def __post_init__(self) -> None:
        _check_window(self.window)
        edges = self.edges
        if not edges or edges[0] < 1 or any(a >= b for a, b in pairwise(edges)):
            raise OptionError("edges", list(edges), "increasing whole numbers from 1")

    def check(self, longest_allowed: int) -> None:
        """Refuse edges that end below the longest sequence there may be."""
        if self.edges[-1] < longest_allowed:
            raise OptionError(
                "batching.edges",
                list(self.edges),
                f"a last edge of at least {longest_allowed} here",
                f"Add {longest_allowed} to the edges, or set max_length={self.edges[-1]}.",
            )

    def plan(self, lengths: NDArray[np.int64], batch: int, limit: int) -> Iterator[Group]:
        """Yield ``batch`` sequences at a time, as wide as the first edge that holds them."""
        for order in _longest_first(lengths, self.window):
            for start in range(0, len(order), batch):
                rows = order[start : start + batch]
                edge = self.edges[int(np.searchsorted(self.edges, lengths[rows[0]]))]
                yield Group(rows, min(edge, limit))


@dataclass(frozen=True)
class Budgeted(Batching):
    """A policy that fills batches up to a number of tokens, whatever ``batch`` says.

    Attributes:
        max_tokens: None leaves it to the device.
        window: sequences that are sorted together.
    """

    max_tokens: int | None
    window: int

    sized_by: ClassVar[str] = "batching.max_tokens"

    def __post_init__(self) -> None:
        _check_window(self.window)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise OptionError("max_tokens", self.max_tokens, "null or a whole number from 1")

    def resolve(self, device: Device, layout: type[Batch], longest: int) -> Batching:
        """Return the policy with the ``max_tokens`` that suits ``device``, unless it is set."""
        if self.max_tokens is None:
            return replace(self, max_tokens=max(longest, device.tokens_at_once(layout)))
        if self.max_tokens < longest:
            raise InputError(
                f"batching.max_tokens={self.max_tokens} is less than the longest sequence, "
                f"{longest} tokens.",
                f"Set batching.max_tokens={longest} or more, or a smaller max_length.",
            )
        return self

    @property
    def budget(self) -> int:
        """``max_tokens``.

        Raises:
            ValueError: it is still None.
        """
        if self.max_tokens is None:
            raise ValueError("max_tokens is not set: resolve the policy first")
        return self.max_tokens


@dataclass(frozen=True)
class TokenBudget(Budgeted):
    """Sorted by length, as many sequences as fit."""

    name = "token_budget"
    less_padding: ClassVar[str] = (
        "Lower batching.max_tokens: batches of fewer texts are more alike."
    )

    def plan(self, lengths: NDArray[np.int64], batch: int, limit: int) -> Iterator[Group]:
        """Yield sequences of similar length: ``max_tokens`` at most, padding included."""
        del batch, limit
        for order in _longest_first(lengths, self.window):
            start = 0
            while start < len(order):
                width = int(lengths[order[start]])
                rows = order[start : start + self.budget // width]
                yield Group(rows, width)
                start += len(rows)


@dataclass(frozen=True)
class Packed(Budgeted):
    """As many sequences as fit, end to end; the longest are placed first."""

    name = "packed"
    layout: ClassVar[type[Batch]] = PackedBatch

    def plan(self, lengths: NDArray[np.int64], batch: int, limit: int) -> Iterator[Group]:
        """Yield groups of ``max_tokens`` tokens at most, by best-fit decreasing."""
        del batch
        width = min(self.budget, limit)  # one for all: nothing is padded to it
        for order in _longest_first(lengths, self.window):
            for members in best_fit(lengths[order], self.budget):
                yield Group(order[members], width)


def best_fit(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Return groups of indices whose lengths add up to ``capacity`` at most.

    Each length in turn goes into the group where it leaves the least room. For decreasing lengths
    that takes at most 11/9 of the fewest possible groups and four more (Johnson, 1973).
    """
    groups: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is left, group), ascending
    for index, length in enumerate(lengths.tolist()):
        place = bisect_left(room, (length, 0))
        if place < len(room):
            left, group = room.pop(place)
        else:
            left, group = capacity, len(groups)
            groups.append([])
        groups[group].append(index)
        insort(room, (left - length, group))
    return groups


def _check_window(window: int) -> None:
    if window < 1:
        raise OptionError("window", window, "a whole number from 1")


def _longest_first(lengths: NDArray[np.int64], window: int) -> Iterator[NDArray[np.int64]]:
    """Yield each window's sequences, longest first, so that running out of memory comes early."""
    for start in range(0, len(lengths), window):
        yield start + np.argsort(-lengths[start : start + window], kind="stable")
