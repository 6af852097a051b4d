"""On an NVIDIA GPU: outputs as on the processor, memory that stays flat, what is refused.

Where there is none, the file is skipped. BERT_INFER_TEST_DEVICE=cpu runs those that need no
more than the processor has: it shows that the tests themselves work.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from itertools import pairwise

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packing import LENGTHS, check_isolation, check_order_and_neighbours, encoder
from reference import BATCHINGS, EAGER, PACKED, largest_difference, smallest_cosine
from torch.nn import functional

from bert_infer import compose
from bert_infer.devices.cuda import Cuda
from bert_infer.devices.cuda.attention import Blocked
from bert_infer.devices.cuda.linears import Fp8Gelu, Fp8GeluInside
from bert_infer.errors import BertInferError, RefusedError
from bert_infer.models.architecture import Architecture
from bert_infer.operators import fp8
from bert_infer.operators.attention import BySdpa
from bert_infer.operators.fp8 import Fp8Linear
from bert_infer.outputs import Sink
from bert_infer.processes.worker import carry_out
from bert_infer.running.execution import execute

DEVICE = os.environ.get("BERT_INFER_TEST_DEVICE", "cuda")
IS_CUDA = DEVICE == "cuda"
if IS_CUDA and not torch.cuda.is_available():
    pytest.skip("there is no NVIDIA GPU that this build of torch can use", allow_module_level=True)
CAPABILITY = torch.cuda.get_device_capability() if IS_CUDA else (0, 0)

# What a build for a GPU warns of, its own compiler above all, is not this project's.
pytestmark = pytest.mark.filterwarnings("default")
of_cuda_alone = pytest.mark.skipif(not IS_CUDA, reason=f"device={DEVICE} has no such thing")

ON_DEVICE = ["model=minilm", f"device={DEVICE}", "warmup=0"]
FUSED = [choices for choices in EAGER if "engine=fused" in choices]

FP32_DIFFERENCE = 2e-5
"""Of any output, from the processor's."""
SMALLEST_COSINE = {"tf32": 0.99999, "fp16": 0.9999, "bf16": 0.999, "fp8": 0.95}
"""Of any token's states to the processor's in fp32. By rounding what matmuls take on a processor,
MiniLM has 0.999998 in tf32 and 0.978 in fp8 (e4m3, a scale a row)."""
NEEDS = {"bf16": (8, 0), "tf32": (8, 0), "fp8": (8, 9)}
"""The compute capability from which a card has a dtype."""


def lacks(dtype):
    if not IS_CUDA:
        return dtype in {"tf32", "fp8"}
    is_refused = dtype == "fp8" and CAPABILITY == (8, 9) and torch.__version__ < "2.12"
    return is_refused or NEEDS.get(dtype, (0, 0)) > CAPABILITY


def with_(dtype):
    """The dtype as a parameter, skipped where the device lacks it."""
    mark = pytest.mark.skipif(lacks(dtype), reason=f"this {DEVICE} has no {dtype}")
    return pytest.param(dtype, marks=mark)


def of_graph(graph):
    """The graph mode as a parameter, skipped where the device lacks it."""
    return pytest.param(graph, marks=of_cuda_alone if graph == "cuda_graphs" else ())


compiling = pytest.mark.skipif(
    not IS_CUDA or CAPABILITY < (8, 0) or not Cuda().compiles_regions,
    reason="kernels of our own need Triton, a C compiler and a card of Ampere or later",
)
with_codes = pytest.mark.skipif(
    IS_CUDA and NEEDS["fp8"] > CAPABILITY, reason=f"this {DEVICE} has no fp8"
)
GELU_AND_CODES = pytest.mark.parametrize(
    "make",
    [
        pytest.param(Fp8Linear, marks=with_codes),
        pytest.param(Fp8Gelu, marks=[with_codes, compiling]),
        pytest.param(
            Fp8GeluInside,
            marks=[
                compiling,
                pytest.mark.skipif(
                    not (9, 0) <= CAPABILITY < (10, 0), reason="this kernel is Hopper's"
                ),
            ],
        ),
    ],
)


@pytest.mark.parametrize("choices", EAGER, ids="-".join)
@pytest.mark.parametrize("graph", ["eager", of_graph("cuda_graphs")])
def test_fp32_equals_the_processors(graph, choices, prose, minilm_reference):
    result = compose([*ON_DEVICE, f"graph={graph}", *choices]).run(prose)
    assert largest_difference(result, minilm_reference) <= FP32_DIFFERENCE
    assert result.record["choice"]["graph"] == graph
    assert result.record["choice"]["device"] == DEVICE
    assert result.record["workload"]["length"]["max"] == 512
    if IS_CUDA:
        assert result.record["memory"]["peak_device_bytes"] > 0


@pytest.mark.parametrize("choices", [BATCHINGS[0], BATCHINGS[2], PACKED], ids="-".join)
@pytest.mark.parametrize("dtype", ["fp32", with_("bf16")])
def test_compiled_equals_the_processors(dtype, choices, prose, minilm_reference):
    result = compose([*ON_DEVICE, "graph=compile", f"dtype={dtype}", *choices]).run(prose)
    if dtype == "fp32":
        assert largest_difference(result, minilm_reference) <= FP32_DIFFERENCE
    else:
        assert smallest_cosine(result, minilm_reference) >= SMALLEST_COSINE[dtype]


@of_cuda_alone
@pytest.mark.parametrize("choices", [BATCHINGS[1], PACKED], ids="-".join)
@pytest.mark.parametrize("mode", ["reduce_overhead", "max_autotune", "max_autotune_no_cudagraphs"])
@pytest.mark.parametrize("dtype", ["fp32", with_("tf32")])
def test_every_mode_of_compiling_equals_the_processors(dtype, mode, choices, prose):
    """Replayed too: three passes, of which those of a recording mode warm up, record and replay.

    One batch, as max_autotune tries kernels for each shape, which takes most of a minute.
    """
    same = ["model=tiny", "drift.texts=0", "iterations=3", *choices]
    theirs = compose([*same, "device=cpu"]).run(prose[:3])
    on_device = [f"device={DEVICE}", f"dtype={dtype}", "graph=compile", f"graph.mode={mode}"]
    mine = compose([*same, *on_device]).run(prose[:3])
    reference = list(zip(theirs.hidden_states, theirs.pooled, strict=True))
    if dtype == "fp32":
        assert largest_difference(mine, reference) <= FP32_DIFFERENCE
    else:
        assert smallest_cosine(mine, reference) >= SMALLEST_COSINE[dtype]


@of_cuda_alone
@pytest.mark.parametrize("dtype", [with_("bf16"), with_("fp8")])
def test_torchs_own_graphs_replay_our_kernels(dtype, prose, minilm_reference):
    recording = ["graph=compile", "graph.mode=reduce_overhead", "iterations=3"]
    result = compose([*ON_DEVICE, f"dtype={dtype}", *recording, *PACKED]).run(prose)
    assert smallest_cosine(result, minilm_reference) >= SMALLEST_COSINE[dtype]


@pytest.mark.parametrize("choices", EAGER, ids="-".join)
@pytest.mark.parametrize("graph", ["eager", of_graph("cuda_graphs")])
@pytest.mark.parametrize("dtype", [with_("tf32"), with_("fp16"), with_("bf16")])
def test_narrow_formats_are_near_the_processors(dtype, graph, choices, prose, minilm_reference):
    result = compose([*ON_DEVICE, f"dtype={dtype}", f"graph={graph}", *choices]).run(prose)
    assert smallest_cosine(result, minilm_reference) >= SMALLEST_COSINE[dtype]
    assert result.record["drift"]["min_cosine"] >= SMALLEST_COSINE[dtype]


@pytest.mark.parametrize("graph", ["eager", "compile", of_graph("cuda_graphs")])
@pytest.mark.parametrize("dtype", ["fp32", with_("bf16"), with_("fp8")])
def test_first_tokens_alone_are_near_the_processors(dtype, graph, prose, minilm_reference):
    chosen = [f"dtype={dtype}", f"graph={graph}", "engine=fused_cls", "batching=packed"]
    result = compose([*ON_DEVICE, *chosen]).run(prose)
    firsts = [(states[:1], pooled) for states, pooled in minilm_reference]
    assert [len(states) for states in result.hidden_states] == [1] * len(prose)
    assert smallest_cosine(result, firsts) >= SMALLEST_COSINE.get(dtype, 0.9999)
    assert result.record["drift"]["min_cosine"] >= SMALLEST_COSINE.get(dtype, 0.9999)


@pytest.mark.parametrize("choices", FUSED, ids="-".join)
@pytest.mark.parametrize("graph", ["eager", "compile", of_graph("cuda_graphs")])
@pytest.mark.parametrize("dtype", [with_("fp8")])
def test_fp8_is_near_the_processors(dtype, graph, choices, prose, minilm_reference):
    result = compose([*ON_DEVICE, f"dtype={dtype}", f"graph={graph}", *choices]).run(prose)
    assert smallest_cosine(result, minilm_reference) >= SMALLEST_COSINE[dtype]
    drift = result.record["drift"]
    assert SMALLEST_COSINE[dtype] <= drift["min_cosine"] < 0.9999, "it is fp8 indeed"


@pytest.mark.parametrize("graph", ["eager", of_graph("cuda_graphs")])
@pytest.mark.parametrize("engine", ["transformers", "fused"])
def test_one_token_up_to_the_longest(engine, graph):
    for length in (1, 2, 511, 512):
        same = ["input=synthetic", "input.texts=3", "input.lengths=fixed", "input.min=1"]
        choices = ["batch=3", "drift.texts=0", *same, f"input.max={length}"]
        mine = compose([*ON_DEVICE, f"engine={engine}", f"graph={graph}", *choices]).run()
        theirs = compose(["model=minilm", "device=cpu", *choices]).run()
        reference = list(zip(theirs.hidden_states, theirs.pooled, strict=True))
        assert largest_difference(mine, reference) <= FP32_DIFFERENCE


ROUNDING = {"fp32": 1e-5, "bf16": 0.25, "fp8": 1.0}
"""How much a state, of some units at the most, may change where others share its matmuls."""


@pytest.fixture(scope="module", params=["fp32", with_("bf16"), with_("fp8")])
def packed(request):
    """A packed encoder on the device, and its dtype."""
    return encoder(f"device={DEVICE}", f"dtype={request.param}", "engine=fused"), request.param


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LENGTHS, st.integers(0, 99), st.randoms(use_true_random=False))
def test_order_and_neighbours_change_nothing_beyond_rounding(packed, lengths, seed, random):
    encode, dtype = packed
    check_order_and_neighbours(encode, lengths, seed, random, ROUNDING[dtype])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(LENGTHS.filter(lambda lengths: len(lengths) > 1), st.integers(0, 99), st.data())
def test_no_sequence_sees_anothers_tokens(packed, lengths, seed, data):
    check_isolation(packed[0], lengths, seed, data)


@pytest.mark.parametrize("graph", ["compile", of_graph("cuda_graphs")])
@pytest.mark.parametrize("dtype", ["fp32", with_("bf16")])
def test_a_mask_counts_though_the_first_batch_needs_none(dtype, graph, minilm_reference, prose):
    """Batches of one shape: the first is without padding, and what is recorded is that one."""
    longest, short = prose[-1], prose[4]
    texts = [longest, longest, short, short]
    choices = ["engine=transformers", "batching=padded", "batch=2", f"dtype={dtype}"]
    result = compose([*ON_DEVICE, f"graph={graph}", *choices]).run(texts)
    assert result.record["workload"]["forwards_per_pass"] == 2
    reference = [minilm_reference[i] for i in (-1, -1, 4, 4)]
    if dtype == "fp32":
        assert largest_difference(result, reference) <= FP32_DIFFERENCE
    else:
        assert smallest_cosine(result, reference) >= SMALLEST_COSINE[dtype]


class Held(Sink):
    """Keeps no outputs, but what memory is held after each forward."""

    def __init__(self):
        self.bytes = []

    def collect(self, _batch, _outputs):
        in_use = torch.cuda.memory_reserved() if IS_CUDA else psutil.Process().memory_info().rss
        self.bytes.append(in_use)

    def write(self, directory):
        pass


MEBIBYTE = 1 << 20


@pytest.mark.parametrize("engine", ["fused", "transformers"])
@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(["graph=eager"], id="eager"),
        pytest.param(["graph=cuda_graphs"], id="cuda_graphs", marks=of_cuda_alone),
        pytest.param(
            # Nearly as many shapes as batches, of which few are recorded.
            ["graph=cuda_graphs", "graph.max_buckets=512", "graph.max_graphs=8"],
            id="few-of-many-shapes",
            marks=of_cuda_alone,
        ),
    ],
)
def test_memory_stays_flat_over_a_thousand_batches_of_changing_shapes(engine, graph):
    """Windows hold few sequences, so that long and short batches come in turn all along."""
    ragged = ["input=synthetic", "input.lengths=uniform", "input.min=1", "input.max=512"]
    layout = (
        ["batching=packed", "batching.max_tokens=1024", "input.texts=4500"]
        if engine == "fused"
        else ["batching=by_length", "batch=4", "input.texts=4000"]
    )
    overrides = ["model=tiny", f"device={DEVICE}", f"engine={engine}", *graph, *ragged, *layout]
    small = ["batching.window=64", "drift.texts=0", "warmup=0", "iterations=2"]
    runner = compose([*overrides, *small])
    prepared, held = runner.prepare(), Held()
    assert len({(shape.sequences, shape.slots) for shape in prepared.shapes}) > 3
    execute(prepared, runner.new_record(), (held,))
    a_pass = prepared.workload.forwards
    assert a_pass >= 1000
    # On a processor, oneDNN keeps something for each shape that it has met.
    warm = 200 if IS_CUDA else a_pass
    assert max(held.bytes[warm:]) <= max(held.bytes[:warm]) + 64 * MEBIBYTE


@contextmanager
def all_but(free_bytes):
    """Take the card's memory but for so much."""
    torch.cuda.empty_cache()
    available, _ = torch.cuda.mem_get_info()
    taken = torch.empty(available - free_bytes, dtype=torch.uint8, device="cuda")
    try:
        yield
    finally:
        del taken
        torch.cuda.empty_cache()


@of_cuda_alone
@pytest.mark.parametrize("graph", ["eager", "cuda_graphs"])
def test_a_batch_that_does_not_fit_leaves_a_record_that_names_the_largest_that_did(tmp_path, graph):
    """A window of short sequences fits; of the next one's hidden layer, each tensor takes 3 GB."""
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["Short."] * 1024 + ["word " * 600] * 1024), "utf-8")
    overrides = [
        *("model=minilm", "device=cuda", f"graph={graph}", "drift.texts=0", "batch=1024"),
        *("batching=by_length", "batching.window=1024", "input=lines", f"input.path={texts}"),
    ]
    directory = tmp_path / "run"
    directory.mkdir()
    # The ceiling's matmuls and the context's own workspaces need some as well.
    with all_but(3 << 30):
        carry_out(lambda: compose(overrides), directory)
    metrics = json.loads((directory / "metrics.json").read_text())
    assert metrics["status"] == "failed"
    said = metrics["error"]["message"]
    assert re.search(r"1,024 sequences, 524,288 tokens.* did not fit", said), said
    assert re.search(r"largest that did .*1,024 sequences, 32,768 tokens", said), said
    assert "batch" in metrics["error"]["remedy"]
    # The card is as it was: the next run has all of it.
    assert compose(["model=minilm", "device=cuda"]).run("Good morning!").record["status"] == "ok"


@of_cuda_alone
@pytest.mark.parametrize(
    ("workload", "graph"),
    [
        (["text=Hello world!"], "cuda_graphs"),
        (
            [
                *("input=synthetic", "input.texts=512", "input.lengths=fixed", "input.max=512"),
                "batch=512",
            ],
            "eager",
        ),
    ],
    ids=["a short prompt", "a large batch"],
)
@pytest.mark.parametrize("model", ["minilm", "bert-large-uncased"])
def test_auto_takes_graphs_where_the_hosts_time_counts(model, workload, graph):
    overrides = [f"model={model}", "model.weights=auto", "device=cuda", "graph=auto", "dtype=bf16"]
    runner = compose([*overrides, *workload])
    assert runner.prepare().graph.name == graph


@of_cuda_alone
def test_what_nvml_says_of_the_card_is_in_the_record(tmp_path):
    overrides = [
        "model=minilm",
        "device=cuda",
        "text=Hello world!",
        "until.relative_ci=1e-9",
        "until.max_s=3",
    ]
    carry_out(lambda: compose(overrides), tmp_path)
    environment = json.loads((tmp_path / "environment.json").read_text())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["accelerator"]["measured_energy_j"] > 0
    assert environment["device"]["name"] == torch.cuda.get_device_name()
    assert environment["device"]["driver"]
    before, after = environment["conditions"]["accelerator"]
    for readings in (before, after):
        assert readings["power_w"] > 0
        assert readings["sm_clock_mhz"] > 0
        assert readings["memory_clock_mhz"] > 0
        assert 0 < readings["temperature_c"] < 150
    assert isinstance(environment["conditions"]["throttled"], list)
    assert isinstance(environment["conditions"]["accelerator_processes"], list)


@of_cuda_alone
def test_another_process_on_the_card_is_a_warning():
    """Not by its id: in a container NVML may tell the host's."""
    script = "import torch; torch.ones(1, device='cuda'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "\n", "it is on the card"
        record = compose(["model=minilm", "device=cuda", "text=Hello world!"]).run().record
        other.communicate("\n")
    assert "shared_accelerator" in {warning["code"] for warning in record["warnings"]}


@of_cuda_alone
@pytest.mark.parametrize("graph", ["eager", "cuda_graphs"])
@pytest.mark.parametrize("choices", [BATCHINGS[1], PACKED], ids="-".join)
def test_forwards_in_flight_change_no_output(choices, graph, prose):
    """Many short batches, so that one is laid out and copied while another is computed."""
    both = [
        compose([*ON_DEVICE, f"graph={graph}", *choices, f"device.in_flight={most}"]).run(prose * 8)
        for most in (1, 2)
    ]
    for one, two in zip(both[0].hidden_states, both[1].hidden_states, strict=True):
        assert torch.equal(one, two)
    assert torch.equal(both[0].pooled, both[1].pooled)
    assert [result.record["measurement"]["in_flight"] for result in both] == [1, 2]


@of_cuda_alone
@pytest.mark.parametrize("fuses", [False, None])
@pytest.mark.parametrize("dtype", ["fp32", with_("bf16")])
def test_heads_of_odd_sizes_are_attended_to(dtype, fuses):
    """TinyBERT's: they are filled up to what kernels load."""
    config = compose(["model=tiny"]).model.architecture().config
    of_26 = Architecture({**config, "hidden_size": 3 * 26, "num_attention_heads": 3})
    number = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    attend = Cuda(fuses=fuses).attention(number, of_26)
    qkv, ends = torch.randn(40, 3, 3, 26), torch.tensor([0, 3, 4, 29, 40], dtype=torch.int32)
    on_card = qkv.to("cuda", number)
    found = attend(on_card, attend.bounds(on_card.flatten(1), ends.to("cuda")))
    close = 1e-4 if dtype == "fp32" else 3e-2
    torch.testing.assert_close(found.float().cpu(), BySdpa()(qkv, ends), rtol=close, atol=close)


@compiling
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
def test_our_attention_is_that_of_each_sequence_by_itself(head_dim, dtype):
    """And reads nothing of another: the bits of a sequence among broken ones are its own."""

    def attended(qkv, ends):
        attend = Blocked()
        return attend(qkv, attend.bounds(qkv, ends))

    lengths = [1, 0, 31, 32, 33, 64, 2, 65, 512, 500, 0]
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 5, head_dim, generator=generator).to("cuda", dtype)
    ends = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)
    found = attended(qkv, ends)
    rounding = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    expected = BySdpa()(qkv.float(), ends)
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=rounding)
    for start, end in pairwise(ends.tolist()):
        others = torch.full_like(qkv, torch.nan)
        others[start:end] = qkv[start:end]
        assert torch.equal(attended(others, ends)[start:end], found[start:end])


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 3000])
@GELU_AND_CODES
def test_gelu_and_codes_in_one_kernel_are_those_of_the_product(make, rows):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 384, generator=generator).to(DEVICE, torch.bfloat16)
    weight = torch.randn(1536, 384, generator=generator).to(DEVICE, torch.bfloat16) / 20
    bias = torch.randn(1536, generator=generator).to(DEVICE, torch.bfloat16)
    linear = make(weight, bias)
    operand = linear.operand(x)
    found = linear.gelu(operand)
    numbers, scale = fp8.codes_of_weight(weight)
    product = (operand.values.double() * operand.scale) @ (numbers.double() * scale).t() + bias
    expected = functional.gelu(product)
    error = (found.values.double() * found.scale - expected).norm(dim=1) / expected.norm(dim=1)
    assert 0.02 < error.max() < 0.035, "three bits of mantissa, rounded once"


@GELU_AND_CODES
def test_a_row_without_numbers_spoils_no_other(make):
    x = torch.ones(300, 384, dtype=torch.bfloat16, device=DEVICE)
    x[5], x[7, 3], x[9, 3] = 0, torch.inf, torch.nan
    up, down = (
        make(torch.randn(sizes, dtype=torch.bfloat16, device=DEVICE), None)
        for sizes in ((1536, 384), (384, 1536))
    )
    is_finite = down(up.gelu(up.operand(x))).isfinite().all(1)
    assert (~is_finite).nonzero().flatten().tolist() == [7, 9]


@of_cuda_alone
def test_a_card_that_is_not_there_is_refused():
    with pytest.raises(RefusedError, match=r"device\.index=99"):
        compose(["model=tiny", "device=cuda", "device.index=99"]).prepare()


@of_cuda_alone
@pytest.mark.parametrize("dtype", ["bf16", "fp8"])
def test_a_format_that_the_card_lacks_is_refused(dtype):
    runner = compose(["model=tiny", "device=cuda", f"dtype={dtype}", "engine=fused"])
    if not lacks(dtype):
        runner.prepare()
        return
    with pytest.raises(BertInferError, match=f"dtype={dtype}"):
        runner.run("Good morning!")
