"""What a sweep shows while it goes on: a line for each finished run, and what goes on now."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.text import Text

from bert_infer import files
from bert_infer.console import OUT, between, number
from bert_infer.sweeps.plan import shared

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_LOOK_EVERY_S = 2.0
_STYLES = {"ok": "green", "drift_exceeded": "yellow", "failed": "red", "interrupted": "yellow"}


class Board:
    """Counts the runs of a sweep, each known by its overrides, and draws where they stand."""

    def __init__(self, runs: Sequence[Sequence[str]]) -> None:
        self._runs = len(runs)
        self._common = shared(runs)
        self._statuses: list[str] = []
        self._now: tuple[str, str] | None = None
        self._began = self._run_began = time.monotonic()

    def begin(self, overrides: Sequence[str]) -> None:
        """Note that a run begins."""
        self._run_began = time.monotonic()
        self._now = (self._described(overrides), "start")

    def phase(self, name: str) -> None:
        """Note the phase that the current run has entered."""
        if self._now:
            self._now = (self._now[0], name)

    def end(self, metrics: dict[str, Any]) -> None:
        """Print a line for a run that has ended."""
        what = self._now[0] if self._now else self._described(metrics["run"]["overrides"] or ())
        seconds = time.monotonic() - self._run_began if self._now else None
        self._now = None
        self._statuses.append(metrics["status"])
        _show_run(f"{len(self._statuses)}/{self._runs}", metrics, what, seconds)

    def lost(self, error: OSError) -> None:
        """Print that a run could leave no record."""
        self._now = None
        self._statuses.append("failed")
        OUT.print(Text(f"{len(self._statuses)}/{self._runs}  failed  no record: {error}", "red"))

    def _described(self, overrides: Sequence[str]) -> str:
        """Return the overrides that a run does not share with all others."""
        return shlex.join(o for o in overrides if o not in self._common)

    def __rich__(self) -> Text:
        """Return what goes on now, as rich draws it."""
        done, now = len(self._statuses), time.monotonic()
        failed = sum(status in {"failed", "interrupted"} for status in self._statuses)
        left = self._runs - done
        parts = [f"{done} done", *([f"{failed} of them failed"] if failed else []), f"{left} left"]
        if done:
            parts.append(f"about {_duration((now - self._began) / done * left)} to go")
        text = Text("  ".join(parts), "bold")
        if self._now:
            what, phase = self._now
            text.append(f"\nnow: {phase}, {_duration(now - self._run_began)}  {what}", "not bold")
        return text


@contextmanager
def drawn(board: Board) -> Iterator[Board]:
    """Draw ``board`` on a terminal, once a second, below the lines of finished runs."""
    if not sys.stdout.isatty():
        yield board
        return
    with Live(board, console=OUT, refresh_per_second=1, transient=True):
        yield board


@contextmanager
def followed(board: Board, directory: Path) -> Iterator[None]:
    """Print a line for each run that ends in ``directory``, whichever process makes it."""
    done = threading.Event()
    known = set(directory.glob("*/metrics.json"))

    def look() -> None:
        for path in sorted(set(directory.glob("*/metrics.json")) - known):
            known.add(path)
            board.end(files.read_json_object(path))

    def follow() -> None:
        while not done.wait(_LOOK_EVERY_S):
            look()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        look()


def _show_run(place: str, metrics: dict[str, Any], what: str, seconds: float | None) -> None:
    """Print a line about a run."""
    status, error = metrics["status"], metrics["error"]
    text = Text.assemble(f"{place:>9}  ", (f"{status:<11}", _STYLES.get(status, "")), "  ")
    throughput = metrics["throughput"]
    if throughput["sequences_per_s"] is not None:
        text.append(f"{number(throughput['sequences_per_s']):>9} sequences/s")
        text.append(f"{between(throughput['sequences_per_s_ci95'])}  ")
    if seconds is not None:
        text.append(f"{_duration(seconds)}  ")
    text.append(what or "as configured", "bold")
    if metrics["warnings"]:
        text.append(f"  ({', '.join(w['code'] for w in metrics['warnings'])})", "yellow")
    OUT.print(text)
    if error and status != "interrupted":
        OUT.print(Text(f"{'':11}{error['type']}: {error['message']} {error['remedy']}", "red"))


def _duration(seconds: float) -> str:
    if seconds < 100:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds)))
