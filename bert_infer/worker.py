"""One run in its directory: whatever becomes of it, its record is written."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from bert_infer import files
from bert_infer.errors import RefusedError
from bert_infer.metrics import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import torch

    from bert_infer.records import Forward
    from bert_infer.runner import Runner, ShowProgress

_LOG = logging.getLogger(__name__)


class LastForward(NamedTuple):
    """What the console shows of the outputs.

    Attributes:
        hidden_states: as the batch is laid out.
        pooled: ``[sequences, hidden]``, by ``output.pooling``.
        last_token: ``[hidden]``, the last sequence's last real token.
    """

    hidden_states: torch.Tensor
    pooled: torch.Tensor
    last_token: torch.Tensor


class Finished(NamedTuple):
    """A run that came to an end, good or bad.

    Attributes:
        metrics: the content of metrics.json; its ``error`` says why the run failed, if it did.
        last: the outputs of the last forward, if it came to that.
    """

    metrics: dict[str, Any]
    last: LastForward | None


def carry_out(
    compose: Callable[[], Runner],
    directory: Path,
    progress: ShowProgress = lambda _done, _total: None,
    passes: Callable[[list[Forward]], Iterator[int]] | None = None,
) -> Finished:
    """Make one run, and leave its record in ``directory`` whatever happens.

    Args:
        compose: returns what to run.
        directory: where its files go; it is there.
        progress: as in ``Runner.execute``.
        passes: as in ``Runner.execute``.

    Raises:
        KeyboardInterrupt: passed on, after the record is written.
    """
    record, last = Record(), None
    try:
        runner = compose()
        record = runner.new_record()
        prepared = runner.prepare()
        sinks = runner.sinks(prepared.tokens)
        batch, outputs = runner.execute(record, prepared, sinks, progress, passes)
        with record.phases("write"):
            for sink in sinks:
                sink.write(directory)
        pooled = runner.output.pooled(batch, outputs)
        states = outputs.hidden_states
        last = LastForward(states, pooled, batch.states(states, len(batch.sequences) - 1)[-1])
    except KeyboardInterrupt:
        note_interruption(directory, record)
        raise
    except RefusedError as error:  # what was checked a moment ago has changed
        record.broke_off("failed", type(error).__name__, error.message, error.remedy)
    except Exception as error:  # noqa: BLE001  whatever happened, it is recorded
        _LOG.exception("The run failed.")
        record.broke_off("failed", type(error).__name__, str(error), _remedy(error))
    return Finished(_write(directory, record), last)


def note_interruption(directory: Path, record: Record | None = None) -> None:
    """Leave a record of a run that the user ended, with what was known of it."""
    record = record or Record()
    record.broke_off("interrupted", "KeyboardInterrupt", "Interrupted.", "Run it again.")
    _write(directory, record)


def _write(directory: Path, record: Record) -> dict[str, Any]:
    """Write what is known of a run, whatever became of it; return metrics.json's content."""
    if record.environment:  # a run that ended before has nothing to describe
        conditions = record.conditions.as_json() if record.conditions else None
        described = record.environment | {"conditions": conditions}
        files.write_json(directory / "environment.json", described)
    files.write_forwards(directory / "forwards.csv", record.forwards)
    # Last: a directory with metrics.json is complete.
    metrics = record.metrics()
    files.write_json(directory / "metrics.json", metrics)
    return metrics


def _remedy(error: Exception) -> str:
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate" in str(error):
        return "Lower batch or max_length, or choose a smaller dtype or model."
    return "The traceback is in run.log, in the run's directory."
