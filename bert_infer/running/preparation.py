"""All that is settled before a model is loaded: checks, tokens, batches, where the weights are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bert_infer import machine, tokens
from bert_infer.errors import InputError, OptionError, RefusedError
from bert_infer.graphs import Work
from bert_infer.inputs import Input, TextInput
from bert_infer.measuring import environment
from bert_infer.measuring.measure import timed
from bert_infer.models import checkpoints, weights
from bert_infer.running.workload import WorkDone, Workload

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import NDArray

    from bert_infer.batching import Batching
    from bert_infer.batching.groups import Group, Shape
    from bert_infer.devices import Device
    from bert_infer.dtypes import Dtype
    from bert_infer.graphs import Graph
    from bert_infer.graphs.buckets import Buckets
    from bert_infer.models.architecture import Architecture
    from bert_infer.models.weights import WeightsSource
    from bert_infer.records import ModelFiles, Tokens
    from bert_infer.runner import Runner
    from bert_infer.tokens import Tokenizer


class Content(NamedTuple):
    """What tells runs apart.

    Attributes:
        configuration: a hash of it.
        model: what identifies its architecture and its weights.
        input: a hash of its tokens.
    """

    configuration: str
    model: list[Any]
    input: str

    @property
    def hash(self) -> str:
        """A hash of it all, ``run.content_hash`` in metrics.json."""
        return environment.digest([self.configuration, *self.model, self.input])


@dataclass(frozen=True, eq=False)
class Prepared:
    """A run that has passed every check that can be made before anything is loaded.

    Attributes:
        runner: what was asked for.
        device: the one that will really be used, as are ``dtype``, ``graph`` and ``batching``.
        buckets: what its groups are filled up to.
        shapes: the distinct ones of a pass' batches, each with a group that makes it.
        max_length: tokens at which texts were truncated.
    """

    runner: Runner
    device: Device
    dtype: Dtype
    graph: Graph
    batching: Batching
    architecture: Architecture
    tokens: Tokens
    buckets: Buckets
    shapes: dict[Shape, Group]
    workload: Workload
    max_length: int
    tokenizer_provenance: dict[str, Any]
    source: WeightsSource

    @property
    def work(self) -> WorkDone:
        """What the run will do."""
        flop = self.architecture.useful_flop(self.tokens.lengths)
        return WorkDone(self.tokens.sha256, flop / len(self.tokens))

    def content(self) -> Content:
        """Return what tells runs apart."""
        model = [self.architecture.encoder_config, weights.identity(self.source)]
        return Content(self.runner.digest(), model, self.tokens.sha256)


def prepare(runner: Runner) -> Prepared:
    """Check everything that can be checked before anything is loaded, and tokenise the input.

    Raises:
        RefusedError: the request cannot be met.
    """
    device = runner.device.resolve()
    device.check()
    asked = runner.graph.resolve(device)
    asked.check(device)
    device.check_graph(asked)
    dtype = runner.dtype.resolve(device)
    dtype.check(device)
    runner.input.check()
    runner.model.check()
    if not issubclass(runner.engine.layout, runner.batching.layout):
        raise RefusedError(
            f"batching={runner.batching.name} makes batches that engine={runner.engine.name} "
            "does not take.",
            "Choose another batching or engine; engine=fused takes every batching of this package.",
        )
    runner.engine.check_output(runner.output)
    architecture = runner.model.architecture()
    runner.engine.check(architecture, dtype)
    files = runner.model.tokenizer_files()
    versions = (runner.input.version(), tokens.version(files))
    tokenizer = _tokenizer(files, versions[1], architecture.vocab_size)
    max_length = runner.settings.longest(
        architecture.max_length, tokenizer.max_length, runner.model.name
    )
    runner.batching.check(max_length)
    try:
        one_pass, tokenize_s = _tokenise(
            runner.input, files, versions, architecture.vocab_size, max_length
        )
    except MemoryError:
        raise InputError(
            "The input's tokens do not fit in memory.", "Split it, or run a part of it."
        ) from None
    batch = runner.settings.batch
    try:
        one_pass = runner.input.fill(one_pass, batch)
        longest = int(one_pass.lengths.max())
        batching = runner.batching.resolve(device, runner.engine.layout, longest)
        groups = list(batching.plan(one_pass.lengths, batch, architecture.max_length))
        _check_groups(groups, one_pass.lengths, architecture.max_length, batching.name)
    except MemoryError:
        raise OptionError("batch", batch, "as many sequences as fit in memory") from None
    lengths, layout = one_pass.lengths, runner.engine.layout
    work = Work(groups, lengths, batching, layout, architecture)
    graph, buckets = asked.settled(work)
    unfilled = sum(layout.shape_of(group, lengths).slots for group in groups)
    groups = [buckets.fill(group, lengths) for group in groups]
    shapes = [layout.shape_of(group, lengths) for group in groups]
    _check_fits(groups, shapes, batching, architecture, device)
    # Last, since it may wait for the hub.
    source = weights.locate(runner.model, runner.settings.seed)
    if tokens.version(runner.model.tokenizer_files()) != versions[1]:  # it came with the weights
        return prepare(runner)
    if source.path:
        checkpoints.reader(source.path, architecture)  # refuses a file that does not fit
    return Prepared(
        runner=runner,
        device=device,
        dtype=dtype,
        graph=graph,
        batching=batching,
        architecture=architecture,
        tokens=one_pass,
        buckets=buckets,
        shapes=_first_of_each(shapes, groups),
        workload=Workload.of(one_pass, groups, shapes, unfilled, tokenize_s),
        max_length=max_length,
        tokenizer_provenance=dict(tokenizer.provenance),
        source=source,
    )


def _check_groups(
    groups: list[Group], lengths: NDArray[np.int64], limit: int, batching: str
) -> None:
    """Refuse what no policy may make: figures would count sequences that nobody computed.

    Raises:
        RefusedError: naming the policy.
    """
    sequences = [np.asarray(group.sequences) for group in groups]
    are_indices = all(one.dtype.kind == "i" and one.ndim == 1 and len(one) for one in sequences)
    planned = np.concatenate(sequences) if groups and are_indices else np.empty(0)
    if np.array_equal(np.sort(planned), np.arange(len(lengths))) and all(
        lengths[group.sequences].max() <= group.width <= limit for group in groups
    ):
        return
    raise RefusedError(
        f"batching={batching} makes groups that do not hold each of {len(lengths)} sequences once, "
        f"or are narrower than their longest or wider than {limit} tokens.",
        "Correct its plan(), or choose another batching.",
    )


def _first_of_each(shapes: list[Shape], groups: list[Group]) -> dict[Shape, Group]:
    """Return the distinct ``shapes``, each with the first of ``groups`` that has it."""
    first: dict[Shape, Group] = {}
    for shape, group in zip(shapes, groups, strict=True):
        first.setdefault(shape, group)
    return first


def _check_fits(
    groups: list[Group],
    shapes: list[Shape],
    batching: Batching,
    architecture: Architecture,
    device: Device,
) -> None:
    """Refuse a batch that certainly does not fit in this machine's memory, or the device's own.

    Outputs lie in both, at 2 bytes a value or more; weights lie in the device's, at 1 or more.
    """
    slots, sequences = max(
        (shape.slots, len(group.sequences)) for shape, group in zip(shapes, groups, strict=True)
    )
    outputs = slots * architecture.hidden * 2
    size, unit = (
        (sequences, f"sequences of {slots // sequences} tokens")
        if batching.budget is None
        else (slots, "tokens")
    )
    weights_bytes = sum(math.prod(shape) for shape in architecture.parameters.values())
    for whose, memory in (
        ("this machine's", machine.memory_bytes()),
        (f"the {device.name} device's", (device.memory_bytes() or 0) - weights_bytes),
    ):
        if memory and 0 < memory < outputs:
            raise OptionError(
                batching.sized_by,
                size,
                f"at most {memory * size // outputs} here: that many {unit} have hidden states "
                f"that fill {whose} memory",
                f"Lower {batching.sized_by}.",
            )


@lru_cache(maxsize=4)
def _tokenizer(files: ModelFiles | None, version: Hashable, vocab_size: int) -> Tokenizer:
    """Return the tokenizer, cached for a sweep's runs."""
    del version  # part of the cache key: a file that has changed is read again
    return tokens.load(files, vocab_size)


@lru_cache(maxsize=4)
def _tokenise(
    source: Input,
    files: ModelFiles | None,
    versions: tuple[Hashable, Hashable],
    vocab_size: int,
    max_length: int,
) -> tuple[Tokens, float | None]:
    """Return the tokens and the seconds, cached likewise."""
    tokenizer = _tokenizer(files, versions[1], vocab_size).at_most(max_length)
    one_pass, seconds = timed(lambda: source.tokens(tokenizer))
    tokenize_s = seconds if isinstance(source, TextInput) else None  # synthetic ids are drawn
    return one_pass, tokenize_s
