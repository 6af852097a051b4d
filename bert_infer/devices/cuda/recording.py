"""Forwards recorded as CUDA graphs: which graph is whose, and each call of torch that it takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bert_infer.devices.overlap import kept
from bert_infer.errors import UnrecordableError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from bert_infer.engines import Encode

Tensors = tuple[torch.Tensor, torch.Tensor]

Record = Callable[[Callable[[], Tensors]], tuple[Tensors, Callable[[], None]]]
"""Records work on the card. Returns the tensors that its results go to, and a function that replays
it: the same input tensors are read again and those results overwritten, at once or later. A replay
may also overwrite the results of other recordings."""

_WARM_UPS = 3


@dataclass(frozen=True)
class Recording:
    """A forward of one shape.

    Attributes:
        inputs: as given, but for tensors, whose copies are overwritten before each replay.
        outputs: what a replay leaves its results in, until another replays.
    """

    inputs: tuple[Any, ...]
    outputs: Tensors
    replay: Callable[[], None]

    @classmethod
    def of(cls, encode: Encode, given: tuple[Any, ...], record: Record) -> Recording:
        """Record ``encode`` on a copy of what is ``given``."""
        inputs = tuple(part.clone() if _is_tensor(part) else part for part in given)
        return cls(inputs, *record(lambda: encode(*inputs)))

    def __call__(self, given: tuple[Any, ...]) -> Tensors:
        """Return new tensors with the results for what is ``given``."""
        for ours, theirs in zip(self.inputs, given, strict=True):
            if _is_tensor(ours):
                ours.copy_(theirs, non_blocking=True)
        self.replay()
        hidden_states, pooled = self.outputs
        return hidden_states.clone(), pooled.clone()


def recorded(encode: Encode, record: Record, most: int) -> Encode:
    """Return ``encode`` recorded for each shape when it first comes, ``most`` of them.

    Results are new tensors, made on the stream that is current: no later forward overwrites them.
    Inputs that are no tensors are part of what tells shapes apart.
    """
    recordings: dict[Hashable, Recording] = {}

    def replayed(*given: Any) -> Tensors:  # noqa: ANN401  as encode
        key = tuple((part.shape, part.dtype) if _is_tensor(part) else part for part in given)
        if key not in recordings:
            if len(recordings) == most:
                return encode(*given)
            recordings[key] = Recording.of(encode, given, record)
        return recordings[key](given)

    return replayed


class Recorder:
    """Records on the current card: a ``Record``.

    One pool of memory for all graphs, which never replay at the same time: each computes in what
    the others have finished with. One stream, so that what libraries allocate for it the first time
    is not allocated inside a graph.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, work: Callable[[], Tensors]) -> tuple[Tensors, Callable[[], None]]:
        """Warm up on a side stream, and record there.

        Raises:
            UnrecordableError: the work asks for what a graph cannot hold.
            torch.OutOfMemoryError: the card has too little memory left.
        """
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        # Puts the current stream back also where torch.cuda.graph, after an error, does not.
        with torch.cuda.stream(self._stream), _without_autocast_cache():
            for _ in range(_WARM_UPS):
                work()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                    outputs = work()
            except RuntimeError as error:
                raise _cause(error) from error
        torch.cuda.current_stream().wait_stream(self._stream)
        return outputs, graph.replay


def _cause(error: RuntimeError) -> Exception:
    """Return what broke a recording, whose end raises an error of its own then."""
    first = error.__context__ or error
    for cause in (error, first):
        if isinstance(cause, torch.OutOfMemoryError):
            return cause
    reason = str(first).partition("\n")[0]
    return UnrecordableError(
        f"This forward cannot be recorded as a CUDA graph: {reason}",
        "Use graph=eager or graph=compile, or another engine or dtype.",
    )


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Let autocast keep no weight that it converts inside: it would lie in the graph's memory."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class Holding(torch.nn.Module):
    """``encode``, as a module: torch takes what it reaches through one to stay where it is.

    Anything else is copied to where a graph of torch's own reads it, before each replay: all
    weights of an encoder that is no module itself.
    """

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self._encode = encode

    def forward(self, *given: Any) -> Tensors:  # noqa: ANN401  as encode
        """Return what ``encode`` does."""
        return self._encode(*given)


def stepped(encode: Encode) -> Encode:
    """Return ``encode``, which torch compiled into graphs of its own, with results that stay."""

    def step(*given: Any) -> Tensors:  # noqa: ANN401  as encode
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return encode(*given)

    return kept(step)


def _is_tensor(part: object) -> bool:
    return isinstance(part, torch.Tensor)
