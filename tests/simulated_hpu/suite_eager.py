"""Gaudi's path in eager mode, on the simulated card; tests/test_hpu.py runs it in a process."""

from __future__ import annotations

import sys

import pytest
import torch

from bert_infer import compose
from bert_infer.devices.hpu import Hpu, plugin
from bert_infer.errors import RefusedError

TEXTS = ["Good morning BERT!", "Hello", "A somewhat longer text, so that something is masked."]


def runner(*overrides, device="hpu"):
    return compose(["model=tiny", f"device={device}", "batch=2", *overrides])


@pytest.fixture(scope="module")
def on_cpu():
    return runner("batch=1", device="cpu").run(TEXTS)


@pytest.fixture(scope="module", autouse=True)
def plugin_in():
    """A first run, which sets the mode and imports the plugin."""
    assert "habana_frameworks.torch" not in sys.modules
    return runner("graph=compile").run(TEXTS)


def test_the_mode_is_the_graphs(plugin_in):
    from habana_frameworks.torch import hpu

    assert plugin_in.record["choice"]["graph"] == "compile"
    assert not hasattr(hpu, "wrap_in_hpu_graph")
    with pytest.raises(RefusedError, match="PT_HPU_LAZY_MODE=1, and this process"):
        runner("graph=hpu_graphs").run(TEXTS)


@pytest.mark.parametrize(
    ("engine", "graph", "fused_attention"),
    [
        ("transformers", "compile", "true"),
        ("transformers", "eager", "false"),
        ("fused", "compile", "false"),
        ("fused", "eager", "true"),
    ],
)
def test_outputs_are_the_cpus(engine, graph, fused_attention, on_cpu):
    """Seen to fail: the base class' ``compile``, which asks for inductor and for dynamic shapes."""
    attention = f"device.fused_attention={fused_attention}"
    once = ["iterations=2", "warmup=0", "drift.texts=0"]  # every shape is compiled all the same
    result = runner(f"graph={graph}", f"engine={engine}", attention, *once).run(TEXTS)
    for found, expected in zip(result.hidden_states, on_cpu.hidden_states, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(result.pooled, on_cpu.pooled, rtol=0, atol=2e-6)
    accelerator = result.record["accelerator"]
    assert accelerator["measured_compilations"] == 0
    assert accelerator["compilations"] == (2 if graph == "compile" else 0)  # of two batch sizes


def test_nothing_is_marked_constant_without_lazy_mode():
    """Seen to fail: ``Hpu.finish`` whatever the mode."""
    from habana_frameworks.torch.core import calls

    calls.clear()
    runner("graph=compile", "warmup=0", "drift.texts=0").run(TEXTS)
    assert "hpu_inference_initialize" not in {name for name, _ in calls}


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # dynamo's own doing
@pytest.mark.parametrize("fused_attention", ["true", "false"])
@pytest.mark.parametrize("engine", ["transformers", "fused"])
def test_dynamo_traces_the_forwards_whole(engine, fused_attention, monkeypatch):
    """On the CPU's tensors, as it does not know the simulated card's; breaks in graphs fail it.

    Seen to fail: ``fused_sdpa`` without ``recompute_mode``, for which the plugin asks its C++.
    """
    from bert_infer.models import weights

    monkeypatch.setattr(Hpu, "torch_device", lambda _self: torch.device("cpu"))
    monkeypatch.setattr(Hpu, "finish", lambda *_args, **_kwargs: None)
    one = runner(f"engine={engine}", f"device.fused_attention={fused_attention}")
    device = one.device
    prepared = one.prepare()
    loaded = weights.load(prepared.source, prepared.architecture)
    (group,) = prepared.shapes.values()
    batch = one.engine.layout.of(group, prepared.tokens, prepared.architecture.pad_token_id)
    inputs = one.engine.inputs(batch, keep_mask=True)
    with torch.inference_mode():
        encode = device.fed(one.engine.load(prepared.architecture, loaded, one.dtype, device))
        whole = torch.compile(encode, backend="eager", dynamic=False, fullgraph=True)
        given = device.copy_in(inputs)
        torch.testing.assert_close(whole(*given)[1], encode(*given)[1])


def test_the_limit_on_recompilations_holds_every_shape(monkeypatch):
    """Seen to fail: the limit left alone, past which dynamo runs uncompiled and says so once."""
    config = torch._dynamo.config
    monkeypatch.setattr(config, "recompile_limit", config.recompile_limit)
    plugin.compiled(lambda: None, 40)
    assert config.recompile_limit >= 40
