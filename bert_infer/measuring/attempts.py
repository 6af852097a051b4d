"""Which batches a run has tried to compute: what fitted in memory, and what did not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from bert_infer.batching.groups import Group
from bert_infer.errors import OutOfMemoryError
from bert_infer.memory import forget, less, ran_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.batching import Batching
    from bert_infer.batching.layouts import Batch


class Attempt(NamedTuple):
    """A forward, by its sequences and its tokens, filling ones included."""

    group: Group
    tokens: int

    def __str__(self) -> str:
        sequences = len(self.group.sequences)
        return f"{sequences:,} sequence{'s' * (sequences > 1)}, {self.tokens:,} tokens"


class Attempts:
    """A run's forwards, as their batches are laid out.

    Attributes:
        latest: the one under way, or the last; None while a batch is laid out.
        largest: the one with the most tokens, of those known to have fitted in memory.
    """

    def __init__(self) -> None:
        self.latest: Attempt | None = None
        self.largest: Attempt | None = None

    def following(
        self, groups: Iterable[Group], lay_out: Callable[[Group], tuple[Batch, Any]]
    ) -> Iterator[tuple[Batch, tuple[NDArray[np.generic], ...]]]:
        """Yield each group's batch and inputs, which ``lay_out`` makes of it.

        The caller computes what it is given: to ask for more tells that the latest fitted.
        """
        for group in groups:
            fitted, self.latest = self.latest, None
            if fitted and (self.largest is None or fitted.tokens > self.largest.tokens):
                self.largest = fitted
            batch, inputs = lay_out(group)
            self.latest = Attempt(group, batch.padded_tokens)
            yield batch, inputs


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
