"""Ours and what a user would run instead, measured in one sitting.

    pip install -e ".[peers]"
    python benchmarks/peers.py [--dtypes fp32,bf16,int8] [--engines ours,openvino,...]
        [--workloads ragged,manual,prompt] [--rounds N] [--model NAME] [--json FILE]
    python benchmarks/peers.py --flat [--dtypes fp32] [--rounds N]

Every engine loads the same weights in a process of its own, on all allowed cores, and waits blocked
until it is told to measure. A round asks each engine once, and the dense matmul ceiling; the order
turns round with every round. A turn is a pass, or as many as half a second holds: from token ids
in host memory to every sequence's hidden states in host memory, tokenising excluded, sorting and
padding included. Ratios are of turns in the same round, peak memory is since the process started.
An engine that cannot take part is a row that says why.

BERT-Large takes 10 GB in the directory for temporary files, where conversions go, and 20 GB of
memory: engines are loaded one dtype at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from manual_text import paragraphs
from peer_engines import (
    THREADS,
    Compiled,
    CTranslate2,
    Engine,
    Files,
    OnnxRuntime,
    OpenVino,
    Ours,
    SentenceTransformers,
    Transformers,
    VendorsWay,
    Workload,
    bert,
    torch_forward,
)
from peer_workers import MEASURE, OUTPUTS, STOP, FailedError, Worker, convert, others_share, serve

from bert_infer import compose
from bert_infer.architecture import Architecture
from bert_infer.environment import cpu_flags
from bert_infer.metrics import useful_flop
from bert_infer.tokens import BUNDLED_VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from bert_infer.records import Tokens

DTYPES = ("fp32", "bf16", "int8")

OURS = {
    "fp32": "engine=fused batching=packed dtype=fp32",
    "bf16": "engine=fused batching=packed dtype=bf16",
    "int8": "engine=fused batching=packed dtype=int8",
}
OURS_BY_TRANSFORMERS = {
    "fp32": "engine=transformers batching=token_budget batching.max_tokens=1024 dtype=fp32",
    "bf16": "engine=transformers batching=token_budget batching.max_tokens=1024 dtype=bf16",
}

VENDOR = "vendor"
ENGINES: dict[str, Engine] = {
    "ours": Ours("ours", OURS),
    "ours-transformers": Ours("ours, transformers engine", OURS_BY_TRANSFORMERS),
    VENDOR: VendorsWay(),
    "transformers": Transformers(),
    "compile": Compiled(),
    "onnxruntime": OnnxRuntime(),
    "openvino": OpenVino(4),
    "openvino-1": OpenVino(1),
    "ctranslate2": CTranslate2(),
    "sentence-transformers": SentenceTransformers(),
}

MODELS = {
    # Random even where the hub is at hand: everyone measures the same weights.
    "bert-large-uncased": ("model=bert-large-uncased", "model.weights=random", "seed=0"),
    "minilm": ("model=minilm",),
    "tiny": ("model=tiny", "seed=0"),
}
WORKLOADS = ("ragged", "manual", "prompt")
PARAGRAPHS = 40
FLAT_TEXTS = (1_000, 10_000, 50_000)
# Shorter than a model takes, so that 50,000 of them are minutes and not an hour.
FLAT_LENGTHS = ("input.mu=3.0", "input.sigma=0.5", "input.min=4", "input.max=64")

_PACKAGES = (
    *("bert-infer", "torch", "transformers", "onnxruntime", "onnx", "openvino", "nncf"),
    *("ctranslate2", "sentence-transformers", "numpy"),
)
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


@dataclass(eq=False)
class Entry:
    """One engine in one dtype; it is filled as the sitting goes on.

    Attributes:
        worker: None once it cannot go on, for the reason in ``failure``.
    """

    name: str
    engine: Engine
    worker: Worker | None = None
    failure: str | None = None

    def ask(self, question: object) -> Any:  # noqa: ANN401  each question has its own answer
        """Return the answer; None, once and for all, where there is none."""
        if self.worker is None:
            return None
        try:
            return self.worker.ask(question)
        except FailedError as error:
            self.failure, self.worker = str(error), None
            return None


@dataclass(eq=False)
class Row:
    """What one engine did with one workload.

    Attributes:
        turns: the seconds of each pass, by turn.
        cosine: the smallest of its sequences' to the reference.
        rested: whether it left the processor to others between its turns.
    """

    name: str
    label: str
    is_ours: bool
    turns: list[list[float]] = field(default_factory=list)
    cosine: float | None = None
    peak_bytes: int | None = None
    rested: bool = True
    failure: str | None = None

    @property
    def by_round(self) -> NDArray[np.float64]:
        """The mean seconds of a pass, by round."""
        return np.array([statistics.mean(turn) for turn in self.turns])

    @property
    def seconds(self) -> float:
        """The median seconds of a pass."""
        return float(np.median(self.by_round))


@dataclass(frozen=True, eq=False)
class Surroundings:
    """What the machine was like, by round.

    Attributes:
        ceiling: the dense matmul rate, in FLOP/s.
        others: the part of the processor that other programs had.
    """

    ceiling: list[float]
    others: list[float]


@dataclass(frozen=True, eq=False)
class Table:
    """One workload in one dtype."""

    dtype: str
    workload: Workload
    flop: int
    rows: list[Row]
    around: Surroundings

    def ranked(self) -> list[Row]:
        """Return those that were measured, best first."""
        return sorted((row for row in self.rows if not row.failure), key=lambda row: row.seconds)

    def as_json(self) -> dict[str, Any]:
        """Return everything measured."""
        return {
            "dtype": self.dtype,
            "workload": self.workload.name,
            "lengths": self.workload.tokens.lengths.tolist(),
            "useful_flop": self.flop,
            "ceiling_flop_per_s": self.around.ceiling,
            "others_share_of_processor": self.around.others,
            "engines": [
                {
                    "name": row.name,
                    "engine": row.label,
                    "overrides": ENGINES[row.name].choices.get(self.dtype)
                    if isinstance(ENGINES[row.name], Ours)
                    else None,
                    "failure": row.failure,
                    "pass_s": row.turns,
                    "useful_flop_per_s": None if row.failure else self.flop / row.seconds,
                    "min_cosine": row.cosine if math.isfinite(row.cosine or 0.0) else None,
                    "peak_host_bytes": row.peak_bytes,
                    "rested_between_turns": row.rested,
                }
                for row in self.rows
            ],
        }

    def markdown(self) -> str:
        """Return it as a table, best first."""
        ranked = self.ranked()
        peers = [row for row in ranked if not row.is_ours]
        best = peers[0] if peers else None
        vendor = next((row for row in peers if row.name == VENDOR), None)
        unit = "latency, ms" if self.workload.is_latency else "useful GFLOP/s"
        columns = (
            *("engine", unit, "to the best peer", "to the vendor's way", "of the ceiling"),
            *("cosine", "peak MiB"),
        )
        lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for row in ranked:
            figure = (
                f"{row.seconds * 1e3:,.1f}"
                if self.workload.is_latency
                else f"{self.flop / row.seconds / 1e9:,.1f}"
            )
            cells = [
                row.label + ("" if row.rested else " (busy between turns)"),
                figure,
                _ratio(row, best),
                _ratio(row, vendor),
                self._of_ceiling(row),
                "-" if row.cosine is None else f"{row.cosine:.6f}",
                "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [
            f"| {row.label} | - | {row.failure} | | | | |" for row in self.rows if row.failure
        ]
        return "\n".join(lines)

    def _of_ceiling(self, row: Row) -> str:
        if len(self.around.ceiling) != len(row.turns):
            return "-"
        return f"{float(np.median(self.flop / row.by_round / np.array(self.around.ceiling))):.1%}"


def _ratio(row: Row, other: Row | None) -> str:
    """Return how many times as fast as ``other``, by rounds: geometric mean and extremes."""
    if other is None:
        return "-"
    if row is other:
        return "1"
    ratios = other.by_round / row.by_round
    mean = float(np.exp(np.log(ratios).mean()))
    return f"{mean:.3f} ({ratios.min():.3f} to {ratios.max():.3f})"


def write_model(pipe: Connection, name: str, directory: Path) -> None:
    """Write a transformers model directory."""
    from safetensors.torch import save_file

    from bert_infer import weights

    prepared = compose(MODELS[name]).prepare()
    architecture = prepared.architecture
    tensors = weights.load(prepared.source, architecture).read(architecture.parameters)
    save_file(
        {key: tensor.contiguous() for key, tensor in tensors.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = {
        "position_embedding_type": "absolute",  # CTranslate2's converter looks for it
        **architecture.config,
        "architectures": ["BertModel"],
    }
    (directory / "config.json").write_text(json.dumps(config), "utf-8")
    shutil.copy(BUNDLED_VOCABULARY, directory / "vocab.txt")
    pipe.send(prepared.source.kind)


def reference(pipe: Connection, files: Files, workloads: Sequence[Workload]) -> None:
    """Send each workload's mean states by transformers in fp32, one sequence at a time."""
    from peer_engines import by_batches

    encode = by_batches(torch_forward(bert(files, "fp32")), 1)
    pipe.send(
        {
            workload.name: np.stack([s.mean(0).numpy() for s in encode(workload.tokens)])
            for workload in workloads
        }
    )


def ceiling(pipe: Connection, files: Files, dtype: str) -> None:
    """Send the dense matmul rate whenever asked."""
    import torch

    from bert_infer import ceiling as rates

    runner = compose([f"model.name={files.model}", f"dtype={dtype}"])
    device, architecture = runner.device.resolve(), runner.model.architecture()
    with torch.inference_mode(), device.active(), runner.dtype.active(device):
        found = rates.before(device, runner.dtype, architecture)
        pipe.send(None)
        while True:
            pipe.recv()
            pipe.send(rates.after(found, device, runner.dtype).after_flop_per_s)


def workloads_of(names: Sequence[str], model: Path, scratch: Path) -> list[Workload]:
    """Return the workloads of these names, tokenised as ours does."""
    manual = scratch / "manual.txt"
    manual.write_text("\n".join(islice(paragraphs(), PARAGRAPHS)), "utf-8")
    overrides = {
        "ragged": ("input=synthetic",),
        "manual": ("input=lines", f"input.path={manual}"),
        "prompt": ("text=Hello world!",),
    }
    return [
        Workload(name, overrides[name], _tokens(model, *overrides[name]), name == "prompt")
        for name in names
    ]


def _tokens(model: Path, *overrides: str) -> Tokens:
    return compose([f"model.name={model}", *overrides]).prepare().tokens


def once(work: Any, *arguments: object, log: Path) -> Any:  # noqa: ANN401  a process' own answer
    """Run ``work`` in a process that ends after its first answer, and return that."""
    with Worker(work, *arguments, log=log) as worker:
        return worker.answer()


def started(names: Iterable[str], dtype: str, files: Files, stack: ExitStack) -> list[Entry]:
    """Convert for every engine, then load them, one after the other."""
    entries = [Entry(name, ENGINES[name]) for name in names]
    for entry in entries:
        try:
            entry.engine.check(dtype)
            _say(f"{dtype}: {entry.engine.label}: converting")
            once(convert, entry.engine, files, dtype, log=_log(files, entry.name, dtype))
        except FailedError as error:
            entry.failure = str(error)
    for entry in entries:
        if entry.failure:
            continue
        _say(f"{dtype}: {entry.engine.label}: loading")
        worker = Worker(serve, entry.engine, files, dtype, log=_log(files, entry.name, dtype))
        try:
            stack.enter_context(worker).answer()
            entry.worker = worker
        except FailedError as error:
            entry.failure = str(error)
    return entries


def _log(files: Files, name: str, dtype: str) -> Path:
    return files.scratch / f"{name}-{dtype}.log"


def measure(
    entries: list[Entry], roof: Entry, workload: Workload, rounds: int, expected: NDArray[Any]
) -> tuple[list[Row], Surroundings]:
    """Warm everyone up for ``workload``, and let them measure in turn."""
    rows = {e.name: Row(e.name, e.engine.label, e.engine.is_ours) for e in entries}
    for entry in entries:
        if entry.worker:
            _say(f"{workload.name}: {entry.engine.label}: warming up")
        entry.ask(workload)
        pooled = entry.ask(OUTPUTS)
        if entry.worker:
            rows[entry.name].cosine = min_cosine(pooled, expected)
            rows[entry.name].rested = entry.worker.rests()
    rates: list[float] = []
    shares = []
    for number in range(rounds):
        _say(f"{workload.name}: round {number + 1} of {rounds}")
        order = [*entries, roof] if number % 2 == 0 else [roof, *entries[::-1]]
        shares.append(others_share(lambda order=order: one_round(order, rows, rates)))
    for entry in entries:
        if entry.worker:
            rows[entry.name].peak_bytes = entry.worker.peak_bytes()
        entry.ask(STOP)
        rows[entry.name].failure = entry.failure
    return list(rows.values()), Surroundings(rates, shares)


def one_round(order: list[Entry], rows: dict[str, Row], rates: list[float]) -> float:
    """Ask each for a turn, in this order; return the processor time that they used."""
    used_s = 0.0
    for entry in order:
        worker = entry.worker
        before = worker.used_s() if worker else 0.0
        answer = entry.ask(MEASURE)
        if worker is None or entry.worker is None:
            continue
        rested = worker.rests()
        used_s += worker.used_s() - before
        if entry.name in rows:
            rows[entry.name].turns.append(answer)
            rows[entry.name].rested &= rested
        else:
            rates.append(answer)
    return used_s


def min_cosine(pooled: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the smallest cosine of two sequences' vectors; what cannot be compared is NaN."""
    if pooled.shape != expected.shape:
        return math.nan
    return float((_unit(pooled) * _unit(expected)).sum(1).min())


def likeness(expected: NDArray[np.float32]) -> float | None:
    """Return the largest cosine of two different sequences: what a wrong engine may well reach."""
    if len(expected) < 2:  # noqa: PLR2004  of one there are no two
        return None
    unit = _unit(expected)
    return float((unit @ unit.T)[~np.eye(len(unit), dtype=bool)].max())


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def sitting(arguments: argparse.Namespace, scratch: Path) -> None:
    """Measure everything asked for; print each table as soon as it is there."""
    model = scratch / "model"
    model.mkdir()
    kind = once(write_model, arguments.model, model, log=scratch / "model.log")
    workloads = workloads_of(arguments.workloads, model, scratch)
    unseen = scratch / "unseen.txt"
    unseen.write_text("\n".join(islice(paragraphs(), PARAGRAPHS, 2 * PARAGRAPHS)), "utf-8")
    files = Files(model, scratch, _tokens(model, "input=lines", f"input.path={unseen}"))
    config = json.loads((model / "config.json").read_text("utf-8"))
    about = machine() | {"model": arguments.model, "weights": kind, "tables": []}
    print(heading(about))
    expected = once(reference, files, workloads, log=scratch / "reference.log")
    for dtype in arguments.dtypes:
        with ExitStack() as stack:
            entries = started(arguments.engines, dtype, files, stack)
            roof = Entry("ceiling", Ours("ceiling", {}))
            worker = stack.enter_context(
                Worker(ceiling, files, dtype, log=_log(files, "ceiling", dtype))
            )
            try:
                worker.answer()
                roof.worker = worker
            except FailedError as error:
                roof.failure = str(error)
            for workload in workloads:
                goal = expected[workload.name]
                rows, around = measure(entries, roof, workload, arguments.rounds, goal)
                flop = useful_flop(workload.tokens.lengths, Architecture(config))
                table = Table(dtype, workload, flop, rows, around)
                print(caption(table, likeness(goal), roof.failure))
                print(table.markdown(), flush=True)
                about["tables"].append(table.as_json())
                save(about, arguments.json)  # a later one may fail


def caption(table: Table, alike: float | None, roofless: str | None) -> str:
    """Return what stands above a table."""
    lengths = table.workload.tokens.lengths
    rates = [rate / 1e9 for rate in table.around.ceiling]
    roof = (
        f"ceiling {statistics.median(rates):,.0f} GFLOP/s ({min(rates):,.0f} to {max(rates):,.0f})"
        if rates
        else f"no ceiling: {roofless}"
    )
    between = f"; two different sequences' cosine reaches {alike:.6f}" if alike else ""
    return (
        f"\n### {table.dtype}, {table.workload.name}\n\n"
        f"{len(lengths)} sequences, {lengths.min()} to {lengths.max()} tokens, "
        f"{lengths.sum():,} in all, {table.flop / 1e9:,.4g} useful GFLOP; {roof}; "
        f"other programs had {max(table.around.others):.0%} of the processor at most{between}.\n"
    )


def save(found: dict[str, Any], path: Path | None) -> None:
    """Write everything that was found so far, if that was asked for."""
    if path:
        path.write_text(json.dumps(found, indent=1), "utf-8")


def flat(arguments: argparse.Namespace, scratch: Path) -> None:
    """Measure our cost of a token as the input grows."""
    model = scratch / "model"
    model.mkdir()
    kind = once(write_model, "minilm", model, log=scratch / "model.log")
    workloads = []
    for texts in FLAT_TEXTS:
        overrides = ("input=synthetic", f"input.texts={texts}", *FLAT_LENGTHS)
        workloads.append(Workload(f"{texts:,} texts", overrides, _tokens(model, *overrides)))
    files = Files(model, scratch, workloads[0].tokens)
    about = machine() | {"model": "minilm", "weights": kind, "flat": {}}
    print(heading(about))
    for dtype in arguments.dtypes:
        for name in (name for name in arguments.engines if ENGINES[name].is_ours):
            print(f"\n### {dtype}, {ENGINES[name].label}\n")
            try:
                turns = _flat(name, dtype, workloads, files, arguments.rounds)
                about["flat"][f"{name} {dtype}"] = turns
                save(about, arguments.json)
            except FailedError as error:
                print(f"not measured: {error}")


def _flat(
    name: str, dtype: str, workloads: list[Workload], files: Files, rounds: int
) -> dict[str, Any]:
    engine = ENGINES[name]
    if not isinstance(engine, Ours):
        raise TypeError(name)
    engine.check(dtype)
    engine = Ours(engine.label, engine.choices, keeps=False)
    turns: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    with ExitStack() as stack:
        workers = []
        for workload in workloads:
            log = files.scratch / f"{name}-{dtype}-{workload.name}.log"
            worker = stack.enter_context(Worker(serve, engine, files, dtype, log=log))
            worker.answer()
            _say(f"{workload.name}: warming up")
            worker.ask(workload)
            workers.append((workload, worker))
        for number in range(rounds):
            _say(f"round {number + 1} of {rounds}")
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


def machine() -> dict[str, Any]:
    """Return what a reader needs to know of where this was measured."""
    flags = cpu_flags()
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": THREADS,
        "features": [name for name in _FEATURES if name in flags],
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in _PACKAGES},
    }


def heading(about: dict[str, Any]) -> str:
    """Return it as prose."""
    versions = ", ".join(f"{p} {v or 'not installed'}" for p, v in about["versions"].items())
    return (
        f"{about['started_at'][:10]}, {about['model']}, {about['weights']} weights, "
        f"{about['threads']} threads on {about['cores']} cores of {about['cpu']} "
        f"({', '.join(about['features'])}; of {', '.join(_FEATURES)}), "
        f"Python {about['python']}; {versions}."
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def some_of(allowed: Iterable[str]) -> Any:  # noqa: ANN401  what argparse takes
        def parse(given: str) -> list[str]:
            chosen = given.split(",")
            if unknown := sorted(set(chosen) - set(allowed)):
                raise argparse.ArgumentTypeError(
                    f"{', '.join(unknown)}: choose of {','.join(allowed)}"
                )
            return chosen

        return parse

    parser.add_argument("--dtypes", type=some_of(DTYPES), default=list(DTYPES))
    parser.add_argument("--engines", type=some_of(ENGINES), default=list(ENGINES))
    parser.add_argument("--workloads", type=some_of(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", choices=list(MODELS), default="bert-large-uncased")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--flat", action="store_true", help="our cost a token, as input grows")
    arguments = parser.parse_args()
    # Before any process starts: they inherit it.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Gigabytes of conversions are not to be left behind by who is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory() as directory:
        (flat if arguments.flat else sitting)(arguments, Path(directory))


if __name__ == "__main__":
    main()
