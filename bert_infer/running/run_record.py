"""What is known of a run, from its beginning to its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bert_infer.measuring import intervals
from bert_infer.measuring.attempts import Attempts
from bert_infer.measuring.measure import Phases
from bert_infer.measuring.samples import Samples
from bert_infer.memory import less

if TYPE_CHECKING:
    from bert_infer.devices.counters import Counted
    from bert_infer.measuring.ceiling import Ceiling
    from bert_infer.measuring.conditions import Conditions
    from bert_infer.measuring.drift import Drift
    from bert_infer.measuring.warmup import WarmUp
    from bert_infer.records import Forward
    from bert_infer.running.preparation import Prepared

_LONGEST_MESSAGE = 600  # characters


@dataclass
class Record:
    """What is known of a run so far; a figure that is not known yet is None.

    The one mutable record: it is filled as the run goes on, so that a run that breaks off still
    leaves what it found out.

    Attributes:
        run: which run this is, as metrics.json has it.
        prepared: what was settled before anything was loaded.
        weights: where they came from.
        emulated: whether the device lacks the dtype's format.
        forwards: those that were measured so far.
        passes: how many were measured, once all of them were.
        is_finite: whether no output of the first pass is infinite or NaN.
        counted: what the accelerator counted.
    """

    run: dict[str, Any] = field(default_factory=dict)
    prepared: Prepared | None = None
    status: str = "interrupted"
    error: dict[str, str] | None = None
    phases: Phases = field(default_factory=Phases)
    attempts: Attempts = field(default_factory=Attempts)
    weights: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    emulated: bool = False
    warm_up: WarmUp | None = None
    forwards: list[Forward] = field(default_factory=list)
    passes: int | None = None
    ceiling: Ceiling | None = None
    is_finite: bool = True
    drift: Drift | None = None
    conditions: Conditions | None = None
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    counted: Counted | None = None

    def broke_off(self, status: str, kind: str, message: str, remedy: str) -> None:
        """Note why the run ended early, and in which phase."""
        where = f" (phase: {self.phases.current})" if self.phases.current else ""
        self.status = status
        self.error = {"type": kind, "message": _shortened(message) + where, "remedy": remedy}

    def finish(self, min_cosine: float | None) -> None:
        """Note that the run came to its end, and whether its drift is more than was allowed."""
        self.status = "ok"
        if self.drift and (complaint := self.drift.complaint(min_cosine)):
            self.status = "drift_exceeded"
            message, remedy = complaint
            self.error = {"type": "DriftExceeded", "message": message, "remedy": remedy}

    @property
    def less(self) -> str:
        """What to do when memory runs out, by the key that limits a batch where that is known."""
        return less(self.prepared.batching.sized_by) if self.prepared else less()

    @property
    def samples(self) -> Samples | None:
        """The timings as statistics take them; None before the first complete pass."""
        workload = self.prepared.workload if self.prepared else None
        if workload is None or len(self.forwards) < workload.forwards:
            return None
        return Samples.of(self.forwards, workload)

    def relative_ci(self) -> float | None:
        """Return half the 95 % interval of throughput over the throughput; None for few samples.

        To stop at the first narrow interval of few samples is to pick one that is too narrow.
        """
        samples = self.samples
        enough = samples is not None and len(samples.wall_s) >= intervals.FEWEST_TO_STOP
        return samples.relative_ci if samples and enough else None


def _shortened(message: str) -> str:
    """Return ``message`` as records, reports and terminals can show it: some print tensors."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    return f"{message[:_LONGEST_MESSAGE]}… (run.log has the rest)"
