"""Which batches a run has tried to compute: what fitted in memory, and what did not."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from bert_infer.batching.groups import Group
from bert_infer.errors import OutOfMemoryError
from bert_infer.memory import forget, less, ran_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from bert_infer.batching import Batching
    from bert_infer.batching.layouts import Batch
    from bert_infer.engines import Encode


class Attempt(NamedTuple):
    """A forward, by its sequences and its tokens, filling ones included."""

    group: Group
    tokens: int

    def __str__(self) -> str:
        sequences = len(self.group.sequences)
        return f"{sequences:,} sequence{'s' * (sequences > 1)}, {self.tokens:,} tokens"

    @classmethod
    def of(cls, group: Group, batch: Batch) -> Attempt:
        """Return the attempt at ``batch``, which was made of ``group``."""
        return cls(group, batch.padded_tokens)


class Attempts:
    """A run's forwards, in the order in which their batches are laid out.

    Attributes:
        largest: the one with the most tokens, of those known to have fitted in memory.
    """

    def __init__(self) -> None:
        self._waiting: deque[Attempt] = deque()
        self._latest: Attempt | None = None
        self._is_computing = False
        self._is_laying_out = False
        self.largest: Attempt | None = None

    def following(
        self, groups: Iterable[Group], lay_out: Callable[[Group], tuple[Batch, Any]]
    ) -> Iterator[tuple[Batch, tuple[NDArray[np.generic], ...]]]:
        """Yield each group's batch and inputs, which ``lay_out`` makes of it."""
        self._waiting.clear()  # a batch laid out before may never have been computed
        for group in groups:
            self._is_laying_out = True
            batch, inputs = lay_out(group)
            self._is_laying_out = False
            self._waiting.append(Attempt.of(group, batch))
            yield batch, inputs

    def watching(self, encode: Encode) -> Encode:
        """Return ``encode``, each call noted as the attempt at the next batch laid out."""

        def attempt(*inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401  as encode
            self._fitted()
            self._latest = self._waiting.popleft() if self._waiting else None
            self._is_computing = True
            outputs = encode(*inputs)
            self._is_computing = False
            return outputs

        return attempt

    def broken_off(self) -> Attempt | None:
        """Return the attempt that an exception ended; None where a batch was being laid out."""
        if self._is_laying_out:
            return None
        if self._is_computing or not self._waiting:  # it was computing, or being waited for
            return self._latest
        self._fitted()
        return self._waiting[0]

    def _fitted(self) -> None:
        """Note that the latest attempt fitted in memory: the next one has begun."""
        if self._latest and (self.largest is None or self._latest.tokens > self.largest.tokens):
            self.largest = self._latest


def first_half_that_fits(group: Group, compute: Callable[[Group], Attempt]) -> Attempt | None:
    """Return the first attempt that succeeds at half of ``group``, a quarter and so on, or None."""
    while len(group.sequences) > 1:
        group = Group(group.sequences[: len(group.sequences) // 2], group.width)
        try:
            return compute(group)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                return None  # a device that ran out of memory may be unusable
            forget(error)
    return None


def out_of_memory(
    error: BaseException,
    failed: Attempt,
    largest: Attempt | None,
    *,
    batching: Batching,
    in_flight: int,
) -> OutOfMemoryError:
    """Return an error that names the forward that failed, and the largest that did not.

    Args:
        error: what was raised.
        failed: the forward that it ended.
        largest: the largest forward known to have fitted; None if none did.
        batching: made the groups.
        in_flight: forwards that the device holds at once.
    """
    said = str(error).partition("\n")[0] or type(error).__name__
    message = f"{said.rstrip('.')}. The forward of {failed} did not fit; "
    if largest is None:
        return OutOfMemoryError(f"{message}none that was tried did.", less(batching.sized_by))
    message += f"the largest that did had {largest}."
    if in_flight > 1 and largest.tokens >= failed.tokens:
        return OutOfMemoryError(
            f"{message} Up to {in_flight} were under way at once.",
            f"Set device.in_flight=1. {less(batching.sized_by)}",
        )
    sequences = len(failed.group.sequences)
    # How many sequences of the failed forward's width hold as many tokens as fitted.
    fitting = largest.tokens * sequences // failed.tokens
    if not 0 < fitting < sequences:
        return OutOfMemoryError(message, less(batching.sized_by))
    limit = fitting if batching.budget is None else largest.tokens
    return OutOfMemoryError(
        message,
        f"Lower {batching.sized_by} to {limit} or less, lower max_length, or choose a smaller "
        "dtype or model.",
    )
