"""Every warning that a run can give, each with its remedy.

The kinds stand in the order in which a reader wants the warnings: what the outputs are worth, what
was run, how it was measured, and what went on beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bert_infer.caveats import choices, machine, measuring, outputs

if TYPE_CHECKING:
    from bert_infer.records import Caveat
    from bert_infer.running.run_record import Record

_KINDS = (outputs, choices, measuring, machine)


def of(record: Record, figures: dict[str, Any]) -> list[Caveat]:
    """Return every warning that a run deserves.

    Args:
        record: what is known of the run.
        figures: the content of its metrics.json.
    """
    prepared = record.prepared
    if prepared is None:
        return []
    return [caveat for kind in _KINDS for caveat in kind.of(record, prepared, figures)]
