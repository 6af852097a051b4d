"""Processes that wait blocked on a pipe and answer one question at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

from bert_infer.duel.side import TURN_S
from bert_infer.errors import BertInferError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    import numpy as np
    from numpy.typing import NDArray
    from peer_engines import Engine, Files, States, Workload

MEASURE, OUTPUTS, STOP = "measure", "outputs", "stop"
_PATIENCE_S = 3600.0
_QUIET_S, _NOISY_S = 0.05, 2.0
_TIME_TO_END_S = 20
_LONGEST_REASON = 200


class FailedError(Exception):
    """An engine cannot take part, or no longer; its message says why."""


@dataclass(frozen=True)
class Failure:
    """What a process sends instead of an answer."""

    reason: str


class Worker:
    """A process that runs ``work(pipe, *arguments)``, and answers what it is asked."""

    def __init__(self, work: Callable[..., None], *arguments: object, log: Path) -> None:
        self._log = log
        # A fresh interpreter: threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_answer, args=(theirs, log, work, arguments), daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(_TIME_TO_END_S)
        self._process.kill()
        self._process.join()

    def ask(self, question: object) -> Any:  # noqa: ANN401  each question has its own answer
        """Send ``question`` and wait for the answer.

        Raises:
            FailedError: the process failed or died instead.
        """
        try:
            self._pipe.send(question)
        except OSError:
            raise self._died() from None
        return self.answer()

    def answer(self) -> Any:  # noqa: ANN401  as above
        """Wait for an answer.

        Raises:
            FailedError: the process failed or died instead.
        """
        if not self._pipe.poll(_PATIENCE_S):
            self._process.kill()
            raise FailedError(f"gave no answer in {_PATIENCE_S:.0f} s")
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise self._died() from None
        if isinstance(answer, Failure):
            raise FailedError(answer.reason)
        return answer

    def rests(self) -> bool:
        """Wait until it uses no processor time; False if it goes on and so disturbs others."""
        end = time.monotonic() + _NOISY_S
        used = self.used_s()
        while time.monotonic() < end:
            time.sleep(_QUIET_S)
            before, used = used, self.used_s()
            if used == before:
                return True
        return False

    def used_s(self) -> float:
        """Return the processor time it has used so far."""
        return sum(psutil.Process(self._process.pid).cpu_times()[:2])

    def peak_bytes(self) -> int | None:
        """Return the most memory it has held so far (VmHWM); None where nobody tells."""
        with suppress(OSError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text("ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None

    def _died(self) -> FailedError:
        self._process.join(_TIME_TO_END_S)
        code = self._process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return FailedError(_short(f"its process ended by {how}. {_last_line(self._log)}"))


def serve(pipe: Connection, engine: Engine, files: Files, dtype: str) -> None:
    """Load ``engine``, and measure the workloads that come through ``pipe``."""
    measure = engine.load(files, dtype)
    pipe.send(None)
    while True:
        workload: Workload = pipe.recv()
        pipe.send(measure(workload, partial(_passes, pipe, workload.compared)))


def convert(pipe: Connection, engine: Engine, files: Files, dtype: str) -> None:
    """Write the files that ``engine`` loads; apart, so that its worker's memory is its own."""
    engine.convert(files, dtype)
    pipe.send(None)


def _passes(pipe: Connection, compared: int | None, latest: Callable[[], States]) -> Iterator[int]:
    """Yield the passes of each turn that ``pipe`` grants, and report the seconds of each."""
    index = 0
    yield index  # never reported: it warms up, and its outputs are compared
    pipe.send(None)
    while (question := pipe.recv()) != STOP:
        if question == OUTPUTS:
            pipe.send(_pooled(latest()[:compared]))
            continue
        seconds: list[float] = []
        while sum(seconds) < TURN_S:
            index += 1
            start = time.perf_counter()
            yield index
            seconds.append(time.perf_counter() - start)
        pipe.send(seconds)


def _pooled(states: States) -> NDArray[np.float32]:
    """Return the mean of each sequence's states, ``[sequences, hidden]``."""
    import numpy as np
    import torch

    tensors = [torch.as_tensor(of_one).float() for of_one in states]
    return np.stack([t.mean(0).numpy() if t.ndim > 1 else t.numpy() for t in tensors])


def _answer(
    pipe: Connection, log: Path, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """Run ``work``; the pipe's end ends it, and an exception becomes the answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    with log.open("ab") as file:  # engines print a lot
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        work(pipe, *arguments)
    except EOFError:
        return
    except Exception as error:  # noqa: BLE001  whatever an engine raises is its row's reason
        import traceback

        traceback.print_exc()
        pipe.send(Failure(_reason(error)))


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install 'bert-infer[peers]'"
    says_all = isinstance(error, (FailedError, BertInferError))
    return _short(str(error) if says_all else f"{type(error).__name__}: {error}")


def others_share(work: Callable[[], float]) -> float:
    """Return which part of the processor others used while ``work`` went on.

    Args:
        work: returns the processor time that it used itself.
    """
    before = psutil.cpu_times()
    mine = work()
    after = psutil.cpu_times()
    passed = sum(after[:8]) - sum(before[:8])  # guests' time is the user's, too
    idle = after.idle + after.iowait - before.idle - before.iowait
    return max(0.0, (passed - idle - mine) / passed) if passed else 0.0


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 3] + "..."


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", errors="replace").split("\n") if log.is_file() else []
    return next((line for line in reversed(lines) if line.strip()), "")
