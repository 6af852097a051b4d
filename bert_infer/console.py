"""What a run shows on the console."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType

    from bert_infer.duel import Duel
    from bert_infer.files.runs import Run
    from bert_infer.processes.worker import Finished, Glimpse
    from bert_infer.records import Caveat
    from bert_infer.report.comparison import Comparison
    from bert_infer.running.execution import ShowProgress


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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_WIDTH = None if sys.stdout and sys.stdout.isatty() else 120  # of what is piped
OUT = _Console(highlight=False, soft_wrap=True, width=_WIDTH)
_UNBOUNDED = 10_000  # columns
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


def show_run(finished: Finished, directory: object) -> None:
    """Print what a run computed and measured, why it failed if it did, and where its files are."""
    if finished.outputs:
        show_outputs(finished.outputs)
        show_metrics(finished.metrics)
    if error := finished.metrics["error"]:
        sys.stderr.write("The run failed. {type}: {message}\n  {remedy}\n".format(**error))
    show_directory(directory)


def show_outputs(outputs: Sequence[Glimpse]) -> None:
    """Print the shape, type and first and last values of what the last forward computed."""
    for glimpse in outputs:
        OUT.print(
            Text.assemble((glimpse.title, "bold"), f"  {list(glimpse.shape)}  {glimpse.dtype}")
        )
        OUT.print(Text(f"  first  {_ends(glimpse.first)}\n  last   {_ends(glimpse.last)}"))


def show_metrics(metrics: dict[str, Any]) -> None:
    """Print the metrics as a table, then the warnings."""
    choice, workload, latency = metrics["choice"], metrics["workload"], metrics["latency_ms"]
    throughput, compute, memory = metrics["throughput"], metrics["compute"], metrics["memory"]
    how = " ".join(
        f"{key}={choice[key]}" for key in ("dtype", "batching", "device", "engine", "graph")
    )
    if choice.get("batching.max_tokens"):
        how += f" batching.max_tokens={choice['batching.max_tokens']}"
    length = workload["length"]
    rows = {
        "model": f"{choice['model']}, {choice['weights']} weights",
        "choice": how,
        "workload": f"texts {workload['texts']}, sequences {workload['sequences']}, "
        f"forwards {workload['forwards_per_pass']}, iterations {choice['iterations']}",
        "tokens": f"{workload['real_tokens']} real, {workload['padded_tokens']} padded "
        f"({workload['padding_waste']:.1%} waste), length {length['min']} to {length['max']}",
        "latency": f"{number(latency['p50'])} ms a forward{between(latency['p50_ci95'])} "
        f"(median of {latency['samples']}; min {number(latency['min'])}, "
        f"max {number(latency['max'])})",
        "throughput": f"{number(throughput['sequences_per_s'])} sequences/s"
        f"{between(throughput['sequences_per_s_ci95'])}, "
        f"{number(throughput['real_tokens_per_s'])} real tokens/s",
        "compute": f"{number(_scaled(compute['useful_flop_per_s'], 1e-9))} useful GFLOP/s, "
        f"{number(_scaled(compute['fraction_of_ceiling'], 100))} % of the ceiling of "
        f"{number(_scaled(compute['ceiling_flop_per_s'], 1e-9))}",
        **({"drift": _drift(metrics["drift"])} if metrics["drift"] else {}),
        "memory": f"{number(_scaled(memory['peak_host_bytes'], 2**-20))} MiB peak on the host, "
        f"{number(_scaled(memory['peak_device_bytes'], 2**-20))} on the device",
        "phases": ", ".join(
            f"{name} {seconds:.2f} s"
            for name, seconds in metrics["phases_s"].items()
            if seconds is not None
        ),
    }
    for name, value in rows.items():
        OUT.print(Text.assemble((f"{name:<12}", "bold"), value))
    for warning in metrics["warnings"]:
        OUT.print(Text(f"Warning: {warning['message']} {warning['remedy']}", "yellow"))


def show_comparisons(comparisons: Sequence[Comparison], left_out: Sequence[str]) -> None:
    """Print a table of runs against their baseline, then what else differed between them."""
    pairs = [run for comparison in comparisons for run in (comparison.baseline, comparison.run)]
    numbers = {run: str(place) for place, run in enumerate(dict.fromkeys(pairs), start=1)}
    for run, place in numbers.items():
        OUT.print(Text(f"{place:>3}  {run.directory}"))
    table = Table(
        "run", "sequences/s", "95 %", "against", "ratio", "95 %", "verdict", box=box.SIMPLE
    )
    for baseline in dict.fromkeys(comparison.baseline for comparison in comparisons):
        table.add_row(numbers[baseline], *_throughput(baseline))
        for comparison in comparisons:
            if comparison.baseline is baseline:
                table.add_row(
                    numbers[comparison.run],
                    *_throughput(comparison.run),
                    numbers[baseline],
                    f"{comparison.ratio:.3f}",
                    between(comparison.interval).strip(" []"),
                    comparison.verdict,
                )
    show_table(table)
    for comparison in comparisons:
        if comparison.differences:
            pair = f"{numbers[comparison.baseline]} | {numbers[comparison.run]}"
            OUT.print(Text(f"What else differs, {pair}:", "bold"))
        for line in comparison.differences:
            OUT.print(Text(f"  {line}"))
    for run_left in left_out:
        OUT.print(Text(f"Left out, not measured to its end: {run_left}", "yellow"))
    OUT.print(
        Text(
            "The intervals know the spread within each run, and not what changed on the machine "
            "between two runs; `duel` measures two configurations in turn."
        )
    )


def _throughput(run: Run) -> tuple[str, str]:
    interval = run.metrics["throughput"]["sequences_per_s_ci95"]
    return number(run.sequences_per_s), between(interval).strip(" []")


def show_duel(duel: Duel, a: str, b: str) -> None:
    """Print each round of a duel, and what it shows."""
    table = Table(box=box.SIMPLE)
    for name in ("round", f"A: {a}", f"B: {b}", "B over A"):
        table.add_column(Text(name))
    for place, ((first, second), ratio) in enumerate(
        zip(duel.turns, duel.ratios, strict=True), start=1
    ):
        cells = (number(side.sequences_per_s) for side in (first, second))
        table.add_row(str(place), *cells, f"{ratio:.3f}")
    show_table(table)
    low, high = duel.interval
    of_pairs = f" (of {len(duel.of_pairs)} pairs of processes)" if duel.is_by_pairs else ""
    interval = f"99 % interval {low:.3f} to {high:.3f}{of_pairs}"
    OUT.print(Text(f"B over A in sequences/s: {duel.ratio:.3f}, {interval}"))
    OUT.print(Text(duel.sentence, "bold"))


def show_warnings(of_sides: Mapping[str, Sequence[Caveat]]) -> None:
    """Print what the sides of a duel warn of, once where several say the same."""
    said: dict[Caveat, list[str]] = {}
    for side, warnings in of_sides.items():
        for warning in warnings:
            said.setdefault(warning, []).append(side)
    for warning, sides in said.items():
        where = " and ".join(sides)
        OUT.print(Text(f"Warning, {where}: {warning.message} {warning.remedy}", "yellow"))


def show_directory(directory: object) -> None:
    """Print where the run's files are."""
    OUT.print(Text(str(directory)))


@contextmanager
def progress_bar() -> Iterator[ShowProgress]:
    """Yield a function to call with the forwards done and in all; it draws on a terminal only.

    It draws when called, at most twice a second; a thread would take time from measured forwards.
    """
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield lambda _done, _total: None
        return
    bar = Progress(
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=_ERR,
        transient=True,
        auto_refresh=False,
    )
    task = bar.add_task("measuring")
    drawn = 0.0
    with bar:

        def update(done: int, total: int | None) -> None:
            nonlocal drawn
            bar.update(task, completed=done, total=total)
            if (now := bar.get_time()) - drawn > 0.5:  # noqa: PLR2004  seconds
                drawn = now
                bar.refresh()

        yield update


def _ends(six: Sequence[float]) -> str:
    values = [f"{value:+.4f}" for value in six]
    return f"[{', '.join(values[:3])}, ..., {', '.join(values[3:])}]"


def between(interval: Sequence[float] | None) -> str:
    """Return an interval in brackets, with a space before it; nothing where there is none."""
    if interval is None:
        return ""
    return f" [{number(interval[0])} to {number(interval[1])}]"


def _drift(drift: dict[str, Any]) -> str:
    first = "first tokens' " if drift["tokens"] == "first" else ""
    return (
        f"{first}cosine to fp32 {_fraction(drift['min_cosine'])} at least, "
        f"{_fraction(drift['mean_cosine'])} on average; pooled "
        f"{_fraction(drift['pooled_min_cosine'])} at least (texts: {drift['texts']})"
    )


def _fraction(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6f}"


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def number(value: float | None) -> str:
    """Return four significant digits, or all digits before the point where there are more."""
    if value is None:
        return "unknown"
    return f"{value:,.4g}" if abs(value) < _FOUR_DIGITS else f"{value:,.0f}"
