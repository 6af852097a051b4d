import csv
import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from bert_infer import compose, files, metrics
from bert_infer.batching import Padded
from bert_infer.errors import RefusedError
from bert_infer.measuring.ceiling import Ceiling, Matmul
from bert_infer.metrics import latency_ms, length_histogram, percentile
from bert_infer.models.architecture import Architecture
from bert_infer.operators import linears
from bert_infer.processes.worker import carry_out
from bert_infer.records import Forward
from bert_infer.running.run_record import Record
from bert_infer.running.workload import Workload

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
        lay_out_s=0.125,
        copy_in_s=0.125,
        duration_s=duration,
        copy_out_s=0.25,
        wall_s=0.5 + duration,
    )


def workload(lengths=(2, 4)):
    lengths = np.array(lengths)
    return Workload(
        texts=2,
        lengths=lengths,
        forwards=1,
        largest=2,
        padded_tokens=8,
        unfilled_tokens=8,
        truncated=0,
        skipped=0,
        has_one_shape=True,
        tokenize_s=0.5,
    )


@cache
def prepared():
    """A run of trained weights, which nothing is wrong with."""
    runner = compose(["model=minilm", "device=cpu", "batch=2", "text=Hello world!"])
    return replace(runner.prepare(), architecture=ARCHITECTURE)


def finished(work=None, **fields):
    """A record as an execution leaves it, as far as warnings ask."""
    work = work or workload()
    return Record(status="ok", prepared=replace(prepared(), workload=work), **fields)


def test_useful_flop_by_hand():
    # One layer, n=2: 2*2*(4*16 + 2*4*5) + 4*4*4 = 480; n=4: 2*4*104 + 4*16*4 = 1088.
    assert ARCHITECTURE.useful_flop(np.array([2, 4])) == 3 * (480 + 1088)


def test_useful_flop_counts_real_tokens_only_and_each_sequence_apart():
    two, one = (ARCHITECTURE.useful_flop(np.array(lengths)) for lengths in ([4, 4], [8]))
    assert one - two == 3 * 4 * 4 * (64 - 32)


def test_a_finished_run_by_hand():
    record = finished()
    record.forwards = [forward(0, 10.0, 0.5), forward(0, 12.0, 1.5, pass_index=1)]
    content = metrics.of(record)
    # 1 s and 2 s of wall time: the half second around each forward counts, the pause does not.
    assert content["throughput"]["sequences_per_s"] == pytest.approx(4 / 3)
    assert content["throughput"]["real_tokens_per_s"] == pytest.approx(12 / 3)
    assert content["throughput"]["padded_tokens_per_s"] == pytest.approx(16 / 3)
    assert content["throughput"]["tokenize_texts_per_s"] == 4
    assert content["latency_ms"]["mean"] == pytest.approx(1000)
    assert content["latency_ms"]["std"] == pytest.approx(1000 / np.sqrt(2))
    assert content["compute"]["useful_flop_per_s"] == pytest.approx(2 * 3 * 1568 / 3)
    assert content["workload"]["padding_waste"] == pytest.approx(0.25)
    assert content["workload"]["length"] == {"min": 2, "mean": 3, "p50": 3, "p90": 3.8, "max": 4}


@pytest.mark.parametrize(
    "lengths", [[5], [3, 3, 4], [2, 21], [2, 22], [6, 7, 9, 40, 41, 200, 277], list(range(2, 512))]
)
def test_a_length_histogram_counts_every_sequence_in_about_twenty_whole_bins(lengths):
    edges, sequences = length_histogram(np.array(lengths))
    assert {type(value) for value in edges + sequences} == {int}
    assert len(edges) == len(sequences) + 1 <= 21
    assert len({b - a for a, b in pairwise(edges)}) == 1
    for low, high, count in zip(edges, edges[1:], sequences, strict=False):
        assert count == sum(low <= length < high for length in lengths)
    assert sum(sequences) == len(lengths)


def test_percentiles_need_samples_above_them():
    assert percentile(np.arange(99.0), 99) is None
    assert percentile(np.arange(100.0), 99) is not None
    assert percentile(np.arange(9.0), 90) is None
    statistics = latency_ms([forward(0, 0.0, 1.0)], None)
    assert (statistics["p50"], statistics["p90"], statistics["std"]) == (
        pytest.approx(1000),
        None,
        None,
    )


def test_an_empty_record_has_every_key_and_knows_nothing():
    empty, full = metrics.of(Record()), finished()
    full.forwards = [forward(0, 0.0, 1.0)]
    filled = metrics.of(full)
    assert {*empty} == {*filled}
    for section in ("run", "choice", "workload", "phases_s", "latency_ms", "throughput"):
        assert _keys(empty[section]) == _keys(filled[section])
    for section in ("compute", "memory", "measurement", "provenance"):
        assert {*empty[section]} == {*filled[section]}
    assert empty["latency_ms"]["mean"] is None
    assert empty["throughput"]["sequences_per_s"] is None
    json.dumps(empty, allow_nan=False)
    assert filled["measurement"]["in_flight"] == 1
    assert filled["provenance"]["input"]["sha256"] == full.prepared.tokens.sha256


def test_throughput_can_be_recomputed_from_forwards_csv(tmp_path):
    record = finished()
    record.forwards = [forward(0, 0.1 * i, 0.01 + 0.001 * i, pass_index=i) for i in range(7)]
    files.write_forwards(tmp_path / "forwards.csv", record.forwards)
    rows = list(csv.DictReader((tmp_path / "forwards.csv").read_text().splitlines()))
    recomputed = sum(int(r["sequences"]) for r in rows) / sum(
        float(r["wall_ms"]) / 1e3 for r in rows
    )
    assert recomputed == pytest.approx(
        metrics.of(record)["throughput"]["sequences_per_s"], rel=1e-12
    )
    assert float(rows[0]["start_s"]) == 0


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "metrics.json", {"rate": float("inf")})
    assert list(tmp_path.iterdir()) == []


def two_shapes(passes):
    """A workload of a fast and a slow batch, measured so many times."""
    record = finished(replace(workload(), forwards=2, has_one_shape=False))
    record.forwards = [
        forward(index, 10.0 * i, (1.0, 3.0)[index] + 0.01 * (i % 3), pass_index=i, sequences=1)
        for i in range(passes)
        for index in range(2)
    ]
    return record


def test_batches_of_different_shapes_are_resampled_by_the_pass():
    samples = two_shapes(8).samples
    assert (samples.unit, samples.sequences, len(samples.wall_s)) == ("pass", 2, 8)
    low, high = samples.sequences_per_s
    assert low < 2 / 5.02 < high
    assert high / low < 1.01  # the two shapes differ threefold, and that is no uncertainty
    assert samples.relative == pytest.approx(1, abs=0.01)  # of its own batch's median


def test_forwards_of_one_shape_are_samples_themselves():
    record = finished()
    record.forwards = [forward(0, 2.0 * i, 1.0 + 0.01 * (i % 3), pass_index=i) for i in range(9)]
    assert (record.samples.unit, len(record.samples.wall_s)) == ("forward", 9)
    low, high = metrics.of(record)["latency_ms"]["p50_ci95"]
    assert 1000 <= low <= 1010 <= high <= 1020
    assert metrics.of(record)["measurement"]["relative_ci"] == pytest.approx(0.004, abs=0.003)


def test_few_samples_decide_nothing_however_narrow_their_interval():
    """Seen to fail: measuring until an interval is narrow ended at six that agreed by chance."""
    record = finished()
    record.forwards = [forward(0, 2.0 * i, 1.0 + 0.01 * (i % 3), pass_index=i) for i in range(19)]
    assert record.relative_ci() is None
    record.forwards.append(forward(0, 40.0, 1.01, pass_index=19))
    assert record.relative_ci() == pytest.approx(0.004, abs=0.003)


def test_batches_of_one_shape_that_are_filled_up_to_it_are_no_samples():
    """Seen to fail: an interval of 8 sequences a forward, of which half had but one."""
    record = finished(replace(workload((2, 4, 4)), forwards=2))
    record.forwards = [
        forward(i % 2, 2.0 * i, 1.0 + 0.01 * (i % 3), pass_index=i // 2, sequences=2 - i % 2)
        for i in range(16)
    ]
    assert (record.samples.unit, record.samples.sequences) == ("pass", 3)
    content = metrics.of(record)
    low, high = content["throughput"]["sequences_per_s_ci95"]
    assert low < content["throughput"]["sequences_per_s"] < high


@pytest.mark.parametrize("error", [ValueError, lambda text: RefusedError(text, "")])
def test_a_long_message_is_cut_in_the_record_and_whole_in_the_log(tmp_path, caplog, error):
    """Seen to fail: all of it in metrics.json; a refusal's in no log."""

    def compose_with_care():
        raise error("what is wrong: " + "0.1234, " * 1000 + "the end")

    message = carry_out(compose_with_care, tmp_path).metrics["error"]["message"]
    assert message.startswith("what is wrong: 0.1234")
    assert message.endswith("… (run.log has the rest)")
    assert len(message) < 700
    assert "the end" in caplog.text


def test_a_pass_that_broke_off_is_in_no_throughput_and_no_interval():
    """Seen to fail: a throughput that lay outside its own interval."""
    record = two_shapes(8)
    whole = record.samples.sequences_per_s
    rate = metrics.of(record)["throughput"]["sequences_per_s"]
    record.forwards.append(forward(0, 99.0, 50.0, pass_index=8, sequences=1))
    assert record.samples.sequences_per_s == whole
    assert metrics.of(record)["throughput"]["sequences_per_s"] == rate
    first = replace(record, forwards=record.forwards[:1])
    assert metrics.of(first)["throughput"]["sequences_per_s"] == pytest.approx(1 / 1.5)


def test_copies_and_laying_out_are_reported_apart_from_the_forward():
    record = finished(forwards=[forward(0, 0.0, 1.0)])
    content = metrics.of(record)
    assert content["measurement"]["lay_out_ms"] == pytest.approx(125)
    assert content["measurement"]["copy_in_ms"] == pytest.approx(125)
    assert content["measurement"]["copy_out_ms"] == pytest.approx(250)
    assert content["latency_ms"]["mean"] == pytest.approx(1000)


def test_the_fraction_of_the_ceiling_by_hand():
    matmul = Matmul(8, 4, 5, linears.Plain)
    record = finished()
    record.forwards = [forward(0, 0.0, 0.5)]
    record.ceiling = Ceiling(matmul, before_flop_per_s=4704.0, after_flop_per_s=9408.0)
    compute = metrics.of(record)["compute"]
    assert compute["ceiling_flop_per_s"] == 9408
    assert compute["fraction_of_ceiling"] == pytest.approx(4704 / 9408)
    measurement = metrics.of(record)["measurement"]
    assert measurement["ceiling_before_flop_per_s"] == 4704
    assert measurement["ceiling_after_flop_per_s"] == 9408
    assert measurement["ceiling_matmul"]["kernel"] == "Plain"
    assert matmul.flop == 2 * 8 * 4 * 5


def _keys(tree):
    return {key: _keys(value) for key, value in tree.items()} if isinstance(tree, dict) else None


def test_what_a_component_cannot_be_called_is_told_at_the_end(tmp_path, caplog):
    """Seen to fail: an error of json's instead of a record, and a number of NumPy's was one."""

    class Odd(Padded):
        name = Path("odd")

    class Counting(Padded):
        name = "counting"
        budget = np.int64(512)

    runner = compose(["model=tiny", "engine=fused", "drift.texts=0"])
    carry_out(lambda: replace(runner, batching=Odd()), tmp_path)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["error"]["type"] == "TypeError"
    assert "Correct the component" in record["error"]["remedy"]
    assert any(logged.exc_info for logged in caplog.records), "the traceback, for run.log"
    carry_out(lambda: replace(runner, batching=Counting()), tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["status"] == "ok"


def test_classes_of_one_name_are_two_configurations():
    """Seen to fail: their runs were taken for repeats of one."""
    mine = type("Padded", (Padded,), {"__module__": "mine"})
    runner = compose(["model=tiny"])
    assert runner.digest() == replace(runner, batching=Padded()).digest()
    assert runner.digest() != replace(runner, batching=mine()).digest()
