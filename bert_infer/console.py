"""The console: what is printed to it, and how numbers are written there."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType
    from rich.table import Table


class _Console(Console):
    """Goes silent, rather than end the program, where it cannot write: closed pipe, full disk.

    Attributes:
        has_lost: whether something could not be written that somebody waits for.
    """

    has_lost = False

    def print(self, *objects: Any, **how: Any) -> None:  # noqa: ANN401  rich's own signature
        """Print, and say so once if that is no longer possible."""
        try:
            super().print(*objects, **how)
        except OSError as error:
            self.has_lost = not isinstance(error, BrokenPipeError)
            self.on_broken_pipe()
            sys.stderr.write(f"Standard output cannot be written: {error}.\n")

    def on_broken_pipe(self) -> None:
        """Discard all further output, also what Python flushes when it ends."""
        self.quiet = True
        discarding = os.open(os.devnull, os.O_WRONLY)
        os.dup2(discarding, self.file.fileno())
        os.close(discarding)


_WIDTH = None if sys.stdout and sys.stdout.isatty() else 120  # of what is piped
OUT = _Console(highlight=False, soft_wrap=True, width=_WIDTH)
_UNBOUNDED = 10_000  # columns
_DRAW_EVERY_S = 0.5
_FOUR_DIGITS = 9999.5  # from here on, rounded, no digit is left after the point
_ERR = _Console(stderr=True, highlight=False, soft_wrap=True)


def show_text(text: str) -> None:
    """Print ``text`` as it is."""
    OUT.print(Text(text))


def show(*renderables: RenderableType) -> None:
    """Print texts of rich."""
    OUT.print(*renderables)


def show_table(table: Table) -> None:
    """Print a table so wide that no cell is cut, though the terminal be narrower and wrap lines."""
    unbounded = OUT.options.update(width=_UNBOUNDED)
    for column in table.columns:  # rich would shrink each to its longest word, and further
        cells = (Measurement.get(OUT, unbounded, c) for c in (column.header, *column.cells))
        widths = [cell.maximum if column.no_wrap else cell.minimum for cell in cells]
        column.min_width = max(*widths, column.min_width or 0)
    least, most = Measurement.get(OUT, unbounded, table)
    table.width = max(least, min(most, OUT.width))
    OUT.print(table)


def show_directory(directory: object) -> None:
    """Print where the run's files are."""
    OUT.print(Text(str(directory)))


class Bar:
    """What goes on now and how far it is, on a terminal only.

    It draws when told, progress at most twice a second: a thread would take time from measured
    forwards.
    """

    def __init__(self, drawing: Progress, doing: str) -> None:
        self._drawing, self._drawn = drawing, 0.0
        self._task = drawing.add_task(doing, total=None)

    def phase(self, name: str) -> None:
        """Show that ``name`` begins."""
        self._drawing.update(self._task, description=name, refresh=True)

    def progress(self, done: int, total: int | None) -> None:
        """Show how many are done, and of how many where that is known."""
        self._drawing.update(self._task, completed=done, total=total)
        if (now := self._drawing.get_time()) - self._drawn > _DRAW_EVERY_S:
            self._drawn = now
            self._drawing.refresh()


@contextmanager
def progress_bar(doing: str) -> Iterator[Bar]:
    """Draw a bar until the block ends, if there is a terminal."""
    with Progress(
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        TimeRemainingColumn(),
        console=_ERR,
        transient=True,
        auto_refresh=False,
        disable=not (sys.stdout.isatty() and sys.stderr.isatty()),
    ) as drawing:
        yield Bar(drawing, doing)


def between(interval: Sequence[float] | None) -> str:
    """Return an interval in brackets, with a space before it; nothing where there is none."""
    if interval is None:
        return ""
    return f" [{number(interval[0])} to {number(interval[1])}]"


def number(value: float | None) -> str:
    """Return four significant digits, or all digits before the point where there are more."""
    if value is None:
        return "unknown"
    return f"{value:,.4g}" if abs(value) < _FOUR_DIGITS else f"{value:,.0f}"
