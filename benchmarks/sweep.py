"""What a sweep costs besides its runs: 200 runs of a tiny model, one process each.

python benchmarks/sweep.py [--runs N]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUN = Path(__file__).parent.parent / "run.py"


def main() -> None:
    """Make the sweep, and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs
    batches = ",".join(map(str, range(1, runs + 1)))
    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(RUN), "--multirun", "model=tiny", f"batch={batches}"],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - began
        records = len(list(Path(directory).rglob("metrics.json")))
    if done.returncode or records != runs:
        sys.exit(f"{records} of {runs} runs have a record; exit code {done.returncode}.")
    print(f"{runs} runs in {seconds:.1f} s, {seconds / runs:.2f} s each")


if __name__ == "__main__":
    main()
