"""One run in its directory: whatever becomes of it, its record is written."""

from __future__ import annotations

import errno
import logging
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from bert_infer.errors import MAKE_ROOM, BertInferError, RefusedError
from bert_infer.memory import ran_out
from bert_infer.running import status
from bert_infer.running.execution import execute
from bert_infer.running.run_record import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from bert_infer.runner import Runner
    from bert_infer.running.execution import ShowProgress, Turns

_LOG = logging.getLogger(__name__)
_COMPILERS = ("torch._dynamo.exc", "torch._inductor", "triton")


class Glimpse(NamedTuple):
    """What the console shows of a tensor.

    Attributes:
        first: the first three and last three values of its first row.
        last: the same of the row of the last real token or sequence.
    """

    title: str
    shape: tuple[int, ...]
    dtype: str
    first: tuple[float, ...]
    last: tuple[float, ...]

    @classmethod
    def of(cls, title: str, tensor: torch.Tensor, last: torch.Tensor) -> Glimpse:
        """Return what to show of ``tensor``; ``last`` is the row of its last token or sequence."""
        rows = (tensor.reshape(-1, tensor.shape[-1])[0], last)
        first, final = ((*row[:3].tolist(), *row[-3:].tolist()) for row in rows)
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls(title, tuple(tensor.shape), dtype, first, final)


class Finished(NamedTuple):
    """A run that came to an end, good or bad.

    Attributes:
        metrics: the content of metrics.json; its ``error`` says why the run failed, if it did.
        outputs: those of the last forward, if it came to that.
    """

    metrics: dict[str, Any]
    outputs: tuple[Glimpse, ...]


class Watch(NamedTuple):
    """Callbacks that are told how a run goes on.

    Attributes:
        progress: as in ``execution.execute``.
        phase: takes the name of each phase that begins.
    """

    progress: ShowProgress = lambda _done, _total: None
    phase: Callable[[str], None] = lambda _name: None


NOBODY = Watch()


def carry_out(
    compose: Callable[[], Runner],
    directory: Path,
    watch: Watch = NOBODY,
    isolation: str = "inline",
    turns: Turns | None = None,
) -> Finished:
    """Make one run, and leave its record in ``directory`` whatever happens.

    Args:
        compose: returns what to run.
        directory: where its files go; it is there.
        watch: is told how the run goes on.
        isolation: "process" where this process makes no other run, else "inline".
        turns: as in ``execution.execute``.

    Raises:
        KeyboardInterrupt: passed on, after the record is written.
    """
    record = Record(run={"isolation": isolation})
    kept = status.Status(directory, watch.phase)
    outputs: tuple[Glimpse, ...] = ()

    def progress(done: int, total: int | None) -> None:
        kept.measured()
        watch.progress(done, total)

    try:
        runner = compose()
        record = runner.new_record(isolation)
        kept.follow(record)
        prepared = runner.prepare()
        record.run["content_hash"] = prepared.content().hash
        sinks = runner.sinks(prepared.tokens)
        batch, computed = execute(prepared, record, sinks, progress, turns)
        with record.phases("write"):
            for sink in sinks:
                sink.write(directory)
        pooled, states = runner.output.pooled(batch, computed), computed.hidden_states
        last_token = batch.states(states, len(batch.sequences) - 1)[-1]
        outputs = (
            Glimpse.of("Final hidden states", states, last_token),
            Glimpse.of("Pooled output", pooled, pooled[-1]),
        )
    except KeyboardInterrupt:
        record.broke_off(*status.INTERRUPTED)
        status.close(directory, record)
        raise
    except Exception as error:  # noqa: BLE001  whatever happened, it is recorded
        # A refusal needs no traceback: what was checked a moment ago has changed.
        _LOG.error("The run failed: %s", error, exc_info=not isinstance(error, RefusedError))
        message, remedy = str(error), _remedy(error, record)
        if isinstance(error, BertInferError):
            message, remedy = error.message, error.remedy
        record.broke_off("failed", type(error).__name__, message, remedy)
    return Finished(status.close(directory, record), outputs)


def _remedy(error: Exception, record: Record) -> str:
    if ran_out(error):
        return record.less
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        return MAKE_ROOM
    if _was_compiled(error):
        return (
            "It came from a compiler, or from what one made; the traceback is in run.log. Do "
            "without: graph=eager, and on a GPU device.fuses=false as well."
        )
    return "The traceback is in run.log, in the run's directory."


def _was_compiled(error: Exception) -> bool:
    """Tell whether a compiler raised ``error``, or code that it had made."""
    frames = traceback.walk_tb(error.__traceback__)
    passed = (str(frame.f_globals.get("__name__")) for frame, _ in frames)
    return any(name.startswith(_COMPILERS) for name in (type(error).__module__, *passed))
