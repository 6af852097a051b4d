import csv
import json

import numpy as np
import pytest

from bert_infer import files
from bert_infer.metrics import Record, Workload, latency_ms, percentile, useful_flop
from bert_infer.models import Architecture
from bert_infer.records import Forward, Shape

ARCHITECTURE = Architecture(
    {
        "model_type": "bert",
        "hidden_size": 4,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 5,
        "max_position_embeddings": 8,
        "vocab_size": 10,
        "type_vocab_size": 2,
    }
)


def forward(index, start, duration, *, pass_index=0, sequences=2, real=6, padded=8):
    return Forward(
        pass_index,
        index,
        sequences,
        real,
        padded,
        start_s=start,
        forward_start_s=start + 0.25,
        forward_end_s=start + 0.25 + duration,
        end_s=start + 0.5 + duration,
    )


def workload(lengths=(2, 4)):
    lengths = np.array(lengths)
    return Workload(
        texts=2,
        lengths=lengths,
        forwards=1,
        padded_tokens=8,
        truncated=0,
        skipped=0,
        batch=2,
        uses_batch=True,
        less_padding="",
        shapes=(Shape(2, 4, has_padding=True),),
        tokenize_s=0.5,
    )


def test_useful_flop_by_hand():
    # One layer, n=2: 2*2*(4*16 + 2*4*5) + 4*4*4 = 480; n=4: 2*4*104 + 4*16*4 = 1088.
    assert useful_flop(np.array([2, 4]), ARCHITECTURE) == 3 * (480 + 1088)


def test_useful_flop_counts_real_tokens_only_and_each_sequence_apart():
    two, one = useful_flop(np.array([4, 4]), ARCHITECTURE), useful_flop(np.array([8]), ARCHITECTURE)
    assert one - two == 3 * 4 * 4 * (64 - 32)


def test_a_finished_run_by_hand():
    record = Record(status="ok", architecture=ARCHITECTURE, workload=workload())
    record.forwards = [forward(0, 10.0, 0.5), forward(0, 12.0, 1.5, pass_index=1)]
    metrics = record.metrics()
    # 1 s and 2 s of wall time: the half second around each forward counts, the pause does not.
    assert metrics["throughput"]["sequences_per_s"] == pytest.approx(4 / 3)
    assert metrics["throughput"]["real_tokens_per_s"] == pytest.approx(12 / 3)
    assert metrics["throughput"]["padded_tokens_per_s"] == pytest.approx(16 / 3)
    assert metrics["throughput"]["tokenize_texts_per_s"] == 4
    assert metrics["latency_ms"]["mean"] == pytest.approx(1000)
    assert metrics["compute"]["useful_flop_per_s"] == pytest.approx(2 * 3 * 1568 / 3)
    assert metrics["workload"]["padding_waste"] == pytest.approx(0.25)
    assert metrics["workload"]["length"] == {"min": 2, "mean": 3, "p50": 3, "p90": 3.8, "max": 4}


def test_percentiles_need_samples_above_them():
    assert percentile(np.arange(99.0), 99) is None
    assert percentile(np.arange(100.0), 99) is not None
    assert percentile(np.arange(9.0), 90) is None
    statistics = latency_ms([forward(0, 0.0, 1.0)])
    assert (statistics["p50"], statistics["p90"], statistics["std"]) == (
        pytest.approx(1000),
        None,
        None,
    )


def test_an_empty_record_has_every_key_and_knows_nothing():
    empty, full = Record().metrics(), Record(architecture=ARCHITECTURE, workload=workload())
    full.forwards = [forward(0, 0.0, 1.0)]
    assert _keys(empty) == _keys(full.metrics())
    assert empty["latency_ms"]["mean"] is None
    assert empty["throughput"]["sequences_per_s"] is None
    json.dumps(empty, allow_nan=False)


def test_throughput_can_be_recomputed_from_forwards_csv(tmp_path):
    record = Record(workload=workload())
    record.forwards = [forward(0, 0.1 * i, 0.01 + 0.001 * i, pass_index=i) for i in range(7)]
    files.write_forwards(tmp_path / "forwards.csv", record.forwards)
    rows = list(csv.DictReader((tmp_path / "forwards.csv").read_text().splitlines()))
    recomputed = sum(int(r["sequences"]) for r in rows) / sum(
        float(r["wall_ms"]) / 1e3 for r in rows
    )
    assert recomputed == pytest.approx(record.metrics()["throughput"]["sequences_per_s"], rel=1e-12)
    assert float(rows[0]["start_s"]) == 0


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "metrics.json", {"rate": float("inf")})
    assert list(tmp_path.iterdir()) == []


def _keys(tree):
    return {key: _keys(value) for key, value in tree.items()} if isinstance(tree, dict) else None
