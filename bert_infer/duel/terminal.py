"""A duel on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from bert_infer import console

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bert_infer.duel import Duel
    from bert_infer.records import Caveat


def show(duel: Duel, a: str, b: str) -> None:
    """Print each round of a duel, and what it shows."""
    table = Table(box=box.SIMPLE)
    for name in ("round", f"A: {a}", f"B: {b}", "B over A"):
        table.add_column(Text(name))
    for place, ((first, second), ratio) in enumerate(
        zip(duel.turns, duel.ratios, strict=True), start=1
    ):
        cells = (console.number(side.sequences_per_s) for side in (first, second))
        table.add_row(str(place), *cells, f"{ratio:.3f}")
    console.show_table(table)
    low, high = duel.interval
    pairs, of_what = len(duel.of_pairs), ""
    if duel.is_by_pairs:
        of_what = f" (of {pairs} pairs of processes)"
    elif pairs > 1:
        of_what = f" (of the rounds; {pairs} pairs do not tell what processes differ by)"
    interval = f"99 % interval {low:.3f} to {high:.3f}{of_what}"
    console.show(Text(f"B over A in sequences/s: {duel.ratio:.3f}, {interval}"))
    console.show(Text(duel.sentence, "bold"))


def show_warnings(of_sides: Mapping[str, Sequence[Caveat]]) -> None:
    """Print what the sides of a duel warn of, once where several processes or both sides do."""
    said: dict[tuple[Caveat, int], list[str]] = {}
    for side, warnings in of_sides.items():
        of_code: dict[str, list[Caveat]] = {}
        for warning in warnings:
            of_code.setdefault(warning.code, []).append(warning)
        for first, *others in of_code.values():
            said.setdefault((first, len(others)), []).append(side)
    for (warning, count), sides in said.items():
        where = " and ".join(sides)
        more = f" ({count} more like it.)" if count else ""
        console.show(Text(f"Warning, {where}: {warning.message} {warning.remedy}{more}", "yellow"))
