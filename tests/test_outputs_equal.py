"""Outputs equal transformers' BertModel, called directly, text by text and without padding."""

from __future__ import annotations

import pytest
import torch
from reference import (
    BATCHINGS,
    EAGER,
    OUTPUTS_ALONE,
    PACKED,
    directly,
    largest_difference,
    smallest_cosine,
)
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from bert_infer import compose
from bert_infer.models.architecture import Architecture
from bert_infer.models.weights import make
from bert_infer.processes import worker

BRIEF = 11
"""How many texts BERT-Large encodes here, of up to 90 words: MiniLM has the long ones."""


@pytest.mark.parametrize(
    ("graph", "choices"),
    [
        *(("eager", choices) for choices in EAGER),
        *(("compile", choices) for choices in (BATCHINGS[0], PACKED)),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_trained_minilm_in_fp32(graph, choices, prose, minilm_reference):
    chosen = ["model=minilm", f"graph={graph}", *choices, *OUTPUTS_ALONE]
    result = compose(chosen).run(prose)
    assert largest_difference(result, minilm_reference) <= 2e-5
    assert result.record["choice"]["graph"] == graph
    assert result.record["workload"]["length"]["max"] == 512


@pytest.mark.parametrize(
    ("dtype", "choices"),
    [
        *((dtype, BATCHINGS[2]) for dtype in ("bf16", "bf16_autocast", "fp16")),
        *((dtype, PACKED) for dtype in ("bf16", "fp16")),
    ],
    ids=str,
)
def test_trained_minilm_in_half_precision(dtype, choices, prose, minilm_reference):
    chosen = ["model=minilm", f"dtype={dtype}", *choices, *OUTPUTS_ALONE]
    result = compose(chosen).run(prose[::2])  # most processors emulate them
    assert smallest_cosine(result, minilm_reference[::2]) >= 0.999


@pytest.fixture(scope="module")
def large_reference(prose):
    config = BertConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096
    )
    architecture = Architecture(config.to_dict())
    weights = make(architecture, 0, architecture.parameters)
    bert = BertModel.from_pretrained(None, config=config, state_dict=weights).eval()
    return list(directly(bert, prose[:BRIEF]))


@pytest.mark.parametrize(
    ("graph", "batching"),
    [("eager", BATCHINGS[1]), ("eager", PACKED), ("compile", PACKED)],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_random_bert_large_in_fp32(graph, batching, prose, large_reference):
    chosen = ["model.weights=random", f"graph={graph}", *batching, *OUTPUTS_ALONE]
    result = compose(chosen).run(prose[:BRIEF])
    assert largest_difference(result, large_reference) <= 1e-4


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mean_pooled_minilm_equals_sentence_transformers(minilm, prose):
    from sentence_transformers import SentenceTransformer

    oracle = SentenceTransformer(str(minilm), device="cpu")
    oracle.max_seq_length = 512
    theirs = torch.from_numpy(oracle.encode(prose))
    chosen = ["model=minilm", "output.pooling=mean", *BATCHINGS[2], *OUTPUTS_ALONE]
    mine = compose(chosen).run(prose).pooled
    mine = torch.nn.functional.normalize(mine, dim=-1)  # its last module does
    assert (mine - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("engine", ["transformers", "fused"])
def test_one_token_up_to_the_longest(engine):
    """Texts have two special tokens; synthetic ids go down to one."""
    for length in (1, 2, 511, 512):
        same = ["input=synthetic", "input.texts=3", "input.lengths=fixed", "input.min=1"]
        choices = ["model=minilm", "batch=3", f"engine={engine}", *OUTPUTS_ALONE]
        result = compose([*choices, *same, f"input.max={length}"]).run()
        assert [tuple(h.shape) for h in result.hidden_states] == [(length, 384)] * 3


@pytest.mark.parametrize("pooling", ["pooler", "cls", "mean"])
@pytest.mark.parametrize("choices", [BATCHINGS[1], PACKED], ids=lambda b: b[0])
def test_poolings(pooling, choices, prose, minilm_reference):
    chosen = ["model=minilm", f"output.pooling={pooling}", *choices, *OUTPUTS_ALONE]
    result = compose(chosen).run(prose)
    for row, (states, pooled) in zip(result.pooled, minilm_reference, strict=True):
        expected = {"pooler": pooled, "cls": states[0], "mean": states.mean(0)}[pooling]
        assert (row - expected).abs().max() <= 2e-5


@pytest.fixture
def of_lines(tmp_path, prose):
    """Options of runs on a file of texts, the first of which is empty."""
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(["", *prose]), "utf-8")
    return ["model=minilm", "input=lines", f"input.path={path}", *OUTPUTS_ALONE]


def check_saved(with_states, with_pooled, reference):
    states = load_file(with_states / "hidden_states.safetensors")
    for position, (theirs, _) in enumerate(reference, start=1):
        assert (states[str(position)] - theirs).abs().max() <= 2e-5
    assert len(states) == len(reference)
    saved = load_file(with_pooled / "pooled.safetensors")
    assert saved["positions"].tolist() == list(range(1, len(reference) + 1))
    files = [with_pooled / name for name in ("pooled.safetensors", "metrics.json")]
    assert len({path.stat().st_mode for path in files}) == 1, "Others may read the one alone."
    for row, (_, pooled) in zip(saved["pooled"], reference, strict=True):
        assert (row - pooled).abs().max() <= 2e-5


def test_saved_outputs_are_in_input_order_and_without_padding(command, of_lines, minilm_reference):
    saved = ["output.save=hidden_states,pooled", "hydra.sweep.dir=."]
    done = command("--multirun", *of_lines, *BATCHINGS[1], *saved)
    assert done.returncode == 0, done.stderr
    check_saved(command.directory / "0", command.directory / "1", minilm_reference)


def test_saved_outputs_of_packed_texts_are_in_input_order(tmp_path, of_lines, minilm_reference):
    for name in ("hidden_states", "pooled"):
        (tmp_path / name).mkdir()
        chosen = [*of_lines, *PACKED, f"output.save={name}"]
        worker.carry_out(lambda chosen=chosen: compose(chosen), tmp_path / name)
    check_saved(tmp_path / "hidden_states", tmp_path / "pooled", minilm_reference)
