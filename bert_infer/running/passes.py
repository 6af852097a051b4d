"""A run's passes over its input: laying out batches, warming up, measuring."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from bert_infer import memory
from bert_infer.measuring import attempts
from bert_infer.measuring.attempts import Attempt
from bert_infer.measuring.measure import forward, measured_pass
from bert_infer.measuring.warmup import (
    WarmUp,
    run_for,
    run_once,
    run_once_in_time,
    warm_up_passes,
    warm_up_until_steady,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from bert_infer.batching.groups import Group
    from bert_infer.batching.layouts import Batch
    from bert_infer.engines import Encode
    from bert_infer.records import Forward, Outputs
    from bert_infer.running.preparation import Prepared
    from bert_infer.running.run_record import Record

    LaidOut = tuple[Batch, tuple[NDArray[np.generic], ...]]

_SETTLE_S = 0.05


@dataclass(frozen=True)
class Passes:
    """The passes of a run, with all that they need.

    Attributes:
        prepared: what is run.
        encode: the encoder as the graph mode makes it.
        plain: the encoder operator by operator.
        record: is told of phases, and of each forward that is tried.
    """

    prepared: Prepared
    encode: Encode
    plain: Encode
    record: Record

    @classmethod
    def of(cls, prepared: Prepared, encode: Encode, record: Record) -> Self:
        """Return the passes of ``encode``, an encoder that takes tensors on the device."""
        plain = prepared.device.fed(encode)
        wrapped = prepared.graph.wrap(plain, prepared.shapes, prepared.device)
        return cls(prepared, wrapped, plain, record)

    def compile(self) -> None:
        """Run every shape until compilers and recorders have seen it as often as they need."""
        device, graph = self.prepared.device, self.prepared.graph
        engine = self.prepared.runner.engine
        with self._memory_explained():
            for _ in range(max(graph.first_forwards, engine.first_forwards(device))):
                with self.record.phases("compile"):
                    run_once(self.every_shape(), self.encode, device)

    def warm_up(self, warmup: int | str, *, is_single: bool) -> WarmUp | None:
        """Run the passes that ``warmup`` asks for.

        Args:
            warmup: a number of passes, or "auto": every shape once, and passes until they are
                steady.
            is_single: a single pass is measured, so no pass before it is worth its time; except
                where several forwards are in flight: together they need more host memory than
                one, which takes long to get the first time.
        """
        if warmup == 0:
            return None
        device = self.prepared.device
        with self._memory_explained(), self.record.phases("warmup"):
            if warmup != "auto":
                return warm_up_passes(int(warmup), self.one, self.encode, device)
            left = len(self.prepared.shapes)
            left -= run_once_in_time(self.every_shape(), self.encode, device)
            if left and device.in_flight > 1:
                next(measured_pass(0, self.one(), self.encode, device), None)  # those at once
            if left or (is_single and device.in_flight == 1):
                return WarmUp(0, steady=None, shapes_left=left)
            return warm_up_until_steady(self.one, self.encode, device)

    def measured(self, indices: Iterable[int]) -> Iterator[tuple[Forward, Batch, Outputs]]:
        """Yield every forward of the passes ``indices``, as it is measured."""
        with self._memory_explained():
            for place, index in enumerate(indices):
                if place == 0:
                    self._settle()
                yield from measured_pass(index, self.one(), self.encode, self.prepared.device)

    def _settle(self) -> None:
        """Run forwards for a moment: files were written after the warm-up, and caches are cold.

        Not without a warm-up, and not where forwards are long, to which that is nothing.
        """
        warm_up, seconds = self.record.warm_up, self.record.phases.seconds["warmup"]
        if warm_up is None or seconds is None:
            return
        forwards = warm_up.passes * self.prepared.workload.forwards or len(self.prepared.shapes)
        if seconds / forwards < _SETTLE_S:
            run_for(_SETTLE_S, self.one, self.encode, self.prepared.device)

    def one(self) -> Iterator[LaidOut]:
        """Yield one pass' batches, planned anew: sorting is part of what is measured."""
        lengths, limit = self.prepared.tokens.lengths, self.prepared.architecture.max_length
        groups = self.prepared.batching.plan(lengths, self.prepared.runner.settings.batch, limit)
        filled = (self.prepared.buckets.fill(group, lengths) for group in groups)
        return self.record.attempts.following(filled, self.lay_out)

    def every_shape(self) -> Iterator[LaidOut]:
        """Yield a batch of each shape."""
        return self.record.attempts.following(self.prepared.shapes.values(), self.lay_out)

    def lay_out(self, group: Group) -> LaidOut:
        """Return the batch of ``group``, and what the encoder takes for it."""
        prepared = self.prepared
        engine = prepared.runner.engine
        batch = engine.layout.of(group, prepared.tokens, prepared.architecture.pad_token_id)
        keep_mask = prepared.graph.keeps_mask or prepared.device.keeps_mask
        return batch, engine.inputs(batch, keep_mask=keep_mask)

    @contextmanager
    def _memory_explained(self) -> Iterator[None]:
        """Where a batch does not fit in memory, say which one it was, and how large a one does.

        If none has been computed before, smaller ones are tried, operator by operator.

        Raises:
            OutOfMemoryError: instead of what was raised.
        """

        def compute(group: Group) -> Attempt:
            batch, inputs = self.lay_out(group)
            forward(self.plain, inputs, self.prepared.device)
            return Attempt(group, batch.padded_tokens)

        tried = self.record.attempts
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            failed = tried.latest
            if failed is None or not memory.ran_out(error):
                raise
            memory.forget(error)
            largest = tried.largest or attempts.first_half_that_fits(failed.group, compute)
            raise attempts.out_of_memory(
                *(error, failed, largest),
                batching=self.prepared.batching,
                in_flight=self.prepared.device.in_flight,
            ) from error
