"""The fused engine for first tokens alone: they are as among the states of all tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import edit
from reference import BATCHINGS, OUTPUTS_ALONE, PACKED, largest_difference
from safetensors.torch import load_file

from bert_infer import compose
from bert_infer.devices.cpu import Cpu
from bert_infer.engines.fused import Layer
from bert_infer.errors import RefusedError
from bert_infer.operators.attention import ByMatmul
from bert_infer.processes import worker
from bert_infer.report import summary, terminal

FIRSTS = ["model=minilm", "engine=fused_cls"]
PACKED_FIRSTS = [*FIRSTS, PACKED[0]]


def cosines(ours, theirs):
    return torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=-1)


@pytest.fixture(scope="module")
def firsts(minilm_reference):
    return [(states[:1], pooled) for states, pooled in minilm_reference]


@pytest.mark.parametrize(
    ("graph", "batching"),
    [("eager", batching) for batching in (*BATCHINGS, PACKED[:1])] + [("compile", PACKED[:1])],
    ids=str,
)
def test_first_tokens_equal_transformers(graph, batching, prose, firsts):
    """Seen to fail: the rows of sequences' last tokens; the last layer applied twice."""
    result = compose([*FIRSTS, f"graph={graph}", *batching, *OUTPUTS_ALONE]).run(prose)
    assert [tuple(states.shape) for states in result.hidden_states] == [(1, 384)] * len(prose)
    assert largest_difference(result, firsts) <= 2e-5


@pytest.mark.parametrize("pooling", ["pooler", "cls"])
@pytest.mark.parametrize(("dtype", "least"), [("bf16", 0.9999), ("int8", 0.995)])
def test_what_is_pooled_is_what_all_tokens_would_give(dtype, least, pooling, prose):
    chosen = [f"dtype={dtype}", f"output.pooling={pooling}", *OUTPUTS_ALONE]
    ours = compose([*PACKED_FIRSTS, *chosen]).run(prose[:11]).pooled
    theirs = compose(["model=minilm", *PACKED, *chosen]).run(prose[:11]).pooled
    assert cosines(ours, theirs).min() >= least


def test_drift_is_of_first_tokens_alone(prose, minilm_reference):
    """Seen to fail: the reference's states of all tokens, which no others are there to meet."""
    texts, expected = prose[::2], minilm_reference[::2]
    chosen = [*PACKED_FIRSTS, "dtype=bf16", "warmup=0", f"drift.texts={len(texts)}"]
    done = compose(chosen).run(texts)
    of_texts = [
        cosines(mine[0], theirs[0]).item()
        for mine, (theirs, _) in zip(done.hidden_states, expected, strict=True)
    ]
    assert done.record["drift"]["min_cosine"] == pytest.approx(min(of_texts), abs=1e-6)
    assert done.record["drift"]["texts"] == len(texts)
    assert done.record["drift"]["tokens"] == "first"


def test_nothing_is_attended_to_but_by_first_tokens_in_the_last_layer(prose):
    """Seen to fail: attention of all tokens, of which the first ones' is taken."""
    queries, rows = [], []

    class Watching(ByMatmul):
        def of_one(self, q, k, v):
            queries.append((q.shape[1], k.shape[1]))
            return super().of_one(q, k, v)

    class Watched(Cpu):
        def attention(self, _dtype, _architecture):
            return Watching()

        def region(self, function):
            def run(*given):
                rows.append(len(given[1]))
                return function(*given)

            return run if function is Layer.transformed else function

    runner = replace(compose([*PACKED_FIRSTS, *OUTPUTS_ALONE]), device=Watched())
    done = runner.run(prose)
    layers, texts = 6, len(prose)
    forwards = done.record["workload"]["forwards_per_pass"]
    assert len(queries) == layers * texts
    assert sum(q == 1 and k > 1 for q, k in queries) == texts
    assert len(rows) == forwards
    assert sum(rows) == texts


def test_what_nobody_needs_is_no_part_of_the_rate(prose):
    """Of the last layer: two projections, the feed-forward network, and attention's products."""
    everything = compose(["model=minilm", *PACKED, *OUTPUTS_ALONE]).run(prose)
    record = compose([*PACKED_FIRSTS, *OUTPUTS_ALONE]).run(prose).record
    compute, workload = record["compute"], record["workload"]
    assert record["choice"]["batching.max_tokens"] == 1024
    lengths = [len(states) for states in everything.hidden_states]
    by_hand = [2 * (n - 1) * (2 * 384**2 + 2 * 384 * 1536 + 2 * n * 384) for n in lengths]
    assert compute["unneeded_flop"] == sum(by_hand)
    per_s = record["throughput"]["sequences_per_s"] / workload["sequences"]
    computed = compute["useful_flop"] - compute["unneeded_flop"]
    assert compute["useful_flop_per_s"] == pytest.approx(computed * per_s)
    assert everything.record["compute"]["unneeded_flop"] == 0
    assert everything.record["compute"]["useful_flop"] == compute["useful_flop"], "the model's"


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        (["output.pooling=mean"], "output.pooling=mean: that takes every token's state"),
        (["output=files"], "output.save=hidden_states: that takes every token's state"),
        (["dtype=bf16_autocast"], "engine=fused_cls does not take dtype=bf16_autocast"),
    ],
)
def test_what_takes_every_token_is_refused(choices, says):
    with pytest.raises(RefusedError, match=says) as refused:
        compose([*FIRSTS, *choices]).prepare()
    assert "engine=" in refused.value.remedy
    assert ("output.pooling=pooler" in refused.value.remedy) == ("mean" in choices[0])


def test_a_report_says_whose_cosines_they_are(sweep, capsys):
    edit(sweep / "5", drift__tokens="first")
    terminal.show(summary.of(sweep, None))
    shown = capsys.readouterr().out
    lines = {line.split()[0]: line for line in shown.splitlines() if " ok " in line}
    assert "(first)" in lines["5"]
    assert "(first)" not in lines["4"]
    assert "(first): of each text's first token alone." in shown


def test_pooled_outputs_are_saved_in_input_order(tmp_path, prose, minilm_reference):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(["", *prose]), "utf-8")
    saved = ["output.save=pooled", "output.pooling=cls"]
    chosen = [*PACKED_FIRSTS, "input=lines", f"input.path={texts}", *saved, *OUTPUTS_ALONE]
    assert worker.carry_out(lambda: compose(chosen), tmp_path).metrics["status"] == "ok"
    saved = load_file(tmp_path / "pooled.safetensors")
    assert saved["positions"].tolist() == list(range(1, len(prose) + 1))
    for row, (states, _) in zip(saved["pooled"], minilm_reference, strict=True):
        assert (row - states[0]).abs().max() <= 2e-5
