"""The fused engines: any packing gives the same, and no sequence sees another's tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import LENGTHS, check_isolation, check_order_and_neighbours, encoder
from reference import OUTPUTS_ALONE
from safetensors.torch import load_file

from bert_infer import compose
from bert_infer.batching import Padded
from bert_infer.batching.layouts import PaddedBatch
from bert_infer.dtypes import Fp32
from bert_infer.engines.fused import Fused
from bert_infer.engines.fused_cls import FusedCls
from bert_infer.engines.transformers import Transformers
from bert_infer.errors import RefusedError
from bert_infer.models import weights


@pytest.fixture(scope="module", params=[Fused(), FusedCls()], ids=lambda engine: engine.name)
def encode(request):
    return encoder("device=cpu", engine=request.param)


@settings(max_examples=8, deadline=None)
@given(LENGTHS, st.integers(0, 99), st.randoms(use_true_random=False))
def test_order_and_neighbours_change_nothing_beyond_rounding(encode, lengths, seed, random):
    check_order_and_neighbours(encode, lengths, seed, random, 1e-5)


@settings(max_examples=6, deadline=None)
@given(LENGTHS.filter(lambda lengths: len(lengths) > 1), st.integers(0, 99), st.data())
def test_no_sequence_sees_anothers_tokens(encode, lengths, seed, data):
    check_isolation(encode, lengths, seed, data)


@pytest.mark.parametrize("sizes", [(64, 2, 2), (128, 2, 3), (96, 3, 24), (40, 5, 1)])
def test_any_size_of_encoder_equals_transformers(tmp_path, minilm, sizes, prose):
    hidden, heads, layers = sizes
    config = json.loads((minilm / "config.json").read_text()) | {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "intermediate_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.txt").write_bytes((minilm / "vocab.txt").read_bytes())
    model = [f"model.name={tmp_path}", "model.weights=random", "seed=3", *OUTPUTS_ALONE]
    ours = compose([*model, "batching=packed", "engine=fused"]).run(prose)
    theirs = compose(model).run(prose)
    for mine, reference in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert (mine - reference).abs().max() < 2e-5
    assert (ours.pooled - theirs.pooled).abs().max() < 2e-5


def test_nothing_is_imported_before_it_is_needed(tmp_path):
    """transformers by a model's own tokenizer alone, and torch not even by that.

    A device may have to set what torch reads when it is imported.
    """
    script = (
        "import sys; from bert_infer import compose; "
        "from_transformers = lambda: [m for m in sys.modules if m.startswith('transformers')]; "
        "quick = ['engine=fused', 'drift.texts=0']; "
        "compose(['model=minilm', *quick]).prepare(); "
        "assert from_transformers(); assert 'torch' not in sys.modules; "
        "[sys.modules.pop(name) for name in from_transformers()]; "
        "r = compose(['model=tiny', *quick]).run('One text.'); "
        "assert r.record['drift'] is None; "
        "print(from_transformers())"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_checkpoint_of_pytorchs_older_format(tmp_path, minilm):
    path = tmp_path / "checkpoint.pt"
    tensors = load_file(minilm / "model.safetensors")
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    choices = ["model=minilm", "engine=fused", *OUTPUTS_ALONE]
    from_file = compose([*choices, f"model.checkpoint={path}"]).run("One text.")
    expected = compose(choices).run("One text.")
    torch.testing.assert_close(from_file.pooled, expected.pooled, rtol=0, atol=1e-6)


def test_int8_keeps_mean_pooled_embeddings(prose):
    choices = ["model=minilm", "output.pooling=mean", "batching=packed", "engine=fused", "warmup=0"]
    ours = compose([*choices, "dtype=int8"]).run(prose)
    exact = compose([*choices, "drift.texts=0"]).run(prose).pooled
    cosines = torch.nn.functional.cosine_similarity(ours.pooled, exact, dim=-1)
    assert cosines.min() >= 0.99
    assert ours.hidden_states[0].dtype is torch.float32
    drift = ours.record["drift"]
    assert drift["texts"] == 8
    assert drift["pooled_min_cosine"] >= 0.99


def test_nothing_is_padded_whatever_the_batching():
    texts = ["One.", "A text that is a good deal longer than the first one."]
    chosen = ["model=minilm", "engine=fused", "batch=2", *OUTPUTS_ALONE]
    padded = compose(chosen).run(texts).record["workload"]
    assert padded["padded_tokens"] == padded["real_tokens"]
    assert padded["padding_waste"] == 0


@pytest.mark.parametrize(
    ("choices", "says", "way_out"),
    [
        (["dtype=bf16_autocast"], "dtype=bf16_autocast", "engine=transformers"),
        (["engine=transformers", "batching=packed"], "batching=packed", "engine=fused"),
        (["engine=transformers", "dtype=int8"], "dtype=int8", "engine=fused"),
        (["batching=packed", "batching.max_tokens=2"], "max_tokens=2", "max_tokens=5 or more"),
    ],
)
def test_what_it_does_not_take_is_refused(choices, says, way_out):
    with pytest.raises(RefusedError, match=says) as refused:
        compose(["model=minilm", "engine=fused", *choices]).prepare()
    assert way_out in refused.value.remedy


def test_a_layout_and_an_engine_of_ones_own_are_refused_by_their_names():
    """Seen to fail: engine=fused advised where refused; what derives from transformers named so."""

    class LeftPadded(PaddedBatch):
        pass

    class Mine(Padded):
        layout = LeftPadded

    class Theirs(Transformers):
        name = "theirs"

    fused = compose(["model=tiny", "engine=fused"])
    with pytest.raises(RefusedError, match="engine=fused does not take") as refused:
        replace(fused, batching=Mine()).prepare()
    assert "takes every batching of this package" in refused.value.remedy
    with pytest.raises(RefusedError, match="engine=theirs does not take dtype=int8"):
        replace(compose(["model=tiny", "dtype=int8"]), engine=Theirs()).prepare()


def test_no_engine_leaves_out_linear_layers_of_a_dtypes_own():
    """Seen to fail: engine=transformers took the format, and computed in plain fp32."""

    class Mine(Fp32):
        name = "mine"

        def linear(self, device):
            return super().linear(device)

    with pytest.raises(RefusedError, match="dtype=mine: linear layers of our own"):
        replace(compose(["model=tiny"]), dtype=Mine()).prepare()
    replace(compose(["model=tiny", "engine=fused"]), dtype=Mine()).prepare()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"model_type": "roberta"}, "model_type=roberta"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"num_attention_heads": 7}, "num_attention_heads=7"),
    ],
)
def test_models_that_it_does_not_compute_are_refused_before_weights_load(
    tmp_path, minilm, changed, says
):
    config = json.loads((minilm / "config.json").read_text()) | changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "vocab.txt").write_bytes((minilm / "vocab.txt").read_bytes())
    with pytest.raises(RefusedError, match=says):
        compose([f"model.name={tmp_path}", "engine=fused", "model.weights=random"]).prepare()


def test_both_engines_draw_the_same_random_weights():
    """One function makes them, a part at a time or all at once."""
    architecture = compose(["model=tiny"]).model.architecture()
    whole = weights.make(architecture, 5, architecture.parameters)
    for part in architecture.parts:
        for name, tensor in weights.make(architecture, 5, part).items():
            assert torch.equal(tensor, whole.pop(name))
    assert whole == {}
