"""Comparing what real runs left: ratios, verdicts, and refusals that say why."""

from __future__ import annotations

import csv
import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
from conftest import JUNK, break_off, edit, leaves

from bert_infer.errors import RefusedError
from bert_infer.measuring.intervals import Interval, of_ratio, verdict
from bert_infer.report import comparison, directories, terminal


@pytest.fixture
def run(sweep, tmp_path):
    """A run of one's own, to spoil."""
    return shutil.copytree(sweep / "0", tmp_path / "run")


def rate(run):
    return json.loads((run / "metrics.json").read_text())["throughput"]["sequences_per_s"]


def changed(run, key, value):
    edit(run, **{key.replace(".", "__"): value})


def test_a_sweep_is_compared_with_its_first_run(sweep):
    found = comparison.compare([str(sweep)]).comparisons
    assert [c.run.directory.name for c in found] == list("1234567")
    for compared in found:
        assert compared.baseline.directory.name == "0"
        assert compared.ratio == pytest.approx(
            rate(compared.run.directory) / rate(compared.baseline.directory)
        )
        assert compared.interval.low < compared.interval.high
    assert "batching: padded | by_length" in found[0].differences
    assert "batch: 1 | 4" in found[1].differences
    assert "dtype: fp32 | bf16" in found[3].differences


def test_two_sweeps_are_compared_run_by_run(sweep):
    found = comparison.compare([str(sweep), str(sweep)]).comparisons
    assert [(c.baseline.directory.name, c.run.directory.name) for c in found] == [
        (name, name) for name in "01234567"
    ]
    assert {c.verdict for c in found} == {"no difference shown"}
    assert all(c.differences == [] for c in found)


def timed_at(run, milliseconds, first=None):
    """Give the run's forwards these wall times, and the throughput that follows."""
    path = run / "forwards.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    walls = [milliseconds * (1 + 0.01 * (index % 3)) for index in range(len(rows))]
    walls[0] = walls[0] if first is None else first
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row | {"wall_ms": wall} for row, wall in zip(rows, walls, strict=True))
    sequences = sum(int(row["sequences"]) for row in rows)
    changed(run, "throughput.sequences_per_s", sequences / sum(walls) * 1e3)
    return run


def test_a_run_with_other_timings_is_faster_or_slower(sweep, run, tmp_path):
    slow = timed_at(run, 8.0)
    fast = timed_at(shutil.copytree(sweep / "0", tmp_path / "fast"), 4.0)
    (faster,) = comparison.compare([str(slow), str(fast)]).comparisons
    (slower,) = comparison.compare([str(fast), str(slow)]).comparisons
    assert faster.ratio == pytest.approx(2)
    assert faster.verdict.startswith("faster by ")
    assert slower.verdict.startswith("slower by ")


def test_verdicts_only_where_the_interval_excludes_one():
    assert verdict(Interval(1.12, 1.15)) == "faster by 12.0% to 15.0%"
    assert verdict(Interval(0.9, 0.95)) == "slower by 5.0% to 10.0%"
    assert verdict(Interval(0.99, 1.2)) == "no difference shown"
    assert verdict(None).startswith("too few samples")


def test_ratios_hold_the_truth_in_about_95_percent_of_pairs():
    generator, held = np.random.default_rng(2), 0
    for _ in range(500):
        a, b = generator.lognormal(0, 0.08, 10), 2 * generator.lognormal(0, 0.08, 15)
        low, high = of_ratio(b, a)
        held += low <= 2 <= high
    assert 0.92 <= held / 500 <= 0.98


def test_what_differs_in_the_machine_is_listed(sweep, run):
    environment = json.loads((run / "environment.json").read_text())
    environment["software"]["torch"] = "1.0"
    environment["conditions"]["load_average"] = 77
    (run / "environment.json").write_text(json.dumps(environment))
    (compared,) = comparison.compare([str(sweep / "0"), str(run)]).comparisons
    (line,) = compared.differences
    assert line.startswith("software.torch: ")
    assert line.endswith("| 1.0")


def test_different_work_is_refused_unless_forced(sweep, run):
    changed(run, "provenance.input.sha256", "0" * 64)
    with pytest.raises(RefusedError, match="their input differs"):
        comparison.compare([str(sweep / "0"), str(run)])
    assert comparison.compare([str(sweep / "0"), str(run)], force=True).comparisons


DAMAGED = "(unreadable): metrics.json, forwards.csv and environment.json contradict each other"


def refusal(run):
    with pytest.raises(RefusedError) as refused:
        comparison.compare([str(run), str(run)])
    assert str(refused.value).startswith(f"{run} cannot be compared (")
    return str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("schema_version", 2, "(unreadable): "),
        ("schema_version", 2, "metrics.json: schema_version=2; this version reads 1."),
        ("status", "failed", "(failed): It was not measured to its end."),
        ("status", "interrupted", "(interrupted)"),
        ("throughput.sequences_per_s", "fast", DAMAGED),
        ("throughput.sequences_per_s", 1e9, DAMAGED),
        ("throughput.sequences_per_s", 0, DAMAGED),
        ("throughput.sequences_per_s", 10**400, DAMAGED),
        ("throughput", None, DAMAGED),
        ("measurement", [], DAMAGED),
        ("measurement.sample", "xyz", DAMAGED),
        ("choice", [1], DAMAGED),
        ("workload.sequences", None, DAMAGED),
        ("compute.useful_flop", None, DAMAGED),
        ("compute.useful_flop", 10**400, DAMAGED),
        ("provenance.input.sha256", 7, DAMAGED),
        ("run.config_hash", None, DAMAGED),
    ],
)
def test_what_contradicts_itself_is_refused(run, key, value, says):
    changed(run, key, value)
    assert says in refusal(run)


def test_a_failure_is_refused_in_its_own_words(run):
    break_off(run, "failed", "Out of memory.")
    assert refusal(run).endswith("(failed): Out of memory.\n  Mend it.")


@pytest.mark.parametrize("junk", JUNK)
def test_whatever_a_record_holds_it_is_compared_or_left_out(made_sweep, tmp_path, junk, capsys):
    names = ("metrics.json", "forwards.csv", "environment.json")
    paths = list(leaves(json.loads((made_sweep / "4" / "metrics.json").read_text())))
    for number, keys in enumerate([None, *paths]):
        (tmp_path / str(number)).mkdir()
        for name in names:
            shutil.copy(made_sweep / "4" / name, tmp_path / str(number))
        if keys:
            edit(tmp_path / str(number), **{"__".join(keys): junk})
    report = comparison.compare([str(tmp_path)], force=True)
    assert len(report.comparisons) + len(report.left_out) == len(paths) > 80
    terminal.show_comparisons(*report)
    assert len(capsys.readouterr().out.splitlines()) > len(paths)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"\0" * 99, bytes(range(256)), b"[1]", None, "half"]
)
@pytest.mark.parametrize("name", ["metrics.json", "environment.json", "forwards.csv"])
def test_damaged_files_are_named(run, name, content):
    path = run / name
    whole = path.read_bytes()
    path.unlink()
    if content == "half":
        path.write_bytes(whole[: len(whole) // 2 - 3])
    elif content is not None:
        path.write_bytes(content)
    assert name in refusal(run) or (name, content) == ("metrics.json", None)
    path.unlink(missing_ok=True)
    path.mkdir()
    assert name in refusal(run)


@pytest.mark.parametrize(
    "wall_ms", ["-1", "0", "", "x", "nan", "inf", "1e308", '"', "1e-320", "9,9"]
)
def test_a_wall_time_that_no_forward_can_have_is_refused(run, wall_ms):
    path = run / "forwards.csv"
    header, first, *others = path.read_text().splitlines()
    spoilt = f"{first.rpartition(',')[0]},{wall_ms}"
    for rows in ([first, spoilt, *others], [spoilt], [spoilt, spoilt], []):
        path.write_text("\n".join([header, *rows]))
        assert DAMAGED in refusal(run)


@pytest.mark.parametrize("first", [-1.0, 0.0])
def test_such_a_wall_time_is_refused_though_the_throughput_agrees(run, first):
    assert DAMAGED in refusal(timed_at(run, 8.0, first))


@pytest.mark.parametrize("unit", ["pass", "forward"])
def test_what_is_resampled_is_what_the_record_says(run, unit):
    rows = list(csv.DictReader((run / "forwards.csv").read_text().splitlines()))
    changed(run, "measurement.sample", unit)
    walls, counts = defaultdict(float), defaultdict(int)
    for number, row in enumerate(rows):
        sample = int(row["pass"]) if unit == "pass" else number
        walls[sample] += float(row["wall_ms"]) / 1e3
        counts[sample] += int(row["sequences"])
    assert len(walls) == (6 if unit == "pass" else len(rows))
    by_hand = [walls[sample] / counts[sample] for sample in sorted(walls)]
    assert directories.read(run).samples == pytest.approx(by_hand)


def test_runs_of_a_sweep_that_did_not_finish_are_left_out_by_name(sweep):
    changed(sweep / "1", "status", "failed")
    report = comparison.compare([str(sweep)])
    assert [c.run.directory.name for c in report.comparisons] == list("234567")
    assert report.left_out == [f"{sweep / '1'} (failed)"]


def test_runs_of_a_sweep_that_left_no_record_are_named_too(sweep):
    """Seen to fail: only directories with a metrics.json were looked at."""
    (sweep / "1" / "metrics.json").unlink()
    assert comparison.compare([str(sweep)]).left_out == [f"{sweep / '1'} (no record)"]
    with pytest.raises(RefusedError, match=r"1 cannot be compared \(no record\)"):
        comparison.compare([str(sweep / "0"), str(sweep / "1")])


def test_sweeps_are_compared_run_by_run_whatever_else_failed(sweep, tmp_path):
    """Seen to fail: with the first run of the first sweep, as the other had one run left."""
    other = shutil.copytree(sweep, tmp_path / "other")
    for name in "0124567":
        changed(other / name, "status", "failed")
    report = comparison.compare([str(sweep), str(other)])
    (compared,) = report.comparisons
    assert (compared.baseline.directory, compared.run.directory) == (sweep / "3", other / "3")
    assert f"{sweep / '0'} (no counterpart)" in report.left_out


def test_repeats_of_sweeps_are_compared_one_by_one(sweep, tmp_path):
    """Seen to fail: all with the last one."""
    for name in "1234567":
        shutil.rmtree(sweep / name)
    shutil.copytree(sweep / "0", sweep / "1")
    other = shutil.copytree(sweep, tmp_path / "other")
    shutil.copytree(sweep / "0", sweep / "2")
    report = comparison.compare([str(sweep), str(other)])
    assert [(c.baseline.directory.name, c.run.directory.name) for c in report.comparisons] == [
        ("0", "0"),
        ("1", "1"),
    ]
    assert report.left_out == [f"{sweep / '2'} (no counterpart)"]


def test_a_run_of_a_sweep_that_cannot_be_read_does_not_hide_the_others(sweep):
    (sweep / "1" / "forwards.csv").unlink()
    report = comparison.compare([str(sweep)])
    assert [c.run.directory.name for c in report.comparisons] == list("234567")
    assert report.left_out == [f"{sweep / '1'} (unreadable)"]


def test_the_table_on_the_console(command, sweep):
    done = command("compare", str(sweep))
    assert done.returncode == 0, done.stderr
    assert "verdict" in done.stdout
    assert "dtype: fp32 | bf16" in done.stdout
    alone = command("compare", str(sweep / "0"))
    assert alone.returncode == 2
    assert "nothing to compare" in alone.stderr
