"""Gaudi's path in lazy mode, on the simulated card; tests/test_hpu.py runs it in a process.

A test named after a trap fails when the trap is walked into: its docstring says which change of the
code was made to see it fail.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bert_infer
from bert_infer import cli, compose
from bert_infer.models import weights
from bert_infer.running.execution import execute
from bert_infer.operators.attention import ByMask
from bert_infer.devices.hpu import Hpu, host
from bert_infer.errors import RefusedError
from bert_infer.graphs.hpu_graphs import HpuGraphs
from bert_infer.batching.layouts import PaddedBatch
from bert_infer.measuring.measure import fastest_s, forward, measured_pass
from bert_infer.records import Outputs
from bert_infer.cli.request import Request

TEXTS = [
    "Good morning BERT!",
    "Hello",
    "A somewhat longer text, so that there is padding to be masked.",
    "Two words",
    "Six words, to fill the batch.",
    "x",
    "The last of seven.",
]
POLICIES = [
    ("transformers", "padded", []),
    ("transformers", "by_length", ["batching.edges=[8,32,512]"]),
    ("transformers", "token_budget", ["batching.max_tokens=40", "graph.edges=[8,32]"]),
    ("fused", "padded", []),
    ("fused", "by_length", ["batching.edges=[8,32,512]"]),
    ("fused", "token_budget", ["batching.max_tokens=40", "graph.edges=[8,32]"]),
    ("fused", "packed", ["batching.max_tokens=24"]),
    ("fused_cls", "packed", ["batching.max_tokens=24"]),
]
ONCE = ["warmup=0", "drift.texts=0"]
"""Of a run whose outputs and counters alone are looked at; every shape is recorded all the same."""


def runner(*overrides, device="hpu"):
    return compose(["model=tiny", f"device={device}", "batch=3", *overrides])


@pytest.fixture(scope="module")
def on_cpu():
    """What the CPU computes, each text by itself."""
    return runner("batch=1", device="cpu").run(TEXTS)


@pytest.fixture(scope="module", autouse=True)
def plugin():
    """The main job, which sets the mode and imports the plugin as a run of its own would."""
    assert "habana_frameworks.torch" not in sys.modules
    return runner("batch=12").run(["Good morning BERT!"])


def codes(result):
    return {warning["code"]: warning["message"] for warning in result.record["warnings"]}


def test_the_main_job_uses_graphs_as_the_vendors_readme_promised(plugin):
    record = plugin.record
    assert record["choice"]["device"] == "hpu"
    assert record["choice"]["graph"] == "hpu_graphs"  # by graph=auto
    assert record["workload"]["sequences"] == 12
    assert record["drift"]["min_cosine"] > 0.9999  # fp32 here is not the reference itself
    assert record["memory"]["device_bytes"] == 96 << 30
    assert 0 < record["memory"]["peak_device_bytes"] < 96 << 30
    assert "recompiled" not in codes(plugin)


@pytest.mark.parametrize(("engine", "batching", "more"), POLICIES)
def test_outputs_are_the_cpus_whatever_the_batching_and_engine(engine, batching, more, on_cpu):
    """A trap for each that is walked into: replays, masks, fillers, keys of graphs.

    Seen to fail: ``copy_out`` returning device tensors; ``Hpu.mask`` returning zeros throughout;
    token types left to BertModel, which gathers 64-bit integers.
    """
    chosen = [f"engine={engine}", f"batching={batching}", "graph=hpu_graphs", "iterations=2"]
    chosen_runner = runner(*chosen, *more, *ONCE)
    result = chosen_runner.run(TEXTS)
    kept = chosen_runner.engine.layout.kept
    for found, expected in zip(result.hidden_states, on_cpu.hidden_states, strict=True):
        torch.testing.assert_close(found, kept.of(expected), rtol=0, atol=2e-6)
    torch.testing.assert_close(result.pooled, on_cpu.pooled, rtol=0, atol=2e-6)
    accelerator = result.record["accelerator"]
    assert accelerator["measured_compilations"] == 0, "every shape was compiled before"
    assert accelerator["recipe_cache_hits"] > 0
    assert accelerator["cpu_fallbacks"] == {}
    assert accelerator["measured_energy_j"] is None  # no HLML here


@pytest.mark.parametrize("engine", ["transformers", "fused"])
def test_two_forwards_in_flight_compute_the_same(engine, on_cpu):
    """Seen to fail: ``copy_in`` and ``copy_out`` exchanged in ``Overlap``."""
    chosen = ["batching=padded", "graph=hpu_graphs", "graph.asynchronous=true", "iterations=2"]
    result = runner(f"engine={engine}", *chosen, "device.in_flight=2", *ONCE).run(TEXTS)
    for found, expected in zip(result.hidden_states, on_cpu.hidden_states, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(result.pooled, on_cpu.pooled, rtol=0, atol=2e-6)
    measurement = result.record["measurement"]
    assert measurement["in_flight"] == 2
    assert result.record["latency_ms"]["min"] > 0
    assert measurement["copy_in_ms"] > 0
    assert result.record["accelerator"]["measured_compilations"] == 0


@pytest.mark.parametrize(("engine", "graph"), [("transformers", "hpu_graphs"), ("fused", "eager")])
def test_plain_sdpa_is_a_switch_away(engine, graph, on_cpu):
    from habana_frameworks.torch.hpex import kernels

    kernels.seen.clear()
    lazy = "device.lazy=true"
    chosen = [f"engine={engine}", f"graph={graph}", lazy, "device.fused_attention=false"]
    result = runner(*chosen, *ONCE).run(TEXTS)
    assert not kernels.seen
    torch.testing.assert_close(result.pooled, on_cpu.pooled, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("engine", "dtype"),
    [
        *itertools.product(["transformers", "fused"], ["fp32", "bf16"]),
        ("transformers", "bf16_autocast"),
    ],
)
def test_trap_a_mask_is_always_four_dimensional_and_added(engine, dtype):
    """Seen to fail: ``Hpu.keeps_mask`` false; ``Hpu.mask`` returning the mask; float32's least."""
    from habana_frameworks.torch.hpex import kernels

    kernels.seen.clear()
    lazy = ["graph=eager", "device.lazy=true"]
    result = runner(f"engine={engine}", f"dtype={dtype}", *lazy).run(["One text without padding."])
    number = torch.float32 if dtype == "fp32" else torch.bfloat16
    assert {dtype for _, dtype in kernels.seen} == {number}
    assert all(len(shape) == 4 and shape[1] == 1 for shape, _ in kernels.seen)
    assert result.hidden_states[0].isfinite().all()
    assert result.record["drift"]["min_cosine"] > 0.99


def test_trap_a_graph_recorded_without_padding_masks_it_later(on_cpu):
    """Seen to fail: a mask of two dimensions from ``Transformers.inputs``."""
    texts = [TEXTS[4], TEXTS[4], TEXTS[4], TEXTS[4], TEXTS[1], TEXTS[5]]
    result = runner().run(texts)
    assert result.record["workload"]["forwards_per_pass"] == 2
    torch.testing.assert_close(result.hidden_states[4], on_cpu.hidden_states[1], rtol=0, atol=2e-6)


def test_trap_transformers_drops_a_mask_of_two_dimensions(card):
    """What our mask of four dimensions keeps us from, which is used as it is."""
    from habana_frameworks.torch.hpu import wrap_in_hpu_graph
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    bert = BertModel(config).eval().to("hpu")
    original = bert.forward
    ids = torch.tensor([[1, 2, 3, 4]], dtype=torch.int32).to("hpu")
    whole, half = (torch.tensor([mask]).to("hpu") for mask in ([1, 1, 1, 1], [1, 1, 0, 0]))

    def pooled(mask):
        types = torch.zeros_like(ids)
        found = bert(input_ids=ids, attention_mask=mask, token_type_ids=types)
        return found.pooler_output.cpu().clone()

    with torch.no_grad():
        unmasked, masked = pooled(whole), pooled(half)
        # Made now: a graph takes the first call's tensors for its own, and writes into them.
        added = [Hpu().mask(mask[:, None, None].bool(), torch.float32) for mask in (whole, half)]
        wrap_in_hpu_graph(bert)
        with pytest.raises(RuntimeError, match="a value is read"):
            pooled(whole)  # a card that lets nothing be read
        card.lets_read = True  # and one that does: the graph has no mask, whatever comes
        assert torch.equal(pooled(whole), unmasked)
        assert torch.equal(pooled(half), unmasked)
        assert not torch.allclose(unmasked, masked)
        bert.forward = original
        wrap_in_hpu_graph(bert)
        assert torch.equal(pooled(added[0]), unmasked)
        assert torch.equal(pooled(added[1]), masked)


def encoder(shapes=2, in_flight=1, **fields):
    """A forward of our own on the card: token ids times two, and their sum by row."""

    def encode(ids, mask):
        return ids * 2, (ids * mask).sum(1)

    device = Hpu(in_flight=in_flight)
    graph = HpuGraphs(**fields)
    wrapped = device.capture(
        device.fed(encode), asynchronous=graph.asynchronous, most=graph.max_graphs or shapes
    )
    return device, wrapped


def arrays(rows, width, start=0):
    ids = np.arange(start, start + rows * width, dtype=np.int32).reshape(rows, width)
    return ids, np.ones((rows, width), bool)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_trap_a_replay_returns_the_tensors_of_the_one_before(asynchronous):
    """Why outputs are copied out at once; seen to fail: ``copy_out`` returning device tensors."""
    device, encode = encoder(asynchronous=asynchronous)
    first = encode(*device.copy_in(arrays(2, 3)))
    copied = device.copy_out(Outputs(*first))
    device.synchronize()
    kept = copied.hidden_states.clone()
    second = encode(*device.copy_in(arrays(2, 3, start=50)))
    assert second[0] is first[0]
    assert torch.equal(copied.hidden_states, kept)
    assert torch.equal(copied.hidden_states, torch.arange(6).view(2, 3) * 2)
    assert torch.equal(first[0].cpu(), torch.arange(50, 56).view(2, 3) * 2), "overwritten"


def test_trap_shapes_of_as_many_tokens_are_apart():
    """Seen to fail: layouts that are all equal in the eyes of the recording's key."""
    device, encode = encoder()
    wide = forward(encode, arrays(2, 6), device)
    tall = forward(encode, arrays(6, 2), device)
    assert wide.hidden_states.shape == (2, 6)
    assert tall.hidden_states.shape == (6, 2)


def test_trap_a_copy_to_the_host_is_complete_when_it_returns():
    """Of pages that are not pinned nobody says when one that does not block is.

    Seen to fail: ``non_blocking=True`` in ``copy_out``.
    """
    device, encode = encoder()
    outputs = device.copy_out(Outputs(*encode(*device.copy_in(arrays(2, 3)))))
    assert torch.equal(outputs.hidden_states, torch.arange(6).view(2, 3) * 2)


def test_inputs_go_over_as_one_tensor_of_int32(card, monkeypatch):
    """Seen to fail: ``copy_in`` of the base class."""
    import card as simulation

    copied = []
    original = simulation.copy

    def watch(func, args, kwargs):
        tensors = [a for a in args[:2] if isinstance(a, torch.Tensor)]
        copied.append([(t.device.type, t.dtype) for t in tensors])
        return original(func, args, kwargs)

    monkeypatch.setattr(simulation, "copy", watch)
    Hpu().copy_in(arrays(3, 4))
    ((source, target),) = [c for c in copied if {d for d, _ in c} == {"cpu", "hpu"}]
    assert source[1] == target[1] == torch.int32


@pytest.mark.parametrize("engine", ["transformers", "fused"])
def test_weights_go_to_the_card_and_none_comes_back(engine, monkeypatch):
    """Seen to fail: from_pretrained given tensors of the card, which it brings back."""
    import card as simulation

    def never(*_, **__):
        raise AssertionError("copied to the host")

    one = runner(f"engine={engine}", "dtype=bf16")
    prepared = one.prepare()
    loaded = weights.load(prepared.source, prepared.architecture)
    monkeypatch.setattr(simulation, "to", never)
    with torch.inference_mode():
        one.engine.load(prepared.architecture, loaded, one.dtype, prepared.device)


def test_trap_every_bucket_is_replayed_before_the_first_measured_forward():
    """Seen to fail: ``HpuGraphs.first_forwards`` 1, which records only; groups not filled first."""
    from habana_frameworks.torch.hpu import HPUGraph

    HPUGraph.made.clear()
    replays = []

    def look(_done, _total):
        replays.append([graph.replays for graph in HPUGraph.made])

    by_length = runner("batching=by_length", "batching.edges=[8,32]", "max_length=32", "warmup=0")
    by_length = replace(by_length, input=type(by_length.input)(TEXTS))
    prepared = by_length.prepare()
    record = by_length.new_record()
    execute(prepared, record, progress=look)
    assert len(prepared.shapes) > 1
    assert len(replays[0]) == len({(s.sequences, s.slots) for s in prepared.shapes})
    assert min(replays[0]) >= 1
    assert len(HPUGraph.made) == len(replays[0])
    measured = sum(forward.padded_tokens for forward in record.forwards)
    assert measured == prepared.workload.padded_tokens, "what is planned is what is run"


def test_trap_timers_stop_after_the_card_has_finished(card):
    """Seen to fail: a synchronisation left out on either side of the measured forward."""
    device, encode = encoder()
    inputs = arrays(2, 3)
    batch = PaddedBatch(np.array([0, 1]), np.array([3, 3]), inputs[0])
    twice = measured_pass(0, [(batch, inputs)] * 2, encode, device, card.clock)
    (first, *_), (second, *_) = twice
    assert second.duration_s == pytest.approx(2e-4)  # the input's copy into the graph's; the replay
    assert second.copy_in_s == pytest.approx(1e-4)
    assert second.copy_out_s == pytest.approx(2e-4)
    assert first.wall_s > 0


def test_trap_events_do_not_cover_what_lazy_mode_has_gathered(card):
    """Seen to fail: ``plugin.overlap`` without ``mark_step``; the results' clones are not timed."""
    device, encode = encoder(in_flight=2)
    device.submit(encode, arrays(2, 3), card.clock)()
    computed = device.submit(encode, arrays(2, 3), card.clock)()
    # The input's copy into the graph's, the replay, a clone of each of two results.
    assert computed.duration_s == pytest.approx(4e-4)


def test_trap_lazy_mode_computes_nothing_that_nobody_holds(card):
    """Why a timed result is kept until the card has finished; seen to fail: dropping it.

    A ceiling would be without bounds.
    """
    device = Hpu()
    x = torch.ones(4, 4).to("hpu")
    device.synchronize()
    before = card.clock()
    x @ x
    device.synchronize()
    assert card.clock() == before
    readings = (card.clock() for _ in range(9))  # or it would go on for ever
    assert fastest_s(lambda: x @ x, device, 0.0, lambda: next(readings)) == pytest.approx(1e-4)


def test_a_device_that_mixes_with_the_cpu_is_refused_by_the_card():
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, 2).to("hpu") + torch.ones(2, 2)


def test_what_max_graphs_leaves_out_is_warned_of():
    """Seen to fail: ``without_graph`` 0, as the plugin says nothing."""
    chosen = ["batching=by_length", "batching.edges=[8,32]", "max_length=32", "graph=hpu_graphs"]
    few = runner(*chosen, "graph.max_graphs=1", *ONCE).run(TEXTS)
    assert "1 of the batch shapes" in codes(few)["without_graph"]
    assert "without_graph" not in codes(runner(*chosen, *ONCE).run(TEXTS))


def test_a_compilation_in_the_measured_passes_is_warned_of():
    """Seen to fail: the difference taken from the run's begin to the measured passes'."""
    texts = ["word " * n for n in (11, 21, 23)]  # widths that no other test has
    chosen = ["graph=eager", "device.lazy=true", "batching=token_budget", "warmup=0"]
    result = runner(*chosen, "batching.max_tokens=32").run(texts)
    measured = result.record["accelerator"]["measured_compilations"]
    assert measured >= len(texts)
    assert f"{measured} graphs" in codes(result)["recompiled"]
    assert result.record["accelerator"]["compilation_s"] > 0


def test_operators_that_fall_back_are_named(card):
    """Seen to fail: a fallback's count alone."""
    card.missing = {"aten::gelu_", "aten::add_.Tensor"}  # which are not asked for
    fused = runner("engine=fused", *ONCE).run(TEXTS)
    assert fused.record["accelerator"]["cpu_fallbacks"] == {}
    card.missing = {"aten::gelu"}
    lazy = runner("graph=eager", "device.lazy=true", *ONCE).run(TEXTS)
    assert lazy.record["accelerator"]["cpu_fallbacks"]["aten::gelu"] > 0
    assert "aten::gelu" in codes(lazy)["cpu_fallback"]
    with pytest.raises(RuntimeError, match="CPU fallback of aten::gelu"):
        runner().run(TEXTS)


def test_the_plugin_is_prepared_and_weights_marked_in_the_vendors_order():
    from habana_frameworks.torch.core import calls

    calls.clear()
    runner(*ONCE).run(["a"])
    assert calls == [
        ("hpu_set_inference_env", None),
        ("hpu_inference_initialize", False),
        ("hpu_teardown_inference_env", None),
    ]


def test_the_plugin_is_prepared_by_the_name_that_its_release_has(monkeypatch):
    """Seen to fail: one name alone."""
    from habana_frameworks.torch import core

    core.calls.clear()
    monkeypatch.setattr(core, "hpu_inference_set_env", core.hpu_set_inference_env, raising=False)
    monkeypatch.delattr(core, "hpu_set_inference_env")
    monkeypatch.delattr(core, "hpu_teardown_inference_env")
    runner(*ONCE).run(["a"])
    assert [name for name, _ in core.calls] == ["hpu_set_inference_env", "hpu_inference_initialize"]


def test_a_profile_sees_the_card(tmp_path):
    """Seen to fail: ``from torch.profiler import profile`` at the top of profile.py."""
    one = runner("profile=true")
    one = replace(one, input=type(one.input)(TEXTS))
    prepared = one.prepare()
    sinks = one.sinks(prepared.tokens)
    execute(prepared, one.new_record(), sinks)
    for sink in sinks:
        sink.write(tmp_path)
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    made = torch.profiler.profile.made[-1]
    assert [activity.name for activity in made.asked] == ["CPU", "HPU"]


def test_fp8_is_measured_and_then_converted(on_cpu, tmp_path):
    from habana_frameworks.torch.core import calls

    place = f"dtype.measurements={tmp_path / 'fp8'}"
    with pytest.raises(RefusedError, match=r"dtype\.step=measure"):
        runner("dtype=fp8", place).run(TEXTS)
    measuring = runner("dtype=fp8", "dtype.step=measure", place, "graph=eager", "device.lazy=true")
    measured = measuring.run(TEXTS)
    assert measured.record["choice"]["dtype"] == "fp8_measuring"
    assert "measuring" in codes(measured)
    calls.clear()
    converted = runner("dtype=fp8", place).run(TEXTS)
    assert ("hpu_inference_initialize", True) in calls, "scales alone are constants"
    assert converted.record["choice"]["graph"] == "hpu_graphs"
    assert converted.record["compute"]["ceiling_flop_per_s"] is None
    assert 0.9 < converted.record["drift"]["min_cosine"] < 0.999999
    with pytest.raises(RefusedError, match="engine=transformers"):
        runner("dtype=fp8", "engine=fused").prepare()


def test_measurements_are_kept_by_card_and_model(monkeypatch):
    from habana_frameworks.torch import hpu
    from platformdirs import user_cache_path

    measure = ["dtype=fp8", "dtype.step=measure", "graph=eager", "device.lazy=true"]
    for name, seed in (("GAUDI2", 0), ("GAUDI2", 1), ("GAUDI3", 0)):
        monkeypatch.setattr(hpu, "NAME", [name])
        runner(*measure, f"seed={seed}").run(["a"])
    places = [p.parent for p in (user_cache_path("bert_infer") / "fp8").rglob("*.json")]
    assert sorted(p.parent.name for p in places) == ["gaudi2", "gaudi2", "gaudi3"]
    assert len({p.name for p in places}) == 2, "one a model"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["graph=compile"], ["PT_HPU_LAZY_MODE=0", "reads once"]),
        (["graph=hpu_graphs", "device.lazy=false"], ["device.lazy=false", "graph=compile"]),
        (["graph=compile", "device.lazy=true"], ["device.lazy=true", "graph=hpu_graphs"]),
        (["graph=compile", "graph.mode=max_autotune"], ["graph.mode=max_autotune", "inductor"]),
        (["dtype=tf32"], ["dtype=tf32", "bf16"]),
        (["dtype=int8", "engine=fused"], ["dtype=int8", "hpu"]),
        (["graph=cuda_graphs"], ["NVIDIA", "graph=hpu_graphs", "device=cuda"]),
        (["graph=hpu_graphs", "graph.max_buckets=0"], ["graph.max_buckets=0"]),
        (["graph=hpu_graphs", "graph.max_graphs=0"], ["graph.max_graphs=0"]),
        (["graph=hpu_graphs", "graph.edges=[8,4]"], ["graph.edges", "increasing"]),
        (["device.module=-1"], ["device.module=-1"]),
        (["device.fp32_ops=/nowhere"], ["device.fp32_ops=/nowhere"]),
    ],
    ids=lambda case: case[0] if isinstance(case, list) else "",
)
def test_what_cannot_be_is_refused(overrides, says):
    with pytest.raises(RefusedError) as refused:
        runner(*overrides).run(["a"])
    for part in says:
        assert part in str(refused.value)


def test_few_tokens_meet_in_one_mask_unless_asked():
    """Seen to fail: the budget by the batching's layout, not the engine's."""

    def budget(*choices):
        return runner(*choices).prepare().batching.budget

    assert budget("batching=token_budget", "graph=eager", "device.lazy=true") == 16_384
    assert budget("batching=token_budget", "engine=fused") == 1_024
    assert budget("batching=packed", "engine=fused") == 1_024
    assert budget("batching=packed", "engine=fused", "batching.max_tokens=64") == 64


def test_too_many_shapes_are_refused_with_edges_that_fit():
    texts = ["word " * n for n in range(1, 200, 7)]
    chosen = ["batching=token_budget", "batching.max_tokens=256", "graph=hpu_graphs"]
    with pytest.raises(RefusedError) as refused:
        runner(*chosen, "graph.max_buckets=3").run(texts)
    assert re.search(r"makes \d\d widths", str(refused.value))
    edges = str(refused.value).partition("graph.edges=[")[2].partition("]")[0]
    done = runner(*chosen, *ONCE, "graph.max_buckets=3", f"graph.edges=[{edges}]").run(texts)
    assert done.record["accelerator"]["measured_compilations"] == 0
    assert len(done.hidden_states) == 29


def test_half_precision_is_refused_on_a_card_of_the_first_generation(driver):
    runner("dtype=fp16").prepare()
    (driver / "0000:21:00.0" / "device").write_text("0x1000\n")
    for dtype in ("fp16", "fp8"):
        with pytest.raises(RefusedError, match=f"dtype={dtype}"):
            runner(f"dtype={dtype}").prepare()
    runner("dtype=bf16").prepare()


def test_a_second_run_is_told_who_has_the_card(card, capsys, tmp_path, monkeypatch):
    processes, here = tmp_path / "proc", tmp_path / "here"
    for directory in (processes / "4242" / "fd", here):
        directory.mkdir(parents=True)
    (processes / "4242" / "fd" / "3").symlink_to("/dev/hl0")
    monkeypatch.setattr(host, "PROCESSES", processes)
    monkeypatch.chdir(here)
    assert cli.main(["model=tiny", "device=hpu"], "run.py") == 2
    said = capsys.readouterr().err
    assert "process 4242 (" in said
    assert said.count("device=hpu is refused") == 1
    assert not list(here.iterdir())
    monkeypatch.setattr(host, "PROCESSES", here)
    card.taken = True  # by another user's process
    with pytest.raises(RefusedError, match="cannot be had"):
        runner(*ONCE).run(["a"])


@pytest.mark.parametrize(
    "overrides",
    [
        ["graph=cuda_graphs"],
        ["graph=hpu_graphs", "device.lazy=false"],
        ["dtype=fp16"],
        [
            "batching=token_budget",
            "batching.max_tokens=12",
            "graph=hpu_graphs",
            "graph.max_buckets=1",
        ],
        ["device.module=-1"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    overrides, driver, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (driver / "0000:21:00.0" / "device").write_text("0x1000\n")  # the first generation
    texts = "text=[one, one two three four five six seven eight nine ten]"
    assert cli.main(["model=tiny", "device=hpu", texts, *overrides], "run.py") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "is refused" in said.err
    assert "Traceback" not in said.err
    assert not list(tmp_path.iterdir())


def test_the_users_environment_is_not_overruled(monkeypatch):
    from bert_infer.devices import variables

    monkeypatch.setattr(variables, "_OURS", {})
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "0")
    with pytest.raises(RefusedError, match="PT_HPU_LAZY_MODE=0, and this run needs"):
        runner().prepare()


def commands_of_the_page():
    """Every command of docs/gaudi.md that makes runs, and the options it says to go on with."""
    page = Path(bert_infer.__file__).parent.parent.joinpath("docs", "gaudi.md").read_text()
    lines = re.findall(r"^    python run\.py (.*)$", page.replace("\\\n", ""), re.MULTILINE)
    commands = [shlex.split(line) for line in lines]
    (sweep,) = (command for command in commands if "--multirun" in command)
    graphs = [argument for argument in sweep if not argument.startswith("graph=")]
    further = re.search(r"on the best of it, (.*?)\.\n", page, re.DOTALL)
    for options in re.findall(r"`([^`]*)`", further[1]):
        keys = [option.partition("=")[0] for option in options.split()]
        kept = [a for a in graphs if a.partition("=")[0] not in keys]
        fused = ["engine=fused"] if "packed" in options else []
        commands.append([*kept, *fused, *options.split()])
    return commands


@pytest.mark.parametrize("arguments", commands_of_the_page(), ids=" ".join)
def test_every_command_of_the_page_can_be_typed(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join("word " * n for n in range(1, 400, 7)))
    request = Request.of(arguments)
    if request.is_sweep:
        assert len(request.plan().runs) > 1
    else:
        request.check()


def test_attention_by_a_mask_is_attention_by_sequence():
    qkv = torch.randn(9, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    cu_seqlens = torch.tensor([0, 2, 7, 9, 9], dtype=torch.int32)
    sdpa = torch.nn.functional.scaled_dot_product_attention
    by_mask = ByMask(lambda q, k, v, mask: sdpa(q, k, v, attn_mask=mask))
    found = by_mask(qkv, by_mask.bounds(torch.zeros(9, 8), cu_seqlens))
    from bert_infer.operators.attention import BySdpa

    torch.testing.assert_close(found, BySdpa()(qkv, cu_seqlens), rtol=0, atol=1e-6)


def test_auto_takes_the_card():
    assert compose(["device=auto"]).device.resolve() == Hpu()
