"""Overlapping copies and forwards, on a device with concurrent streams."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bert_infer.records import Computed, Outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from bert_infer.engines import Encode


class Overlap:
    """Copies in, forwards and copies out, each kind on a stream of its own.

    Tensors that a stream may still read are held until their forward has been waited for: the
    allocator knows only the stream on which memory was allocated.
    """

    def __init__(self, streams: Any, flush: Callable[[], object] = lambda: None) -> None:  # noqa: ANN401  a module
        """Take two streams besides the current one.

        Args:
            streams: torch.cuda, or what offers the same Stream, Event, stream and current_stream.
            flush: sends off submitted work, where a device gathers it first.
        """
        self._streams, self._flush = streams, flush
        self._in, self._out = streams.Stream(), streams.Stream()

    def submit(
        self,
        encode: Encode,
        copy_in: Callable[[], tuple[Any, ...]],
        copy_out: Callable[[Outputs], Outputs],
    ) -> Callable[[], Computed]:
        """Submit a forward; return a function that copies its outputs out, and waits for them.

        They are copied that late because some devices' copies block: by then the next forward has
        been submitted. So ``encode`` must not overwrite what it returned before (see ``kept``).
        Durations are the device's own, between events on the stream that did the work.
        """
        compute = self._streams.current_stream()
        with self._streams.stream(self._in):
            copying_in = self._moment()
            on_device = copy_in()
            copied_in = self._moment()
        compute.wait_event(copied_in)
        computing = self._moment()
        results = Outputs(*encode(*on_device))
        computed = self._moment()
        held: list[Any] = [on_device, results]

        def wait() -> Computed:
            with self._streams.stream(self._out):
                self._out.wait_event(computed)
                copying_out = self._moment()
                outputs = copy_out(held[1])
                copied_out = self._moment()
            copied_out.synchronize()
            held.clear()
            return Computed(
                outputs,
                copy_in_s=copying_in.elapsed_time(copied_in) / 1e3,
                duration_s=computing.elapsed_time(computed) / 1e3,
                copy_out_s=copying_out.elapsed_time(copied_out) / 1e3,
            )

        return wait

    def _moment(self) -> Any:  # noqa: ANN401  the module's Event
        self._flush()
        event = self._streams.Event(enable_timing=True)
        event.record()
        return event


def kept(encode: Encode) -> Encode:
    """Return ``encode`` with its results cloned: a graph's next replay would overwrite them."""

    def copied(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401  as encode
        hidden_states, pooled = encode(*given)
        return hidden_states.clone(), pooled.clone()

    return copied
