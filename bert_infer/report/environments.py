"""The machines and software of a sweep's runs: what they share, and what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from bert_infer.measuring.environment import flattened, lasting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bert_infer.report.entries import Entry


class Difference(NamedTuple):
    """A fact in which runs differ: each value, with the names of the runs that have it."""

    key: str
    values: dict[str, list[str]]


def shared(found: Sequence[Entry]) -> dict[str, str]:
    """Return what is the same in every run that describes its environment."""
    everything = _described(found)
    first = everything[0][1] if everything else {}
    return {
        key: _written(value)
        for key, value in first.items()
        if value is not None and all(facts.get(key) == value for _, facts in everything)
    }


def differences(found: Sequence[Entry]) -> list[Difference]:
    """Return what differs between the runs that describe their environments."""
    everything = _described(found)
    differing = []
    for key in dict.fromkeys(key for _, facts in everything for key in facts):
        values: dict[str, list[str]] = {}
        for name, facts in everything:
            values.setdefault(_written(facts.get(key)), []).append(name)
        if len(values) > 1:
            differing.append(Difference(key, values))
    return differing


def _described(found: Sequence[Entry]) -> list[tuple[str, dict[str, Any]]]:
    return [
        (entry.name, flattened(lasting(entry.environment))) for entry in found if entry.environment
    ]


def _written(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "unknown" if value is None else str(value)
