"""What a sitting needs before it measures: a model's files, inputs, outputs to compare with."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from manual_text import paragraphs
from peer_engines import Workload, by_batches
from peer_pytorch import bert, torch_forward
from peer_workers import FailedError, Worker

from bert_infer import compose
from bert_infer.tokens import BUNDLED_VOCABULARY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from multiprocessing.connection import Connection
    from pathlib import Path

    import torch
    from peer_engines import Files

    from bert_infer.records import Tokens

MODELS = {
    # Random even where the hub is at hand: everyone measures the same weights.
    "bert-large-uncased": ("model=bert-large-uncased", "model.weights=random", "seed=0"),
    "minilm": ("model=minilm",),
    "tiny": ("model=tiny", "seed=0"),
}
PARAGRAPHS = 40


def write_model(pipe: Connection, name: str, directory: Path) -> None:
    """Write a transformers model directory."""
    from safetensors.torch import save_file

    from bert_infer.models import weights

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


def mean_state(states: torch.Tensor) -> torch.Tensor:
    """Return the mean of a sequence's ``[tokens, hidden]``."""
    return states.mean(0)


def first_state(states: torch.Tensor) -> torch.Tensor:
    """Return that of a sequence's first token."""
    return states[0]


def reference(
    pipe: Connection,
    files: Files,
    workloads: Sequence[Workload],
    of: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Send what ``of`` makes of each sequence's states, by transformers in fp32, each alone."""
    encode = by_batches(torch_forward(bert(files, "fp32")), 1)
    pipe.send(
        {
            workload.name: np.stack(
                [of(s).numpy() for s in encode(first(workload.tokens, workload.compared))]
            )
            for workload in workloads
        }
    )


def first(tokens: Tokens, sequences: int | None) -> Tokens:
    """Return so many of the sequences, from the first on; None returns all."""
    if sequences is None:
        return tokens
    offsets = tokens.offsets[: sequences + 1]
    return replace(
        tokens,
        ids=tokens.ids[: offsets[-1]],
        offsets=offsets,
        positions=tokens.positions[:sequences],
    )


class Rate(NamedTuple):
    """What the device reached in a round.

    Attributes:
        flop_per_s: of dense matmuls, on random numbers.
        readings: clocks, temperature and the like just afterwards, by the device's own names.
        throttled: why it held its clock down, before, after or, where it counts, meanwhile.
    """

    flop_per_s: float
    readings: dict[str, float]
    throttled: tuple[str, ...]


def ceiling(pipe: Connection, files: Files, dtype: str) -> None:
    """Send the ``Rate`` whenever asked."""
    import torch

    from bert_infer.measuring import ceiling as rates
    from bert_infer.measuring import conditions

    runner = compose([f"model.name={files.model}", f"device={files.device}", f"dtype={dtype}"])
    device, architecture = runner.device.resolve(), runner.model.architecture()
    device.check()
    resolved = runner.dtype.resolve(device)  # which number format fp8 is, the device settles
    resolved.check(device)
    with torch.inference_mode(), device.active(), resolved.active(device):
        found = rates.before(device, resolved, architecture)
        if found is None:
            raise FailedError(f"dtype={dtype} has no matmul that can be timed by itself")
        pipe.send(None)
        while True:
            pipe.recv()
            earlier = conditions.snapshot(device)
            again = rates.after(found, device, resolved)
            if again is None or again.after_flop_per_s is None:
                raise FailedError("the device has no memory left for its matmul")
            later = conditions.snapshot(device)
            throttled = conditions.between(earlier, later).throttled
            pipe.send(Rate(again.after_flop_per_s, later.device.gauges, throttled))


def surroundings(pipe: Connection, files: Files) -> None:
    """Send the machine, the device and the software, as a run's environment.json has them."""
    from bert_infer.measuring import environment

    device = compose([f"device={files.device}"]).device.resolve()
    device.check()
    pipe.send(environment.describe(device))


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
        Workload(name, overrides[name], tokens_of(model, *overrides[name]), name == "prompt")
        for name in names
    ]


def tokens_of(model: Path, *overrides: str) -> Tokens:
    """Return the input's tokens, as ours makes them."""
    return compose([f"model.name={model}", *overrides]).prepare().tokens


def some_of(allowed: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what reads some of ``allowed`` from a command line, with commas between them."""

    def parse(given: str) -> list[str]:
        chosen = given.split(",")
        if unknown := sorted(set(chosen) - set(allowed)):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose of {','.join(allowed)}")
        return chosen

    return parse


def once(work: Any, *arguments: object, log: Path) -> Any:  # noqa: ANN401  a process' own answer
    """Run ``work`` in a process that ends after its first answer, and return that."""
    with Worker(work, *arguments, log=log) as worker:
        return worker.answer()
