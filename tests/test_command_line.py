"""The command as a user meets it: real processes, their output, exit codes and files."""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from conftest import PLUGIN, QUICK, ROOT, WITH_PLUGIN, Command, wait_for

from bert_infer import compose
from bert_infer.errors import OptionError, RefusedError
from bert_infer.models.weights import make

TWELVE = ("model=tiny", "dtype=bf16", "batch=12", "iterations=3")
RUN_FILES = {"metrics.json", "forwards.csv", "environment.json", "run.log", ".hydra"}


@pytest.fixture(scope="module")
def morning(tmp_path_factory):
    """A run of the command, where it was made, and what it printed."""
    command = Command(tmp_path_factory.mktemp("morning"))
    return command, command(*TWELVE, "text=Good morning BERT!")


def test_one_run_prints_its_outputs_and_leaves_its_files(morning):
    command, done = morning
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Final hidden states  [12, 6, 64]  bfloat16")
    assert any(line.startswith("Pooled output  [12, 64]  bfloat16") for line in lines)
    (run,) = command.runs()
    assert lines[-1] == str(run)
    assert run.parts[-3] == "multirun_outputs"
    assert {path.name for path in run.iterdir()} == RUN_FILES
    assert {p.name for p in (run / ".hydra").iterdir()} == {
        "config.yaml",
        "hydra.yaml",
        "overrides.yaml",
    }
    assert "\x1b" not in done.stdout + done.stderr  # piped: no colours, no progress bar
    assert done.stderr == ""


def test_a_batch_of_twelve_is_twelve_sequences_in_one_forward(morning):
    command, _ = morning
    (metrics,) = command.metrics()
    assert metrics["choice"] | {} == {
        "device": "cpu",
        "dtype": "bf16",
        "graph": "eager",
        "batching": "padded",
        "engine": "transformers",
        "model": "tiny",
        "weights": "random",
        "batch": 12,
        "batching.max_tokens": None,
        "iterations": 3,
        "max_length": 512,
    }
    workload = metrics["workload"]
    assert (workload["texts"], workload["sequences"], workload["forwards_per_pass"]) == (1, 12, 1)
    assert (workload["real_tokens"], workload["padded_tokens"]) == (72, 72)
    assert metrics["latency_ms"]["samples"] == 3
    assert metrics["run"]["overrides"][:4] == [*TWELVE]
    throughput = metrics["throughput"]
    assert throughput["real_tokens_per_s"] == pytest.approx(6 * throughput["sequences_per_s"])


def test_from_python_the_tensors_and_the_same_record(morning):
    script = (
        "import json; from bert_infer import compose; "
        f"r = compose({[*TWELVE]}).run(['Good morning BERT!']); "
        "shapes = [list(h.shape) for h in r.hidden_states]; "
        "print(json.dumps([r.record, shapes, list(r.pooled.shape)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    record, states, pooled = json.loads(done.stdout)
    assert states == [[6, 64]]
    assert pooled == [1, 64]
    assert record["workload"]["sequences"] == 12
    command, _ = morning
    (written,) = command.metrics()
    assert record["run"]["config_hash"] == written["run"]["config_hash"]
    assert record["run"]["environment_hash"] == written["run"]["environment_hash"] is not None
    assert record["run"]["overrides"] == [*TWELVE]
    assert {k: _keys(v) for k, v in record.items()} == {k: _keys(v) for k, v in written.items()}


def test_a_sweep_compiles_where_it_is_asked_to(command):
    done = command("--multirun", *QUICK, "batch=12", "graph=eager,compile")
    assert done.returncode == 0, done.stderr
    assert [m["status"] for m in command.metrics()] == ["ok", "ok"]
    assert [m["choice"]["graph"] for m in command.metrics()] == ["eager", "compile"]
    took = [m["phases_s"]["compile"] for m in command.metrics()]
    assert [seconds is not None for seconds in took] == [False, True]


def test_standard_input_feeds_every_run_of_a_sweep(command):
    lines = ("input=lines", "input.path=-")
    with TemporaryDirectory() as temporary:  # pytest's own path may be too long for a socket
        own = {"TMPDIR": temporary}
        done = command("-m", *QUICK, *lines, "batch=1,2", stdin="one\n\nthree\n", env=own)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not os.listdir(temporary), "Seen to fail: the texts were left there."  # noqa: PTH208
    assert [m["workload"]["texts"] for m in command.metrics()] == [2, 2]
    assert [w["code"] for w in command.metrics()[0]["warnings"]].count("empty_texts") == 1


def test_a_path_of_temporary_files_too_long_for_a_socket_is_named(command):
    """Seen to fail: the remedy was to look at the limits of processes."""
    long = command.directory / ("d" * 100)
    long.mkdir()
    done = command("-m", *QUICK, "batch=1", env={"TMPDIR": str(long)})
    assert done.returncode == 1
    (metrics,) = command.metrics()
    assert metrics["error"]["type"] == "ProcessError"
    assert metrics["error"]["remedy"].startswith("Set TMPDIR")


def test_help_is_fast_because_it_imports_nothing_heavy():
    script = (
        "import sys; from bert_infer.cli import main; main(['--help'], 'run'); "
        "print({'torch', 'transformers', 'hydra', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_checking_a_request_does_not_import_torch():
    script = (
        "import sys; from bert_infer import compose; compose(['model=tiny']).prepare(); "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


REFUSED_BY_A_PROCESS = [
    (["dtype=bf61"], "Did you mean bf16?"),
    (["--multirun", "model=tiny", "dtype=fp32,bf61"], "Did you mean bf16?"),
    (["dtype=bf61", "--cfg", "job"], "bf16"),
    (["input=lines", "input.path=-"], "no text to process"),
    (["model=tiny", "batch=2147483647", "batching=token_budget"], "in this machine's memory"),
    (["--mulitrun", "batch=1,2"], "Did you mean --multirun?"),
    (["--shell-completion", "install=tcsh"], "install=bash"),
    (["model=tiny", "hydra.run.dir=/proc/here"], "cannot be written"),
    (["compare", "nowhere"], "no run or sweep"),
    (["duel", "dtype=bf61", "dtype=fp32"], "Did you mean bf16?"),
]
REFUSED = [
    (["model=tiny", "--multirun", "batch=1,0"], "batch=0"),  # flags may stand between overrides
    (["batch=1,2"], "--multirun"),
    (["max_length=1000"], "at most 512"),
    (["input=lines", "input.path=missing.txt"], "existing file"),
    (["input=lines", "input.path=."], "directory"),
    (["input=lines", f"input.path={'text' * 80}"], "file name too long"),
    ([f"model.checkpoint={'text' * 80}"], "file name too long"),
    ([f"model.name={'text' * 80}"], "Check the name"),
    (["device=hpu"], "habanalabs-installer.sh"),
    (["dtype=tf32", "device=cpu"], "Use dtype=fp32"),
    (["-m", "model=tiny", "batch=1,0"], "resume=DIR"),
    (["dtype", "bf16"], "Did you mean dtype=bf16?"),
    (["model=tiny", "batch", "batch=2"], "neither KEY=VALUE"),
    (["model=tiny", "report", "a"], "report is a command, and comes first.\n  Write report"),
    (["summarize", "multirun_outputs"], "come first.\n"),
    (["help"], "Did you mean --help?"),
    (["output.save=poold"], "Did you mean pooled?"),
    (["model.name=no/such"], "model.name=no/such"),
    (["model=tiny", "hydra.run.dir=file.txt/run"], "hydra.run.dir"),
    (["model=tiny", "input=lines", "input.path=latin1.txt"], "line 2"),
    (["input=synthetic", "input.max=600"], "input.max=600"),
    (["model.checkpoint=."], "directory"),
    (["model=tiny", "batch=1000000000000"], "batch=1000000000000"),
    (["model=tiny", "batch=30000000000"], "from 1 to 2147483647"),
    (["-m", "model=tiny", "batch=1,2", "hydra.sweep.subdir=same"], "same directory"),
    (["-m", "model=tiny", "batch=1,2", "hydra.sweep.subdir=of/${batch}"], "subdir=of/1 is no name"),
    (["-m", "model=tiny", "batch=1", "hydra.sweep.subdir='..'"], "subdir=.. is no name"),
    (["-m", "model=tiny", "batch=1", "hydra.sweep.subdir=/tmp/there"], "without a slash"),
    (
        ["-m", "batch=1,2", "repeats=2", "hydra.sweep.subdir=${hydra.job.override_dirname}"],
        "same directory",
    ),
    (["-m", "hydra/launcher=joblib", "input=lines", "input.path=-"], "several processes read"),
    (["-m", "model=tiny", "batch=range(1,1)"], "no run at all"),
    (["-m", "model=tiny", "batch=range(1,100000000)"], "more than 10,000 runs"),
    (["-m", "model=tiny", "batch=glob(*)"], "batch is no group"),
    (["-m", "model=tiny", "hydra/launcher=glob(*)"], "hydra/launcher cannot be swept over"),
    (["-m", "batch=1", "hydra.sweeper.params.dtype=fp32,bf61"], "hydra.sweeper"),
    (["hydra.run.dir=${nope}"], "nope"),
    (["hydra.run.dir="], "hydra.run.dir"),
    (["model=tiny", f"hydra.run.dir={'a' * 300}"], "Choose another: hydra.run.dir=DIR"),
    (["hydra.job.chdir=true"], "hydra.job.chdir"),
    (["hydra.foo=1"], "hydra.foo"),
    (["hydra.output_subdir=null"], "hydra.output_subdir=null"),
    (["-m", "batch=1,2", "hydra.output_subdir=other"], "hydra.output_subdir=other"),
    (["hydra.verbose=5"], "hydra.verbose=5"),
    (["hydra.mode=2"], "RUN or MULTIRUN"),
    (["hydra.job.chdir=${oc.env:HOME}"], "Refer to a value that fits."),
    (["model=tiny", "until=5"], "until=5"),
    (["model=tiny", "hydra=null"], "hydra=null"),
    (["--cfg", "job", "--resolve", "batch=${nope}"], "nope"),
    (["--cfg", "job", "--package", "nope"], "--package=nope"),
    (["--cfg", "job", "--package", "hydra.job"], "--package=hydra.job"),
    (["--cfg", "job", "--package", "batc"], "Did you mean batch?"),
    (["--cfg", "job", "hydra.mode=foo"], "one of RUN, MULTIRUN"),
    (["--info", "config", "until={foo:3}"], "until.max_s"),
    (["-m", "--cfg", "job", "batch=1,2"], "--multirun and --cfg exclude each other"),
    (["--dtype", "bf16"], "Write dtype=VALUE"),
    (["--batch=12"], "Write batch=VALUE"),
    (["--resolve", "model=tiny"], "--resolve belongs to --cfg"),
    (["--experimental-rerun", "nowhere"], "not supported"),
    (["--multirun", "--config-name", "nope", "batch=1,2"], "--config-name is not supported"),
    (["-m", "model=tiny", "timeout_s=inf"], "up to 2000000"),
    (["model.checkpoint=/dev/zero"], "pipe or device"),
    (["model=tiny", "--config-dir", "nowhere"], "no such directory"),
    (["duel", "batch=1", "batch=2", "--config-dir", "nowhere"], "no such directory"),
    (["model=tiny", "batch=1,2"], "asks for several runs"),
    (["-m", "model=tiny", "batch=1,2", "baseline='batch=7'"], "has: batch=1, batch=2"),
    (["duel", "batch=1,2", "batch=3", "model=tiny"], "Give each key one value."),
    (["duel", "batch=1", "batch=3", "model=tiny", "seed=1,2"], "asks for several runs"),
    (["comapre", "nowhere"], "Did you mean compare?"),
    (["compare"], "directories"),
    (["duel", "dtype=bf16"], "A B"),
    (["duel", "model=tiny", "model=minilm"], "A is model=tiny. B is"),
    (["duel", "text=one", "text=two", "model=tiny"], "their input differs. A is"),
    (["duel", "model=tiny", "model=tiny", "--rounds", "1"], "--rounds=1"),
    (["duel", "model=tiny", "model=tiny", "--pairs", "0"], "--pairs=0"),
    (["duel", "text=Don't", "batch=1", "model=tiny"], "No closing quotation"),
    (["duel", "batch=1", "batch=2", "model=tiny", "until.max_s=3"], "no meaning in a duel"),
    (["duel", "batch=1", "batch=2", "model=tiny", "timeout_s=3"], "no meaning in a duel"),
    (["duel", "batch=1", "batch=2", "+hydra.job.env_set.A=1"], "no meaning in a duel"),
    (
        ["duel", "", "", "model=tiny", "input=lines", "input.path=-"],
        "several processes read the input",
    ),
]


def of_refusals(refused):
    """Parametrize with what is asked, and what is said of it."""
    shown = [" ".join(arguments) for arguments, _ in refused]
    return pytest.mark.parametrize(("arguments", "says"), refused, ids=shown)


def check_refused(directory, refused, arguments, says):
    (directory / "file.txt").write_text("here")
    (directory / "latin1.txt").write_bytes(b"ok\ncaf\xe9\n")
    done = refused(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert {p.name for p in directory.iterdir()} == {"file.txt", "latin1.txt"}


@of_refusals(REFUSED_BY_A_PROCESS)
def test_a_refused_request_is_one_message_and_leaves_nothing(command, arguments, says):
    check_refused(command.directory, command, arguments, says)


@of_refusals(REFUSED)
def test_whatever_is_refused_is_one_message_and_leaves_nothing(tmp_path, main, arguments, says):
    check_refused(tmp_path, main, arguments, says)


@pytest.mark.skipif(
    Path("/proc/driver/nvidia").exists(), reason="this machine has an NVIDIA driver"
)
def test_cuda_is_refused_where_there_is_none(command):
    done = command("device=cuda")
    assert done.returncode == 2
    assert "no NVIDIA driver" in done.stderr


def test_a_reader_that_leaves_early_ends_nothing(command):
    front_door = f"{sys.executable} {ROOT / 'run.py'} {' '.join(QUICK)}"
    script = f"{front_door} -m batch=1,2 | true; echo $PIPESTATUS"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=command.directory,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0\n"
    assert done.stderr == ""
    assert [m["status"] for m in command.metrics()] == ["ok", "ok"]


def test_the_last_values_shown_are_a_real_tokens_and_the_pooling_is_the_one_chosen(command):
    texts = ["One that is longer than the other.", "Short."]
    done = command("model=minilm", f"text={json.dumps(texts)}", "batch=2", "output.pooling=mean")
    result = compose(["model=minilm"]).run(texts)
    lines = done.stdout.splitlines()
    state, mean = result.hidden_states[1][-1], result.hidden_states[1].mean(0)
    for line, row in ((lines[2], state), (lines[5], mean)):
        shown = [float(v) for v in line.split("[")[1].rstrip("]").replace("...,", "").split(",")]
        expected = [*row[:3].tolist(), *row[-3:].tolist()]
        assert shown == pytest.approx(expected, abs=2e-4)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_cannot_be_written_ends_nothing(command):
    front_door = f"{sys.executable} {ROOT / 'run.py'}"
    run = f"{front_door} {' '.join(QUICK)}"
    for redirected in (f"{run} > /dev/full", f"{run} >&-"):
        done = subprocess.run(
            ["bash", "-c", redirected],
            cwd=command.directory,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Traceback" not in done.stderr
    assert [m["status"] for m in command.metrics()] == ["ok", "ok"]
    # Of a command that shows something, it is all that was asked for. Seen to fail: 0.
    for redirected, code in ((f"{front_door} ls > /dev/full", 1), (f"{front_door} ls | true", 0)):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", redirected], cwd=command.directory, check=False
        )
        assert done.returncode == code


def test_an_interruption_before_the_first_phase_leaves_a_record(command):
    with command.running(*QUICK, "iterations=10000000") as process:
        wait_for(lambda: list(command.directory.rglob("run.log")))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert [m["status"] for m in command.metrics()] == ["interrupted"]


def test_options_of_your_own_lie_in_any_directory(command):
    group = command.directory / "my conf, and more" / "batching"
    group.mkdir(parents=True)
    (group / "narrow.yaml").write_text(
        "# two words a line\n_target_: bert_infer.batching.TokenBudget\nmax_tokens: 64\nwindow: 9\n"
    )
    listed = command("--config-dir", str(group.parent), "--help")
    assert re.search(r"^  narrow +two words a line$", listed.stdout, re.MULTILINE)
    chosen = ("--config-dir", str(group.parent), *QUICK)
    done = command(*chosen, "batching=narrow")
    assert done.returncode == 0, done.stderr
    assert command.metrics()[0]["choice"]["batching"] == "token_budget"
    for wrong in ("batching=narow", "batching=null"):
        done = command(*chosen, wrong)
        assert done.returncode == 2
        assert f"{wrong} is refused: batching takes padded, " in done.stderr
        assert ", narrow." in done.stderr


def test_the_option_that_the_readme_adds_works(command, monkeypatch):
    """Seen to fail: told to set batching.max_tokens, which it does not have; most=0 taken."""
    section = (ROOT / "README.md").read_text("utf-8").partition("## Adding an option")[2]
    code, declared, option = re.findall(r"```\w+\n(.*?)```", section, re.DOTALL)[:3]
    (command.directory / "my_package.py").write_text(code)
    group = command.directory / "my_conf" / "batching"
    group.mkdir(parents=True)
    (group / "longest_first.yaml").write_text(option)
    installed = command.directory / "my_package.dist-info"
    installed.mkdir()
    ((points, targets),) = tomllib.loads(declared)["project"]["entry-points"].items()
    lines = [f"[{points}]", *(f"{name} = {target}" for name, target in targets.items())]
    (installed / "entry_points.txt").write_text("\n".join(lines))
    chosen = ("--config-dir", "my_conf", "batching=longest_first", "batching.most=2")
    chosen += ("batch=4",)
    path = os.pathsep.join([str(command.directory), WITH_PLUGIN["PYTHONPATH"]])
    done = command(*chosen, *QUICK, "text=[one, two three, four]", env={"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    (metrics,) = command.metrics()
    assert metrics["choice"]["batching"] == "longest_first"
    assert metrics["workload"]["forwards_per_pass"] == 2
    remedies = [w["remedy"] for w in metrics["warnings"] if w["code"] == "batch_ignored"]
    assert remedies == ["Leave batch out, or set batching.most."]
    monkeypatch.syspath_prepend(command.directory)
    with pytest.raises(OptionError, match="most=0 is refused"):
        importlib.import_module("my_package").LongestFirst(0)


def test_a_sweep_compares_a_study_with_none(command):
    done = command("-m", *QUICK, "experiment=null,ragged", "isolation=inline")
    assert done.returncode == 0, done.stderr
    assert [m["choice"]["batching"] for m in command.metrics()] == ["padded", "by_length"]
    (table,) = command.directory.rglob("summary.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["experiment"] for row in rows} == {"null", "ragged"}


def test_a_part_of_the_configuration_is_shown(command):
    done = command("--cfg", "job", "--package", "until", "until.max_s=3")
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["# @package until", "relative_ci: null", "max_s: 3"]


@pytest.mark.parametrize(
    ("arguments", "shows"),
    [
        (["model=tiny", "--info", "defaults-tree"], "\n    model: tiny\n"),
        (["--config-dir=own", "--info", "searchpath"], "/own |\n"),
        (["--hydra-help"], "--shell-completion"),
        (["--shell-completion", "install=bash"], "complete -o nospace"),
        (["-sc", "query=bash"], "bf16_autocast"),
    ],
)
def test_what_hydra_prints_is_shown(command, arguments, shows):
    (command.directory / "own").mkdir()
    done = command(*arguments, env={"COMP_LINE": "python run.py dtype=", "COMP_POINT": "20"})
    assert (done.returncode, done.stderr) == (0, "")
    assert shows in done.stdout


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--multirun", "batch=1,2"], ["ls"]])
def test_a_python_without_the_packages_is_named(arguments):
    """As when nobody activated the environment: site-packages are left out."""
    done = subprocess.run(
        [sys.executable, "-S", "-E", str(ROOT / "run.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert re.search(rf"{re.escape(sys.executable)}\) has no package (hydra|rich)", done.stderr)
    assert "pip install -e ." in done.stderr


def test_full_error_shows_the_traceback(command):
    done = command("dtype=bf61", env={"HYDRA_FULL_ERROR": "1"})
    assert "Traceback" in done.stderr
    assert "OptionError" in done.stderr


def test_a_failure_while_running_leaves_a_record(command):
    full = ("--config-dir", str(PLUGIN / "conf"), "engine=deadly", "engine.deed=allocate")
    done = command(*full, "model=tiny", "batch=12", "warmup=0", "drift.texts=0", env=WITH_PLUGIN)
    assert done.returncode == 1
    (metrics,) = command.metrics()
    assert metrics["status"] == "failed"
    assert "(phase: measure)" in metrics["error"]["message"]
    assert "Lower batch" in metrics["error"]["remedy"]
    assert metrics["workload"]["sequences"] == 12
    assert "Lower batch" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_compiler_that_fails_is_told_from_other_failures(command):
    """Seen to fail: all that was said is that the traceback is in run.log."""
    broken = command.directory / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    own = {"CXX": str(broken), "TORCHINDUCTOR_CACHE_DIR": str(command.directory / "cache")}
    done = command(*QUICK, "graph=compile", env=own)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (metrics,) = command.metrics()
    assert "graph=eager" in metrics["error"]["remedy"]
    assert "(phase: compile)" in metrics["error"]["message"]


def test_interrupting_leaves_a_record_that_says_so(command):
    with command.running(*QUICK, "iterations=10000000") as process:
        (log,) = wait_for(lambda: list(command.directory.rglob("run.log")))
        wait_for(lambda: "phase: measure" in log.read_text())
        time.sleep(0.5)  # for hundreds of forwards of a millisecond
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    (metrics,) = command.metrics()
    assert metrics["status"] == "interrupted"
    assert metrics["latency_ms"]["samples"] > 0
    assert metrics["throughput"]["sequences_per_s"] > 0


def test_a_progress_bar_is_drawn_on_a_terminal_only(command):
    pty = pytest.importorskip("pty")
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *QUICK, "iterations=400"],
        cwd=command.directory,
        stdout=terminal,
        stderr=terminal,
        stdin=terminal,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(terminal)
    shown = b""
    try:
        while chunk := os.read(main, 4096):
            shown += chunk
    except OSError:  # Linux' way to say that the other end is closed
        pass
    os.close(main)
    assert process.wait() == 0
    assert b"warmup" in shown
    assert b"/400" in shown
    assert b"/100" not in shown, "a total that nobody knows yet"


@pytest.mark.parametrize("asked", [["output=files", "output.save=pooled"], ["profile=true"]])
def test_files_that_a_run_from_python_would_not_write_are_refused(asked):
    """Seen to fail: nothing was written, and nothing said."""
    with pytest.raises(RefusedError, match="a run from Python writes none"):
        compose(["model=tiny", *asked]).run("Hello")


def test_what_a_run_from_python_returns_is_the_callers_own():
    """Seen to fail: positions were the cached ones, and hidden states took no gradient."""
    runner = compose(["model=tiny", "engine=fused", "drift.texts=0"])
    result = runner.run(["one", "two"])
    result.positions[:] += 10
    result.hidden_states[0].mul_(2)
    weight = torch.ones(64, requires_grad=True)
    (result.hidden_states[1] @ weight + result.pooled[1] @ weight).sum().backward()
    assert weight.grad is not None
    assert runner.run(["one", "two"]).positions.tolist() == [0, 1]


def test_runs_of_several_threads_wait_for_one_another():
    """Seen to fail: "Library object has been destroyed"; texts cut as another run cuts them."""
    script = (
        "from concurrent.futures import ThreadPoolExecutor; from bert_infer import compose; "
        "tiny = ['model=tiny', 'engine=fused', 'drift.texts=0', 'batch=64']; "
        "runners = [compose([*tiny, f'max_length={n}']) for n in (8, 64, 16)]; "
        "runners[0].run('a'); "  # loads the tokenizer
        "runs = ThreadPoolExecutor(3).map(lambda r: r.run(['word ' * 99] * 2000), runners); "
        "print([(r.record['status'], {len(text) for text in r.hidden_states}) for r in runs])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout == "[('ok', {8}), ('ok', {64}), ('ok', {16})]\n", done.stderr


def test_of_two_runs_that_begin_together_one_gets_the_directory(command):
    """Seen to fail: both went well, and one of the two records was left, half of it the other's."""
    same = (*QUICK, "hydra.run.dir=same")
    with command.running(*same) as first, command.running(*same) as second:
        ended = {process: process.communicate()[1] for process in (first, second)}
    good, refused = sorted(ended, key=lambda process: process.returncode)
    assert (good.returncode, refused.returncode) == (0, 2)
    assert re.search("is being written by|holds a run", ended[refused])
    assert [metrics["status"] for metrics in command.metrics()] == ["ok"]


def test_a_runs_variables_are_set_before_torch_is_imported(command, main):
    """Seen to fail: checking a PyTorch file imports torch, and the variable came too late.

    And a traceback of omegaconf's, where a run is made again without what its variable names.
    """
    architecture = compose(["model=tiny"]).model.architecture()
    weights = make(architecture, 0, architecture.parameters)
    torch.save(weights, command.directory / "tiny.bin")
    given = ("OMP_NUM_THREADS=1", "GIVEN=${oc.env:IS_THERE}")
    variables = [f"+hydra.job.env_set.{variable}" for variable in given]
    own = {"OMP_NUM_THREADS": "2", "IS_THERE": "1"}
    done = command(*QUICK, "model.checkpoint=tiny.bin", *variables, "hydra.run.dir=run", env=own)
    assert done.returncode == 0, done.stderr
    assert "Final hidden states" in done.stdout
    environment = json.loads((command.directory / "run/environment.json").read_text())
    assert environment["threads"]["intra_op"] == 1
    assert environment["variables"]["OMP_NUM_THREADS"] == "1"
    (metrics,) = command.metrics()
    assert metrics["run"]["isolation"] == "process"
    again = main("rerun", "run")
    assert again.returncode == 2
    assert "IS_THERE" in again.stderr
    assert "Traceback" not in again.stderr


def _keys(value):
    return sorted(value) if isinstance(value, dict) else None
