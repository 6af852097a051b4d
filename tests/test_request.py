"""A command line as it is understood and refused, before any process or run."""

from __future__ import annotations

import re

import pytest

from bert_infer.cli import commands
from bert_infer.cli.request import Request
from bert_infer.errors import RefusedError
from bert_infer.sweeps.sweep import command_to_complete


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=tiny", "--info"],
        ["model=tiny", "--info", "all"],
        ["--info", "all", "model=tiny"],
    ],
)
def test_a_flag_with_an_optional_value_stands_before_or_after_overrides(arguments):
    """Seen to fail: --info took the override for its value, and Hydra refused that by its usage."""
    request = Request.of(arguments)
    request.check_view()
    assert (request.overrides, request.asked.info) == (["model=tiny"], "all")


def test_an_override_in_the_place_of_a_flags_value_is_refused_in_short():
    with pytest.raises(RefusedError, match="invalid choice: 'model=tiny'") as refused:
        Request.of(["--info", "model=tiny"])
    assert len(str(refused.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("batch=x", "batch=x is refused: batch takes a whole number"),
        ("batch=0", "from 1"),
        ("until.relative_ci=2", "until.relative_ci=2"),
        ("repeats=0", "repeats=0"),
        ("device.threads=many", "device.threads=many"),
        ("hydra.job.chdir=true", "hydra.job.chdir=true"),
        ("batch=1,2", "batch=1,2 asks for several runs"),
    ],
)
def test_a_value_that_is_wrong_is_refused_where_the_configuration_is_shown(wrong, says):
    """Seen to fail: it was shown, with exit code 0."""
    request = Request.of(["--cfg", "job", "input=lines", "device=cpu", wrong])
    with pytest.raises(RefusedError, match=re.escape(says)):
        request.check_view()


def test_an_option_that_lacks_a_value_is_shown_with_its_fields():
    """Seen to fail: with all options checked, input.path=(nothing) was refused."""
    Request.of(["--cfg", "job", "--package", "input", "input=lines"]).check_view()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "model=tiny", "hydra.run.dir=a"], "hydra.run.dir belongs to a single run"),
        (["model=tiny", "++hydra.sweep.dir=a"], "hydra.sweep.dir belongs to a sweep"),
        (["model=tiny", "hydra.sweep={dir:a}"], "hydra.sweep belongs to a sweep"),
    ],
)
def test_a_directory_that_nothing_would_be_written_to_is_refused(arguments, says):
    """Seen to fail: it was ignored without a word."""
    request = Request.of(arguments)
    with pytest.raises(RefusedError, match=says):
        request.plan() if request.is_sweep else request.check()


def test_what_a_shell_asks_is_refused_where_none_does(monkeypatch):
    """Seen to fail: KeyError: 'COMP_LINE'."""
    monkeypatch.delenv("COMP_LINE", raising=False)
    with pytest.raises(RefusedError, match="in COMP_LINE"):
        Request.of(["-sc", "query=bash"])
    monkeypatch.setenv("COMP_LINE", "python run.py dtype=")
    assert Request.of(["-sc", "query=bash"]).only_shows


@pytest.mark.parametrize("program", ["bert-infer", "python -m bert_infer"])
def test_what_completes_a_sweep_is_a_command_of_the_program_that_was_called(program):
    """Seen to fail: it was `python run.py` whatever had been called."""
    asked = ["--multirun", "model=tiny", "batch=1,2", "fail_fast=true", "hydra.sweep.dir=a sweep"]
    completing = command_to_complete(Request.of(asked).plan(), program)
    options = "--multirun model=tiny batch=1,2 'resume=a sweep' fail_fast=false"
    assert completing == f"{program} {options}"


@pytest.mark.parametrize(
    ("b", "says"),
    [
        ("batch=2,3", "^model=tiny batch=2,3 asks for several runs"),
        ("text=two", r"A is model=tiny batch=1\. B is model=tiny input.text='two'\."),
    ],
)
def test_a_duel_quotes_what_was_typed(b, says):
    """Seen to fail: iterations=3 before it, which nobody had typed."""
    with pytest.raises(RefusedError, match=says):
        commands.duel("run.py", ["batch=1", b, "model=tiny", "--rounds", "3"])
