"""CUDA graphs without a card: on the processor, by a recorder that behaves as CUDA's does."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from unittest.mock import ANY, call, create_autospec

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bert_infer import compose
from bert_infer.devices.cpu import Cpu
from bert_infer.devices.cuda import Cuda, recording
from bert_infer.devices.hpu import Hpu
from bert_infer.errors import RefusedError, UnrecordableError
from bert_infer.graphs import Compile, CompileMode
from bert_infer.graphs.cuda_graphs import CudaGraphs, CudaGraphsIfFaster
from bert_infer.graphs.hpu_graphs import HpuGraphs
from bert_infer.operators import attention, linears

READS = {"tolist", "item", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__"}


class NoReads(TorchFunctionMode):
    """A capturing stream cannot be waited for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in READS:
            raise RuntimeError("operation not permitted when stream is capturing")
        return func(*args, **kwargs or {})


class Tape(TorchDispatchMode):
    """The operators of a forward, with the very tensors that they read and made."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **kwargs or {})
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def replay(self):
        for func, args, kwargs, made in self.calls:
            for kept, new in zip(
                tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True
            ):
                if isinstance(kept, torch.Tensor):
                    kept.copy_(new)


class Recorder:
    """Graphs in one pool: recording computes nothing, and a replay spoils the others' results."""

    def __init__(self):
        self.made = []
        self.replays = 0

    def __call__(self, work):
        work()
        with NoReads(), Tape() as tape:
            outputs = work()

        def replay():
            self.replays += 1
            for spoilt in tree_leaves(self.made):
                spoilt.fill_(torch.nan)
            tape.replay()

        self.made.append(outputs)
        for output in outputs:
            output.fill_(torch.nan)
        return outputs, replay


RECORDERS = []


@dataclass(frozen=True)
class Card(Cpu):
    """The processor with graphs, and kernels that can be recorded."""

    graphs = (CudaGraphs,)

    def capture(self, encode, *, asynchronous, most):
        del asynchronous
        RECORDERS.append(Recorder())
        return recording.recorded(encode, RECORDERS[-1], most)

    def preferred_graph(self):
        return Cuda().preferred_graph()

    def linears(self, dtype):
        del dtype
        return (linears.Plain,)

    def attention(self, dtype, architecture):
        del dtype, architecture
        return attention.ByMask(
            lambda q, k, v, mask: functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        )


def runner(*overrides, device=None):
    chosen = compose(["model=tiny", "drift.texts=0", "warmup=0", *overrides])
    return replace(chosen, device=device or Card())


TEXTS = ["word " * n for n in (6, 6, 6, 5, 1, 30, 29, 3, 20)]


def equal(ours, theirs):
    pairs = [*zip(ours.hidden_states, theirs.hidden_states, strict=True)]
    pairs.append((ours.pooled, theirs.pooled))
    return all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)


@pytest.mark.parametrize(
    ("engine", "batching"),
    [
        ("transformers", ["batching=padded", "batch=2"]),
        ("transformers", ["batching=by_length", "batching.edges=[8,32]", "max_length=32"]),
        ("fused", ["batching=by_length", "batch=2"]),
        ("fused", ["batching=packed", "batching.max_tokens=40", "graph.max_buckets=3"]),
        ("fused_cls", ["batching=packed", "batching.max_tokens=40", "graph.max_buckets=3"]),
    ],
)
def test_replays_give_what_the_forward_gives(engine, batching):
    """Seen to fail: results that are not cloned; inputs not copied; ``keeps_mask`` False."""
    chosen = runner(f"engine={engine}", "graph=cuda_graphs", "iterations=2", *batching)
    prepared = replace(chosen, input=compose([f"text={TEXTS}"]).input).prepare()
    recorded = chosen.run(TEXTS)
    assert len(RECORDERS[-1].made) == len({(s.sequences, s.slots) for s in prepared.shapes})
    # Each shape once before measuring, and no forward without a graph.
    assert RECORDERS[-1].replays == len(prepared.shapes) + 2 * prepared.workload.forwards
    assert recorded.record["choice"]["graph"] == "cuda_graphs"
    assert recorded.record["phases_s"]["compile"] > 0
    plain = [option for option in batching if not option.startswith("graph.")]
    eager = runner(f"engine={engine}", "graph=eager", *plain, device=Cpu()).run(TEXTS)
    assert equal(recorded, eager)


def test_a_graph_recorded_without_padding_is_replayed_with():
    texts = ["word " * 6] * 2 + ["word"] * 2
    recorded = runner("graph=cuda_graphs", "batch=2").run(texts)
    assert len(RECORDERS[-1].made) == 1
    assert RECORDERS[-1].replays == 4, "both batches, before measuring and measured"
    assert equal(recorded, runner("graph=eager", "batch=2", device=Cpu()).run(texts))


def test_no_more_graphs_are_kept_than_asked_and_the_rest_is_warned_of():
    """Seen to fail: the bound left out."""
    few = ["batching=by_length", "batching.edges=[8,32]", "max_length=32", "batch=2"]
    bounded = runner("graph=cuda_graphs", "graph.max_graphs=1", *few).run(TEXTS)
    assert len(RECORDERS[-1].made) == 1
    codes = {warning["code"]: warning["message"] for warning in bounded.record["warnings"]}
    assert "1 of the batch shapes" in codes["without_graph"]
    assert equal(bounded, runner("graph=eager", *few, device=Cpu()).run(TEXTS))


def two(x, scale=1):
    return x * scale, x.sum(-1)


def test_what_differs_in_shape_or_type_or_in_what_is_no_tensor_is_another_graph():
    """Seen to fail: the type left out of the key."""
    recorder = Recorder()
    encode = recording.recorded(two, recorder, most=9)
    for x in (torch.ones(2, 3), torch.ones(3, 2), torch.ones(2, 3).double(), 5 * torch.ones(2, 3)):
        for scale in (1, 2):
            found = encode(x, scale)
            assert torch.equal(found[0], x * scale)
            assert found[0].dtype == x.dtype
    assert len(recorder.made) == 6


def test_a_result_outlives_the_next_replay_and_the_input_is_left_alone():
    encode = recording.recorded(two, Recorder(), most=9)
    given = torch.ones(2, 3)
    first = encode(given)
    encode(torch.ones(2, 3) * 7)
    encode(torch.ones(4, 3))
    assert first[0].unique().tolist() == [1]
    assert given.unique().tolist() == [1]


def test_a_forward_that_reads_a_value_is_not_recorded():
    with pytest.raises(RuntimeError, match="capturing"):
        recording.recorded(lambda x: (x[: int(x.sum())], x), Recorder(), 9)(torch.ones(3))


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda's own names and signatures; what they do on a card is not seen here."""
    names = ("Stream", "CUDAGraph", "graph", "graph_pool_handle", "stream", "current_stream")
    for name in names:
        monkeypatch.setattr(torch.cuda, name, create_autospec(getattr(torch.cuda, name)))
    return torch.cuda


def test_a_recording_is_warmed_up_on_a_stream_of_its_own_and_shares_its_pool(cuda):
    record = recording.Recorder()
    streams = []

    def work():
        streams.append(cuda.stream.mock_calls[-1])
        return torch.ones(1), torch.ones(1)

    _, replay = record(work)
    record(work)
    side = cuda.Stream.return_value
    assert len(streams) == 8
    assert set(map(str, streams)) == {str(call().__enter__())}, "inside the side stream"
    cuda.stream.assert_called_with(side)
    side.wait_stream.assert_called_with(cuda.current_stream.return_value)
    cuda.current_stream.return_value.wait_stream.assert_called_with(side)
    pool = cuda.graph_pool_handle.return_value
    graph = cuda.CUDAGraph.return_value
    assert cuda.graph.call_args_list == [call(graph, pool=pool, stream=side)] * 2
    cuda.graph_pool_handle.assert_called_once_with()
    replay()
    graph.replay.assert_called_once_with()


@pytest.mark.parametrize("is_autocast", [True, False])
def test_only_autocasts_own_cache_is_off_while_recording(cuda, is_autocast):
    """Seen to fail: off without autocast too, so that what was compiled inside was so again."""
    seen = []

    def work():
        seen.append(torch.is_autocast_cache_enabled())
        return torch.ones(1), torch.ones(1)

    torch.set_autocast_enabled("cuda", is_autocast)
    try:
        recording.Recorder()(work)
    finally:
        torch.set_autocast_enabled("cuda", False)  # noqa: FBT003
    assert seen == [not is_autocast] * 4
    assert torch.is_autocast_cache_enabled()
    assert cuda.graph.called


@pytest.mark.parametrize(
    ("broken", "raised"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), torch.OutOfMemoryError),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), RuntimeError),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors"), RuntimeError),
        (RuntimeError("operation not permitted\nCUDA kernel errors"), UnrecordableError),
    ],
)
@pytest.mark.parametrize("ends_well", [True, False])
def test_what_breaks_a_recording_is_told_and_not_how_it_ended(cuda, broken, raised, ends_well):
    """Seen to fail: the error of the recording's end, which torch raises over the first."""
    attempts = []

    def work():
        attempts.append(1)
        if len(attempts) > 3:
            raise broken
        return torch.ones(1), torch.ones(1)

    def end(*_):
        if not ends_well:
            raise RuntimeError("capture was invalidated")

    cuda.graph.return_value.__exit__.side_effect = end
    if ends_well:
        cuda.graph.return_value.__exit__.return_value = False
    cuda.stream.return_value.__exit__.return_value = False
    with pytest.raises(raised) as told:
        recording.Recorder()(work)
    assert "invalidated" not in str(told.value)
    assert str(broken).partition("\n")[0] in str(told.value)
    if raised is UnrecordableError:
        assert "graph=eager" in told.value.remedy
    assert torch.is_autocast_cache_enabled()


def test_torchs_own_graphs_are_known_and_their_results_kept(monkeypatch):
    """Seen to fail: results that are not cloned."""
    options = importlib.import_module("torch._inductor").list_mode_options()
    for mode in CompileMode:
        assert mode.records == bool(options[mode.value].get("triton.cudagraphs"))
    static = torch.zeros(2), torch.zeros(2)

    def overwritten(x):
        return static[0].copy_(x), static[1].copy_(x)

    asked = create_autospec(torch.compile, return_value=overwritten)
    monkeypatch.setattr(torch, "compile", asked)
    encode = Cuda().compile(overwritten, 3, CompileMode.reduce_overhead)
    asked.assert_called_once_with(ANY, dynamic=None, mode="reduce-overhead")
    first = encode(torch.ones(2))
    encode(torch.zeros(2))
    assert first[0].tolist() == [1, 1]
    assert Cuda().compile(overwritten, 1, CompileMode.default) is overwritten
    # One compiles, one records, one replays: none of them is to be measured.
    assert Compile(CompileMode.reduce_overhead).first_forwards == 3


def test_what_derives_from_a_devices_graphs_is_one_of_them():
    """Seen to fail: refused on device=cuda, with the advice to use it."""

    class Mine(CudaGraphs):
        name = "mine"

    Mine().check(Cuda())
    with pytest.raises(RefusedError, match="graph=mine is refused on device=hpu"):
        Mine().check(Hpu())


def test_each_devices_graphs_are_refused_on_the_other_which_names_its_own():
    with pytest.raises(
        RefusedError, match=r"(?s)on device=hpu: only NVIDIA.*Use graph=hpu_graphs,"
    ):
        CudaGraphs().check(Hpu())
    with pytest.raises(
        RefusedError, match=r"(?s)on device=cuda: only Gaudi.*Use graph=cuda_graphs"
    ):
        HpuGraphs().check(Cuda())
    with pytest.raises(RefusedError, match=r"(?s)on device=cpu.*Use graph=auto, .*device=cuda\."):
        compose(["device=cpu", "graph=cuda_graphs"]).prepare()
    CudaGraphs().check(Cuda())


PACKED = ["batching=packed", "engine=fused"]
MANY_WIDTHS = ["batching=token_budget", "batching.max_tokens=512"]


@pytest.mark.parametrize(
    ("overrides", "graph"),
    [
        (["text=Hello"], "cuda_graphs"),
        (["text=Hello", *PACKED], "cuda_graphs"),
        # 32,000 tokens in a forward compute 25 ms on the fastest card; asking takes 16.
        (["input=synthetic", "input.texts=200", *PACKED, "batching.max_tokens=33792"], "eager"),
        # 8,000 of them 6 ms.
        (
            ["input=synthetic", "input.texts=200", *PACKED, "batching.max_tokens=8192"],
            "cuda_graphs",
        ),
        (["input=synthetic", "input.texts=200", *PACKED, "batching.max_tokens=512"], "cuda_graphs"),
        # A width for nearly each forward: too many to be recorded.
        (["input=synthetic", "input.texts=200", *MANY_WIDTHS], "eager"),
    ],
)
def test_auto_takes_graphs_where_asking_takes_longest(overrides, graph):
    """Seen to fail: the comparison turned round; the budget of shapes not looked at."""
    chosen = replace(
        compose(["model=bert-large-uncased", "model.weights=random", *overrides]), device=Card()
    )
    prepared = chosen.prepare()
    assert prepared.graph.name == graph
    assert bool(prepared.buckets) == (graph == "cuda_graphs")


def test_auto_elsewhere_is_what_it_was():
    assert compose(["model=tiny", "device=cpu"]).prepare().graph.name == "eager"
    assert isinstance(Cuda().preferred_graph(), CudaGraphsIfFaster)
