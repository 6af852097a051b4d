"""How long a user waits: ``--help``, a refused option, and the default run of BERT-Large.

    python benchmarks/start.py [ROUNDS]

Whole processes, from command to exit; the median of ROUNDS (5) after one that is not counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = Path(__file__).parent.parent / "run.py"
COMMANDS = {
    "--help": (0, ["--help"]),
    "dtype=bf61 (refused)": (2, ["dtype=bf61"]),
    "BERT-Large, offline": (0, []),
    "the same, fused engine": (0, ["engine=fused", "drift.texts=0"]),
}


def seconds(arguments: list[str], expected: int, directory: str) -> float:
    """Run the command in ``directory`` and return the seconds it took."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(RUN), *arguments],
        cwd=directory,
        capture_output=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    elapsed = time.perf_counter() - start
    if done.returncode != expected:
        raise SystemExit(done.stderr.decode())
    return elapsed


def main(rounds: int) -> None:
    """Print a line for each command."""
    with tempfile.TemporaryDirectory() as directory:
        for name, (expected, arguments) in COMMANDS.items():
            taken = [seconds(arguments, expected, directory) for _ in range(rounds + 1)][1:]
            median, low, high = statistics.median(taken), min(taken), max(taken)
            print(f"{name:<22} {median:6.2f} s  ({low:.2f} to {high:.2f}, {rounds} rounds)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 5)
