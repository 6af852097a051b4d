"""``ls``: the runs, sweeps and duels below a directory, filtered by their options and status."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from bert_infer import console
from bert_infer.configuration import options
from bert_infer.errors import RefusedError, nearest
from bert_infer.report import directories, figures, rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from bert_infer.report.entries import Entry

_SHOWN = ("model", "dtype", "engine", "graph", "batching", "batch")
_CHOICE_WIDTH = 28  # characters: any fewer make a column of single words


@dataclass(frozen=True, eq=False)
class Item:
    """A run, a sweep or a duel.

    Attributes:
        kind: which of them.
        found: its runs that passed the filters.
        runs: how many it has in all.
    """

    directory: Path
    kind: str
    found: tuple[Entry, ...]
    runs: int

    @property
    def started_at(self) -> datetime:
        """When its first run began."""
        return min(entry.started_at for entry in self.found)

    @property
    def throughput(self) -> float | None:
        """The fastest run's, in sequences/s; runs that went well take precedence."""
        ordered = rows.best_first(rows.joined(self.found))
        return ordered[0].sequences_per_s

    @property
    def status(self) -> str:
        """The run's status; for several runs, how many have each."""
        if self.kind == "run":
            return self.found[0].status
        count = Counter(entry.status for entry in self.found)
        return ", ".join(f"{number} {status}" for status, number in count.items())

    @property
    def choice(self) -> str:
        """What was chosen; for several runs, all values of each option."""
        values = {
            key: list(dict.fromkeys(e.names[key] for e in self.found if key in e.names))
            for key in _SHOWN
        }
        return " ".join(f"{key}={','.join(found)}" for key, found in values.items() if found)


def below(directory: Path, wanted: Mapping[str, str]) -> list[Item]:
    """Return what lies below ``directory``, the newest first.

    Args:
        directory: searched to any depth, but not inside a run.
        wanted: a run is listed if its options, or its ``status``, have these values.

    Raises:
        RefusedError: ``wanted`` has a key that no run could have.
    """
    everything = list(_items(directory)) if directory.is_dir() else []
    _check_keys(wanted, (entry for item in everything for entry in item.found))
    kept = [
        Item(item.directory, item.kind, found, item.runs)
        for item in everything
        if (found := tuple(entry for entry in item.found if _fits(entry, wanted)))
    ]
    return sorted(kept, key=lambda item: item.started_at, reverse=True)


def parsed(words: Iterable[str]) -> dict[str, str]:
    """Return filters by key.

    Raises:
        RefusedError: one is not KEY=VALUE.
    """
    wanted = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise RefusedError(
                f"{word} is neither a directory nor KEY=VALUE.",
                "Name the directory first, then what to look for: batch=12 status=failed.",
            )
        wanted[key] = value
    return wanted


def show(items: Sequence[Item], directory: Path, *, is_filtered: bool) -> None:
    """Print a table with a line for each item."""
    if not items:
        what = "Nothing like that" if is_filtered else "No run"
        console.show(Text(f"{what} lies below {directory}."))
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    for name in ("time", "kind", "choice", "status", "sequences/s", "path"):
        is_figure, may_fold = name == "sequences/s", name in {"choice", "status"}
        table.add_column(
            name,
            justify="right" if is_figure else "left",
            no_wrap=not may_fold,
            overflow="fold",
            min_width={"choice": _CHOICE_WIDTH, "status": 8}.get(name),
        )
    for item in items:
        count = f"{len(item.found)} of {item.runs}" if len(item.found) < item.runs else item.runs
        table.add_row(
            f"{item.started_at.astimezone():%Y-%m-%d %H:%M}",
            item.kind if item.kind == "run" else f"{item.kind} ({count})",
            Text(item.choice),
            Text(item.status),
            figures.number(item.throughput),
            Text(str(item.directory)),
        )
    console.show_table(table)


def _items(directory: Path) -> Iterator[Item]:
    """Yield what lies in ``directory`` or below it; what cannot be read is passed over."""
    if directories.is_run(directory):
        yield Item(directory, "run", (directories.read(directory),), 1)
        return
    try:
        children = directories.in_order(path for path in directory.iterdir() if path.is_dir())
    except OSError:
        return
    inside = [path for path in children if directories.is_run(path)]
    is_duel = (directory / "duel.json").exists()
    if inside and (is_duel or (directory / "multirun.yaml").exists()):
        found = tuple(map(directories.read, inside))
        yield Item(directory, "duel" if is_duel else "sweep", found, len(found))
        children = [path for path in children if path not in inside]
    for child in children:
        yield from _items(child)


def _fits(entry: Entry, wanted: Mapping[str, str]) -> bool:
    return all(
        value in (entry.options.get(key), entry.names.get(key))
        if key != "status"
        else value == entry.status
        for key, value in wanted.items()
    )


def _check_keys(wanted: Mapping[str, str], found: Iterable[Entry]) -> None:
    known = {"status", "weights", *options.groups(), *options.values()}
    known.update(key for entry in found for key in entry.options)
    for key in wanted:
        if key not in known:
            raise RefusedError(
                f"Runs cannot be found by {key}. There are: {', '.join(sorted(known))}.",
                nearest(key, known),
            )
