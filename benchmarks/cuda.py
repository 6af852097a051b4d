"""Ours and transformers on one NVIDIA GPU, measured in one sitting.

    python benchmarks/cuda.py [--dtypes bf16,fp16,tf32,fp8] [--graphs eager,compile,cuda_graphs]
        [--workloads throughput,latency] [--max-tokens N] [--also "OVERRIDES"] [--rounds N]
        [--results DIRECTORY]
    python benchmarks/cuda.py --device cpu --model tiny --sequences 60    # a dry run

Every engine holds BERT-Large with the same random weights in a process of its own, and waits
blocked until it is told to measure. A round asks each once, and dense matmuls on random numbers in
each dtype, the ceiling; the order turns round with every round, and ratios are of turns in the same
round. An engine that cannot take part is a row that says why.

Throughput is of 10,833 sequences of lognormal length: from token ids in host memory to outputs in
host memory, sorting, packing and padding included. Ours brings every token's hidden state and the
pooled output there; transformers, and ours once more by engine=fused_cls, the first tokens' states
and the pooled output. Latency is of one sequence: host to host, and of the forward alone,
synchronised at both ends. Outputs are compared with transformers in fp32 on the processor: the
first tokens' states of some sequences.

Results go to DATE-CARD.json in --results, by default benchmarks/results, which never replaces an
earlier file: a second sitting of a day is DATE-CARD-2.json.

By default bf16 and fp8 are measured, eager and by CUDA graphs; all dtypes and graph modes take
several times as long. That is likely more than 10 minutes. Where a command may not take as long,
each workload is a sitting of its own, and its table is kept as soon as it is there:

    python benchmarks/cuda.py --workloads throughput --results DIRECTORY
    python benchmarks/cuda.py --workloads latency --results DIRECTORY

All engines are on the card at once, each with a CUDA context: some 4 GB each at the worst.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peer_card import OnCard
from peer_engines import Files, Ours, Workload
from peer_inputs import (
    MODELS,
    first_state,
    once,
    reference,
    some_of,
    surroundings,
    tokens_of,
    write_model,
)
from peer_rounds import Entry, Roof, likeness, measure
from peer_tables import (
    Columns,
    Row,
    Table,
    caption,
    cosine,
    mebibytes,
    of_ceiling,
    ratio,
    useful_gflop_per_s,
)
from peer_workers import FailedError

from bert_infer.files import at, write_json
from bert_infer.models.architecture import Architecture
from bert_infer.outputs import Pooled, Pooling

if TYPE_CHECKING:
    from bert_infer.outputs import Texts
    from bert_infer.records import Tokens

RESULTS = Path(__file__).parent / "results"
BASELINE = "transformers"
COMPARED = 32

DTYPES = ("bf16", "fp16", "tf32", "fp8")
GRAPHS = ("eager", "compile", "cuda_graphs")
WORKLOADS = ("throughput", "latency")
LATENCY_TOKENS = (5, 128)

MAX_TOKENS = 33_792
"""256 for each of an H200's 132 multiprocessors: tiles of a matmul fill whole rounds of them."""
MLPERF_DEV_SEQUENCES = 10_833
MLPERF_FP8_PER_S = 8_165
"""Sequences a second of BERT-Large on SQuAD v1.1 by one H200, FP8: MLPerf Inference v4.1, closed,
Offline."""
SQUAD_WIDTH, SQUAD_PADDING = 384, 0.54
"""Padding is 54 % of SQuAD v1.1's tokens at a width of 384 (https://openreview.net/forum?id=3nzKUh9a4M);
what remains is taken as the mean length of MLPerf's sequences, which nobody publishes."""
SQUAD_MEAN_TOKENS = round(SQUAD_WIDTH * (1 - SQUAD_PADDING))


def first_states(tokens: Tokens) -> tuple[Texts, ...]:
    """Keep the first token's state of the sequences that are compared."""
    return (Pooled(tokens, Pooling.cls, range(min(COMPARED, tokens.texts))),)


def entries_of(arguments: argparse.Namespace) -> list[Entry]:
    """Return who takes part, the baseline first."""
    packed = f"batching=packed batching.max_tokens={arguments.max_tokens}"
    budget = f"batching=token_budget batching.max_tokens={arguments.max_tokens}"
    choices = {
        f"ours, {dtype}, {graph}": f"engine=fused {packed} dtype={dtype} graph={graph}"
        for dtype in arguments.dtypes
        for graph in arguments.graphs
    }
    choices |= {
        f"ours, {dtype}, {arguments.graphs[-1]}, first tokens alone": (
            f"engine=fused_cls {packed} dtype={dtype} graph={arguments.graphs[-1]}"
        )
        for dtype in arguments.dtypes
    }
    if "bf16" in arguments.dtypes:
        by_transformers = f"engine=transformers {budget} dtype=bf16 graph=eager"
        choices["ours, bf16, eager, transformers engine"] = by_transformers
    choices |= {f"ours, {overrides}": overrides for overrides in arguments.also}
    entries = [Entry(name=BASELINE, dtype="bf16", engine=OnCard())]
    for number, (label, overrides) in enumerate(choices.items()):
        dtype = dtype_of(overrides)
        engine = Ours(label, {dtype: overrides}, first_states)
        entries.append(Entry(name=f"ours-{number}", dtype=dtype, engine=engine))
    return entries


def dtype_of(overrides: str) -> str:
    """Return the dtype that overrides choose; the runner's own default without one."""
    chosen = re.findall(r"(?:^|\s)dtype=(\w+)", overrides)
    return chosen[-1] if chosen else "fp32"


def workloads_of(arguments: argparse.Namespace, model: Path) -> list[Workload]:
    """Return what was asked for, tokenised as ours does."""
    ragged = ("input=synthetic", f"input.texts={arguments.sequences}")
    lengths = ("input=synthetic", "input.texts=1", "input.lengths=fixed", "input.min=1")
    # One forward has no other to overlap with: its time is from synchronisation to synchronisation.
    alone = ("device.in_flight=1",) if arguments.device == "cuda" else ()
    found = []
    if "throughput" in arguments.workloads:
        found.append(Workload("throughput", ragged, tokens_of(model, *ragged), compared=COMPARED))
    if "latency" in arguments.workloads:
        for tokens in LATENCY_TOKENS:
            overrides = (*lengths, f"input.max={tokens}")
            found.append(
                Workload(
                    f"latency, {tokens} tokens",
                    (*overrides, *alone),
                    tokens_of(model, *overrides),
                    is_latency=True,
                )
            )
    return found


def columns_of(table: Table, squad_flop: int) -> Columns:
    """Return what there is to say of a workload."""
    baseline = table.of(BASELINE)
    common: Columns = {
        "times transformers": lambda row: ratio(row, baseline),
        "cosine": cosine,
        "device MiB": lambda row: mebibytes(said(row, "memory.peak_device_bytes")),
        "compile and capture, s": lambda row: seconds(said(row, "phases_s.compile")),
        "warm-up, s": lambda row: seconds(said(row, "phases_s.warmup")),
    }
    if table.workload.is_latency:
        return {
            "host to host, ms": lambda row: f"{row.seconds * 1e3:,.3f}",
            "forward, ms": lambda row: milliseconds(said(row, "latency_ms.p50")),
            **common,
        }
    sequences = len(table.workload.tokens)
    return {
        "sequences/s": lambda row: f"{sequences / row.seconds:,.0f}",
        "useful GFLOP/s": partial(useful_gflop_per_s, table),
        "of the ceiling": partial(of_ceiling, table),
        "SQuAD's, scaled, /s": lambda row: f"{table.flop_of(row) / row.seconds / squad_flop:,.0f}",
        **common,
    }


def said(row: Row, key: str) -> Any:  # noqa: ANN401  whatever JSON holds
    """Return what an engine says of itself, by the dotted name in metrics.json."""
    return at(row.found or {}, key)


def seconds(value: float | None) -> str:
    """Return seconds."""
    return "-" if value is None else f"{value:,.1f}"


def milliseconds(value: float | None) -> str:
    """Return milliseconds."""
    return "-" if value is None else f"{value:,.3f}"


def squad_sequence_flop(mean_tokens: float, tokens: Tokens, architecture: Architecture) -> int:
    """Return the useful FLOP of one of SQuAD's sequences, on average.

    Attention takes the mean of squared lengths, which nobody publishes either: lengths are taken to
    be spread about their mean as ``tokens`` are about theirs. It is 3 % of the work.
    """
    lengths = tokens.lengths * (mean_tokens / tokens.lengths.mean())
    return architecture.useful_flop(lengths) // len(lengths)


def scaling(mean_tokens: float, table: Table, squad_flop: int) -> str:
    """Return how figures are scaled, as prose."""
    ours = table.flop / len(table.workload.tokens)
    return (
        f"Scaled to SQuAD v1.1: sequences/s times {ours / squad_flop:.4f}, the useful FLOP of a "
        f"sequence here ({ours / 1e9:,.2f} G) over those of one of SQuAD's "
        f"({squad_flop / 1e9:,.2f} G). Assumed: a mean of {mean_tokens:g} tokens, "
        "spread about it as the lengths here. "
        f"Published for one H200 in FP8, BERT-Large: {MLPERF_FP8_PER_S:,} sequences/s (MLPerf "
        "Inference v4.1, closed, Offline).\n"
    )


def sitting(arguments: argparse.Namespace, scratch: Path) -> None:
    """Measure everything asked for; print and keep each table as soon as it is there."""
    model = scratch / "model"
    model.mkdir()
    kind = once(write_model, arguments.model, model, log=scratch / "model.log")
    files = Files(model, scratch, device=arguments.device)
    environment = once(surroundings, files, log=scratch / "surroundings.log")
    about: dict[str, Any] = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "is_dry_run": arguments.device != "cuda",
        "arguments": {k: v for k, v in vars(arguments).items() if k != "results"},
        "model": arguments.model,
        "weights": kind,
        "environment": environment,
        "tables": [],
    }
    path = reserved(arguments.results, about)
    print(heading(about))
    workloads = workloads_of(arguments, model)
    config = json.loads((model / "config.json").read_text("utf-8"))
    architecture = Architecture(config)
    expected = once(reference, files, workloads, first_state, log=scratch / "reference.log")
    entries = entries_of(arguments)
    roofs = [Roof(dtype=dtype) for dtype in dict.fromkeys(entry.dtype for entry in entries)]
    with ExitStack() as stack:
        for workload in workloads:
            for asked in (*entries, *roofs):
                if asked.worker is None:  # what failed with another workload may do this one
                    asked.load(files, stack)
            goal = expected[workload.name]
            rows, around = measure(entries, roofs, workload, arguments.rounds, goal)
            flop = architecture.useful_flop(workload.tokens.lengths)
            table = Table(workload, flop, rows, around)
            squad = squad_sequence_flop(arguments.squad_mean_tokens, workload.tokens, architecture)
            print(caption(f"{arguments.model}, {workload.name}", table, likeness(goal)))
            if not workload.is_latency:
                print(scaling(arguments.squad_mean_tokens, table, squad))
            print(table.markdown(columns_of(table, squad)), flush=True)
            about["tables"].append(table.as_json() | {"squad_flop_per_sequence": squad})
            write_json(path, about)  # a later one may fail
    print(f"\n{path}")


def reserved(directory: Path, about: dict[str, Any]) -> Path:
    """Make the file that results go to, by a name that no other has."""
    directory.mkdir(parents=True, exist_ok=True)
    device = about["environment"]["device"]["name"] or about["environment"]["cpu"]["model"]
    card = re.sub(r"\W+", "-", device or "unknown").strip("-").lower()
    name = f"{about['started_at'][:10]}-{'dry-run-' if about['is_dry_run'] else ''}{card}"
    for number in count(1):
        path = directory / (f"{name}.json" if number == 1 else f"{name}-{number}.json")
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        break
    write_json(path, about)
    return path


def heading(about: dict[str, Any]) -> str:
    """Return where this is measured, as prose."""
    environment = about["environment"]
    device, software = environment["device"], environment["software"]
    dry = "A dry run, whose figures mean nothing. " if about["is_dry_run"] else ""
    return (
        f"{dry}{about['started_at']}, {about['model']}, {about['weights']} weights, on "
        f"{device['name'] or environment['cpu']['model']}, driver {device['driver']}, CUDA "
        f"{device.get('cuda')}, torch {software['torch']}, transformers "
        f"{software['transformers']}, commit {environment['git_commit']}."
    )


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", type=some_of(DTYPES), default=["bf16", "fp8"])
    parser.add_argument("--graphs", type=some_of(GRAPHS), default=["eager", "cuda_graphs"])
    parser.add_argument("--workloads", type=some_of(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, help="in a batch of ours")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="OVERRIDES",
        help="one more configuration of ours, such as 'engine=fused dtype=bf16 graph=compile "
        "graph.mode=max_autotune'; may be given again",
    )
    parser.add_argument("--sequences", type=int, default=MLPERF_DEV_SEQUENCES)
    parser.add_argument("--squad-mean-tokens", type=float, default=SQUAD_MEAN_TOKENS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=list(MODELS), default="bert-large-uncased")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIRECTORY")
    arguments = parser.parse_args()
    # Before any process starts: they inherit it.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as directory:
        try:
            sitting(arguments, Path(directory))
        except FailedError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
