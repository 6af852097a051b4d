"""What a user would run instead, each as it is best used, and ours: loaded, converted, called.

An engine's worker process imports what it needs; this module's own imports are light.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from peer_workers import FailedError

from bert_infer import compose, metrics
from bert_infer.batching.groups import Group
from bert_infer.batching.layouts import PaddedBatch
from bert_infer.measuring.measure import without_garbage_collection
from bert_infer.outputs import HiddenStates
from bert_infer.running.execution import execute

if TYPE_CHECKING:
    from pathlib import Path

    from bert_infer.outputs import Texts
    from bert_infer.records import Tokens

THREADS = len(os.sched_getaffinity(0))
BATCH = 4
VENDOR = "vendor"
VENDOR_BATCH, VENDOR_WIDTH = 12, 384
PAD = 0

States = Sequence[Any]
"""A sequence's hidden states ``[tokens, hidden]`` each, or its embedding ``[hidden]``."""

Passes = Callable[[Callable[[], States]], Iterator[int]]
"""Given how to get the latest outputs, yields whenever a pass is to be done."""

Measure = Callable[["Workload", Passes], "dict[str, Any] | None"]
"""Returns what else there is to say of it when its turns are over, by metrics.json's names."""

Encode = Callable[["Tokens"], States]
Forward = Callable[["PaddedBatch"], Any]
"""A batch to its hidden states ``[rows, width, hidden]`` in host memory."""


@dataclass(frozen=True, eq=False)
class Workload:
    """What a pass goes over.

    Attributes:
        overrides: what makes it ours.
        tokens: the same for the peers.
        is_latency: whether users wait for it, so that milliseconds are what to show.
        compared: how many sequences' outputs are compared, from the first on; None: all.
    """

    name: str
    overrides: tuple[str, ...]
    tokens: Tokens
    is_latency: bool = False
    compared: int | None = None


@dataclass(frozen=True, eq=False)
class Files:
    """Where things are.

    Attributes:
        model: a transformers model directory, the one all engines start from.
        scratch: where conversions go.
        calibration: real text that is not measured; only what is converted needs it.
        device: where engines compute, by the name that ours and PyTorch give it.
    """

    model: Path
    scratch: Path
    calibration: Tokens | None = None
    device: str = "cpu"

    def converted(self, name: str, write: Callable[[Path], object]) -> Path:
        """Return the directory ``name``, which ``write`` fills if it is not there."""
        directory = self.scratch / name
        if not directory.is_dir():
            beside = self.scratch / f"{name}.part"
            beside.mkdir(exist_ok=True)
            write(beside)
            beside.rename(directory)
        return directory


class Engine(ABC):
    """Something that computes hidden states.

    Attributes:
        label: its row's name.
        dtypes: those it has.
        lacks: why it has no others.
        is_ours: whether it is this project's.
        is_converted: whether it loads other files than the model directory's own.
    """

    label: str
    dtypes: ClassVar[tuple[str, ...]]
    lacks: ClassVar[str]
    is_ours: ClassVar[bool] = False
    is_converted: ClassVar[bool] = False

    def check(self, dtype: str) -> None:
        """Refuse a dtype that it does not have.

        Raises:
            FailedError: saying why.
        """
        if dtype not in self.dtypes:
            raise FailedError(self.lacks)

    def overrides(self, dtype: str) -> str | None:
        """Return what makes it ours, if it is."""
        del dtype
        return None

    def convert(self, files: Files, dtype: str) -> None:
        """Write the files that it loads, where it ``is_converted``."""

    @abstractmethod
    def load(self, files: Files, dtype: str) -> Measure:
        """Load it; return what warms up and measures a workload."""


def all_states(tokens: Tokens) -> tuple[Texts, ...]:
    """Keep every token's state."""
    return (HiddenStates(tokens),)


def nothing(tokens: Tokens) -> tuple[Texts, ...]:
    """Keep nothing: the states of very many texts need much memory."""
    del tokens
    return ()


@dataclass(frozen=True)
class Ours(Engine):
    """This project, by its public Python API.

    Attributes:
        choices: overrides by dtype.
        kept: what is kept of the outputs, once they are in host memory.
    """

    label: str
    choices: Mapping[str, str]
    kept: Callable[[Tokens], tuple[Texts, ...]] = all_states

    is_ours: ClassVar[bool] = True

    def overrides(self, dtype: str) -> str | None:
        """Return the command line's choices."""
        return self.choices.get(dtype)

    def check(self, dtype: str) -> None:
        """Refuse a dtype that has no overrides."""
        if dtype not in self.choices:
            raise FailedError(f"has no dtype={dtype}")

    def load(self, files: Files, dtype: str) -> Measure:
        """Leave loading to the run: it knows its input from the start."""

        def measure(workload: Workload, passes: Passes) -> dict[str, Any]:
            runner = compose(
                [
                    f"model.name={files.model}",
                    f"device={files.device}",
                    *workload.overrides,
                    *self.choices[dtype].split(),
                    "drift.texts=0",
                    "warmup=1",
                ]
            )
            prepared = runner.prepare()
            sinks = self.kept(prepared.tokens)
            record = runner.new_record()
            execute(
                prepared,
                record,
                sinks,
                turns=lambda _forwards, _pauses: passes(lambda: sinks[0].in_order),
            )
            return metrics.of(record)

        return measure


class Peer(Engine):
    """Somebody else's."""

    def load(self, files: Files, dtype: str) -> Measure:
        """Load it."""
        encode = self.encoder(files, dtype)

        def measure(workload: Workload, passes: Passes) -> None:
            latest = [encode(workload.tokens)]  # meets every shape
            with without_garbage_collection():
                for _ in passes(lambda: latest[0]):
                    latest[0] = encode(workload.tokens)

        return measure

    @abstractmethod
    def encoder(self, files: Files, dtype: str) -> Encode:
        """Return what computes the states of all sequences."""


def sorted_batches(tokens: Tokens, batch: int) -> Iterator[PaddedBatch]:
    """Yield sequences of like length, longest first, each batch as wide as its longest."""
    order = np.argsort(-tokens.lengths, kind="stable")
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        yield PaddedBatch.of(Group(rows, int(tokens.lengths[rows[0]])), tokens, PAD)


def vendor_batches(tokens: Tokens) -> Iterator[PaddedBatch]:
    """Yield sequences as they come, all as wide as the longest, 384 at the least."""
    width = max(VENDOR_WIDTH, int(tokens.lengths.max()))
    for start in range(0, len(tokens), VENDOR_BATCH):
        rows = np.arange(start, min(start + VENDOR_BATCH, len(tokens)))
        yield PaddedBatch.of(Group(rows, width), tokens, PAD)


def in_order(batches: Iterator[PaddedBatch], forward: Forward, sequences: int) -> States:
    """Return the states of every sequence, without padding, as they stand in host memory."""
    states: list[Any] = [None] * sequences
    for batch in batches:
        hidden_states = forward(batch)
        for row, sequence in enumerate(batch.sequences.tolist()):
            states[sequence] = batch.states(hidden_states, row)
    return states


def by_batches(forward: Forward, batch: int) -> Encode:
    """Return what sorts sequences and runs ``forward`` on ``batch`` of them at a time."""
    return lambda tokens: in_order(sorted_batches(tokens, batch), forward, len(tokens))
