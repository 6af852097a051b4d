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
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from manual_text import paragraphs
from peer_engines import VENDOR, Engine, Files, Ours
from peer_flat import flat
from peer_inputs import (
    MODELS,
    PARAGRAPHS,
    mean_state,
    once,
    reference,
    some_of,
    tokens_of,
    workloads_of,
    write_model,
)
from peer_pytorch import Compiled, SentenceTransformers, Transformers, VendorsWay
from peer_rounds import Entry, Roof, likeness, measure, started
from peer_runtimes import CTranslate2, OnnxRuntime, OpenVino
from peer_tables import Table, caption, heading, machine, peer_columns

from bert_infer.models.architecture import Architecture

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

WORKLOADS = ("ragged", "manual", "prompt")


def sitting(arguments: argparse.Namespace, scratch: Path) -> None:
    """Measure everything asked for; print each table as soon as it is there."""
    model = scratch / "model"
    model.mkdir()
    kind = once(write_model, arguments.model, model, log=scratch / "model.log")
    workloads = workloads_of(arguments.workloads, model, scratch)
    unseen = scratch / "unseen.txt"
    unseen.write_text("\n".join(islice(paragraphs(), PARAGRAPHS, 2 * PARAGRAPHS)), "utf-8")
    files = Files(model, scratch, tokens_of(model, "input=lines", f"input.path={unseen}"))
    config = json.loads((model / "config.json").read_text("utf-8"))
    about = machine() | {"model": arguments.model, "weights": kind, "tables": []}
    print(heading(about))
    expected = once(reference, files, workloads, mean_state, log=scratch / "reference.log")
    for dtype in arguments.dtypes:
        with ExitStack() as stack:
            entries = [
                Entry(name=name, dtype=dtype, engine=ENGINES[name]) for name in arguments.engines
            ]
            started(entries, files, stack)
            roof = Roof(dtype=dtype)
            roof.load(files, stack)
            for workload in workloads:
                goal = expected[workload.name]
                rows, around = measure(entries, [roof], workload, arguments.rounds, goal)
                flop = Architecture(config).useful_flop(workload.tokens.lengths)
                table = Table(workload, flop, rows, around)
                print(caption(f"{dtype}, {workload.name}", table, likeness(goal)))
                print(table.markdown(peer_columns(table)), flush=True)
                about["tables"].append(table.as_json())
                save(about, arguments.json)  # a later one may fail


def save(found: dict[str, Any], path: Path | None) -> None:
    """Write everything that was found so far, if that was asked for."""
    if path:
        path.write_text(json.dumps(found, indent=1), "utf-8")


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        if not arguments.flat:
            sitting(arguments, Path(directory))
            return
        asked = {name: ENGINES[name] for name in arguments.engines}
        ours = {name: engine for name, engine in asked.items() if isinstance(engine, Ours)}
        flat(arguments, ours, Path(directory), partial(save, path=arguments.json))


if __name__ == "__main__":
    main()
