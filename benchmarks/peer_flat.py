"""Our cost of a token, as the input grows."""

from __future__ import annotations

import statistics
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from peer_engines import Files, Ours, Workload, nothing
from peer_inputs import once, tokens_of, write_model
from peer_rounds import say
from peer_tables import heading, machine
from peer_workers import MEASURE, FailedError, Worker, serve

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping
    from pathlib import Path

FLAT_TEXTS = (1_000, 10_000, 50_000)
# Shorter than a model takes, so that 50,000 of them are minutes and not an hour.
FLAT_LENGTHS = ("input.mu=3.0", "input.sigma=0.5", "input.min=4", "input.max=64")


def flat(
    arguments: argparse.Namespace,
    engines: Mapping[str, Ours],
    scratch: Path,
    save: Callable[[dict[str, Any]], None],
) -> None:
    """Measure our cost of a token as the input grows."""
    model = scratch / "model"
    model.mkdir()
    kind = once(write_model, "minilm", model, log=scratch / "model.log")
    workloads = []
    for texts in FLAT_TEXTS:
        overrides = ("input=synthetic", f"input.texts={texts}", *FLAT_LENGTHS)
        workloads.append(Workload(f"{texts:,} texts", overrides, tokens_of(model, *overrides)))
    files = Files(model, scratch)
    about = machine() | {"model": "minilm", "weights": kind, "flat": {}}
    print(heading(about))
    for dtype in arguments.dtypes:
        for name, engine in engines.items():
            print(f"\n### {dtype}, {engine.label}\n")
            try:
                turns = _flat(engine, dtype, workloads, files, arguments.rounds)
                about["flat"][f"{name} {dtype}"] = turns
                save(about)
            except FailedError as error:
                print(f"not measured: {error}")


def _flat(
    engine: Ours, dtype: str, workloads: list[Workload], files: Files, rounds: int
) -> dict[str, Any]:
    engine.check(dtype)
    engine = Ours(engine.label, engine.choices, nothing)
    turns: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    with ExitStack() as stack:
        workers = []
        for workload in workloads:
            log = files.scratch / f"{dtype}-{workload.name}.log"
            worker = stack.enter_context(Worker(serve, engine, files, dtype, log=log))
            worker.answer()
            say(f"{workload.name}: warming up")
            worker.ask(workload)
            workers.append((workload, worker))
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for workload, worker in workers if number % 2 == 0 else workers[::-1]:
                turns[workload.name].append(statistics.mean(worker.ask(MEASURE)))
                worker.rests()
        peaks = [worker.peak_bytes() for _, worker in workers]
    print("| input | real tokens | microseconds a token | to the smallest | peak MiB |")
    print("|---|---|---|---|---|")
    first = None
    for workload, peak in zip(workloads, peaks, strict=True):
        costs = np.array(turns[workload.name]) / workload.tokens.lengths.sum() * 1e6
        first = costs if first is None else first
        ratios = costs / first
        print(
            f"| {workload.name} | {workload.tokens.lengths.sum():,} | {np.median(costs):,.3f} "
            f"| {np.exp(np.log(ratios).mean()):.3f} ({ratios.min():.3f} to {ratios.max():.3f}) "
            f"| {'-' if peak is None else f'{peak / 2**20:,.0f}'} |",
            flush=True,
        )
    return turns
