"""Duels of a configuration with itself: how often a difference is shown where there is none.

python benchmarks/self_duel.py [DUELS] [KEY=VALUE ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from bert_infer.duel import CONFIDENCE, fight

ROUNDS = 7


def main(duels: int, overrides: list[str]) -> None:
    """Print a line for each duel, and how many showed a difference."""
    shown = 0
    with tempfile.TemporaryDirectory() as directory:
        for number in range(duels):
            outcome, _ = fight(overrides, overrides, ROUNDS, Path(directory) / str(number))
            low, high = outcome.interval
            shown += not low <= 1 <= high
            print(
                f"{number + 1:>3}  ratio {outcome.ratio:.4f}, {CONFIDENCE:.0%} interval "
                f"{low:.4f} to {high:.4f}  {outcome.sentence}",
                flush=True,
            )
    print(f"{shown} of {duels} showed a difference")


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if sys.argv[1:] else 10,
        sys.argv[2:] or ["model=minilm", "text=Good morning BERT!", "batch=4", "iterations=3"],
    )
