"""Forwards recorded as CUDA graphs: which graph serves which shape, and all calls of torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bert_infer import memory
from bert_infer.devices.overlap import kept
from bert_infer.errors import UnrecordableError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from bert_infer.engines import Encode

Tensors = tuple[torch.Tensor, torch.Tensor]

Capture = Callable[[Callable[[], Tensors]], tuple[Tensors, Callable[[], None]]]
"""Records work on the card. Returns the tensors that its results go to, and a function that replays
it: the same input tensors are read again and those results overwritten, at once or later. A replay
may also overwrite the results of other recordings."""

_WARM_UPS = 3


@dataclass(frozen=True)
class Recording:
    """A forward of one shape.

    Attributes:
        inputs: as given, except that tensors are copies, which are overwritten before a replay.
        outputs: the tensors that hold a replay's results, until another recording replays.
    """

    inputs: tuple[Any, ...]
    outputs: Tensors
    replay: Callable[[], None]

    @classmethod
    def of(cls, encode: Encode, given: tuple[Any, ...], capture: Capture) -> Recording:
        """Record ``encode`` on copies of the ``given`` tensors."""
        inputs = tuple(part.clone() if _is_tensor(part) else part for part in given)
        return cls(inputs, *capture(lambda: encode(*inputs)))

    def __call__(self, given: tuple[Any, ...]) -> Tensors:
        """Replay with the inputs ``given``; return the results in new tensors."""
        for ours, theirs in zip(self.inputs, given, strict=True):
            if _is_tensor(ours):
                ours.copy_(theirs, non_blocking=True)
        self.replay()
        hidden_states, pooled = self.outputs
        return hidden_states.clone(), pooled.clone()


def recorded(encode: Encode, capture: Capture, most: int) -> Encode:
    """Return ``encode`` recorded for each shape when it first comes, ``most`` of them.

    Results are new tensors, made on the current stream: no later forward overwrites them. Inputs
    other than tensors are part of the key that tells shapes apart.
    """
    recordings: dict[Hashable, Recording] = {}

    def replayed(*given: Any) -> Tensors:  # noqa: ANN401  as encode
        key = tuple((part.shape, part.dtype) if _is_tensor(part) else part for part in given)
        if key not in recordings:
            if len(recordings) == most:
                return encode(*given)
            recordings[key] = Recording.of(encode, given, capture)
        return recordings[key](given)

    return replayed


class Recorder:
    """Records on the current card: a ``Capture``.

    All graphs share one memory pool, since they never replay at the same time: each uses memory
    that the others have finished with. They share one stream, so that what libraries allocate when
    a stream is first used is not allocated inside a graph.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, work: Callable[[], Tensors]) -> tuple[Tensors, Callable[[], None]]:
        """Warm up on a side stream, and record there.

        Raises:
            UnrecordableError: the work does something that a graph cannot record.
            torch.OutOfMemoryError: the card has too little memory left; of a library's own lack of
                it, a RuntimeError.
        """
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        # The stream context restores the current stream; after an error, torch.cuda.graph does not.
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
    """Return what broke a recording; ending a broken one raises an ``error`` of its own."""
    first = error.__context__ or error
    for cause in (error, first):
        if isinstance(cause, Exception) and memory.ran_out(cause):
            return cause
    reason = str(first).partition("\n")[0]
    return UnrecordableError(
        f"This forward cannot be recorded as a CUDA graph: {reason}",
        "Use graph=eager or graph=compile, or another engine or dtype.",
    )


@contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Keep autocast from caching weights converted inside: they would be in the graph's memory.

    Where autocast is off, nothing is changed: what was compiled under another setting of the cache
    would be compiled again.
    """
    if not torch.is_autocast_enabled("cuda"):
        yield
        return
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class Holding(torch.nn.Module):
    """``encode``, as a module: torch assumes that tensors reached through one keep their place.

    Any other tensor is copied into the inputs of torch's own graph before each replay: all weights,
    where an encoder is no module itself.
    """

    def __init__(self, encode: Encode) -> None:
        super().__init__()
        self._encode = encode

    def forward(self, *given: Any) -> Tensors:  # noqa: ANN401  as encode
        """Return what ``encode`` does."""
        return self._encode(*given)


def stepped(encode: Encode) -> Encode:
    """Return ``encode``, compiled into torch's own CUDA graphs, with results that stay."""

    def step(*given: Any) -> Tensors:  # noqa: ANN401  as encode
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return encode(*given)

    return kept(step)


def _is_tensor(part: object) -> bool:
    return isinstance(part, torch.Tensor)
