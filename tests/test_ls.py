"""Runs found again by what they were."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
from conftest import Command, break_off, edit


@pytest.fixture(scope="module")
def outputs(made_sweep, tmp_path_factory):
    """A sweep, a duel, a run and a broken one, on two days."""
    command = Command(tmp_path_factory.mktemp("ls"))
    root = command.directory / "multirun_outputs"
    shutil.copytree(made_sweep, root / "2026-01-01" / "sweep")
    shutil.copytree(made_sweep / "0", root / "2026-01-02" / "single")
    shutil.copytree(made_sweep / "1", root / "2026-01-02" / "7")
    for side, number in (("a", 2), ("b", 3)):
        shutil.copytree(made_sweep / str(number), root / "2026-01-03" / "duel" / side)
    (root / "2026-01-03" / "duel" / "duel.json").write_text("{}")
    break_off(root / "2026-01-02" / "7", "failed")
    edit(root / "2026-01-02" / "single", choice__model="hub/tiny")
    for day, name in (("02", "single"), ("02", "7"), ("03", "duel/a"), ("03", "duel/b")):
        hour = 9 if name == "single" else 8
        edit(
            root / f"2026-01-{day}" / name,
            run__started_at=f"2126-01-{day}T{hour:02}:00:00+00:00",
        )
    (root / "2026-01-04").mkdir()
    return command


@pytest.fixture
def listed(outputs, main, monkeypatch):
    monkeypatch.chdir(outputs.directory)
    return partial(main, "ls")


def paths(done):
    return [line.split()[-1] for line in done.stdout.splitlines() if "multirun_outputs/" in line]


def test_everything_is_listed_once_the_newest_first(outputs):
    done = outputs("ls")
    assert done.returncode == 0, done.stderr
    assert [path.removeprefix("multirun_outputs/") for path in paths(done)] == [
        "2026-01-03/duel",
        "2026-01-02/single",
        "2026-01-02/7",
        "2026-01-01/sweep",
    ]
    for says in ("sweep (8)", "duel (2)", "run", "failed", "8 ok", "model=tiny", "dtype=fp32,bf16"):
        assert says in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["status=failed"], ["2026-01-02/7"]),
        (["dtype=bf16"], ["2026-01-01/sweep"]),
        (["batch=4", "dtype=fp32", "batching=padded"], ["2026-01-03/duel", "2026-01-01/sweep"]),
        (["iterations=6", "status=interrupted"], []),
        (["model=hub/tiny"], ["2026-01-02/single"]),
        (
            ["model=tiny"],
            ["2026-01-03/duel", "2026-01-02/single", "2026-01-02/7", "2026-01-01/sweep"],
        ),
        (["multirun_outputs/2026-01-02"], ["2026-01-02/single", "2026-01-02/7"]),
        (["multirun_outputs/2026-01-02", "status=ok"], ["2026-01-02/single"]),
    ],
)
def test_filters_are_resolved_choices_statuses_and_overrides(listed, words, expected):
    done = listed(*words)
    assert done.returncode == 0, done.stderr
    assert [path.removeprefix("multirun_outputs/") for path in paths(done)] == expected
    if not expected:
        assert "Nothing like that" in done.stdout


def test_of_a_sweep_the_runs_that_fit_are_counted(listed):
    assert "sweep (4 of 8)" in listed("dtype=bf16").stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bacth=12"], "Did you mean batch?"),
        (["multirun_outputs", "fp32"], "KEY=VALUE"),
        (["nowhere"], "nowhere is no directory"),
    ],
)
def test_a_wrong_filter_is_refused(listed, words, says):
    done = listed(*words)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_where_nothing_is_it_says_so(main):
    done = main("ls")
    assert (done.returncode, done.stderr) == (0, "")
    assert "No run lies below multirun_outputs" in done.stdout
