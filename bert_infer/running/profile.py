"""A trace of one pass by PyTorch's profiler, after the measured ones: profiling takes time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bert_infer.files import whole
from bert_infer.measuring.warmup import run_once
from bert_infer.outputs import Sink

if TYPE_CHECKING:
    from pathlib import Path

    from bert_infer.batching.layouts import Batch
    from bert_infer.devices import Device
    from bert_infer.engines import Encode
    from bert_infer.measuring.measure import Batches
    from bert_infer.records import Outputs


class Trace(Sink):
    """``trace.json``, for chrome://tracing or Perfetto."""

    def __init__(self) -> None:
        self._profile: Any = None  # a class that a plugin may replace

    def collect(self, batch: Batch, outputs: Outputs) -> None:
        """Take nothing: a trace needs no outputs."""

    def watch(self, batches: Batches, encode: Encode, device: Device) -> None:
        """Run ``batches`` under the profiler."""
        # Looked up now: importing a device's plugin replaces both names.
        from torch import profiler

        activities = [getattr(profiler.ProfilerActivity, name) for name in device.profiles]
        with profiler.profile(activities=activities) as self._profile:
            run_once(batches, encode, device)

    def write(self, directory: Path) -> None:
        """Write the file."""
        if self._profile is None:
            return
        with whole(directory / "trace.json") as beside:
            self._profile.export_chrome_trace(str(beside))
