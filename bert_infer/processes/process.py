"""A process for one run: how it is started, what it does to itself, and how it ends.

Importing torch takes seconds, so processes are forked from a fork server, which has done so and
nothing else (multiprocessing's forkserver). A run that needs other environment variables gets a
fresh interpreter.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from bert_infer import files
from bert_infer.devices import variables
from bert_infer.errors import ProcessError
from bert_infer.memory import less
from bert_infer.processes.worker import Finished
from bert_infer.running import interruption, status
from bert_infer.running.status import Cause

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess, SpawnProcess

TIME_TO_RECORD_S = 30.0
"""How long an interrupted run may take to write its record, before it is ended."""
DEADLINE = signal.SIGUSR1
"""Tells a run that its time is over. It is not SIGTERM, which anybody may send."""
_TIME_TO_END_S = 5.0
_INTERRUPTED = 130
_IMPORTS = ("bert_infer.processes.preloaded", "bert_infer.configuration.composition")
"""What every run needs, which is composed from its directory."""
_SETTLED = {"HF_HUB_OFFLINE": "1"}
"""The parent has asked the hub already: runs use its cache, and do not wait for the hub again."""
_OOM_SCORE = "500"  # of -1000 to 1000: where memory runs out, the run goes before its parent
_LOG_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"  # Hydra's


class Child(NamedTuple):
    """A process that was started, its id, and the pipe to it."""

    process: ForkServerProcess | SpawnProcess
    pid: int
    pipe: Connection

    def receive(self, patience_s: float | None = None) -> Any:  # noqa: ANN401  whatever it sends
        """Return what it sends next; None if it has died, and nothing is left to read.

        Raises:
            TimeoutError: nothing came in time.
        """
        if not connection.wait([self.pipe, self.process.sentinel], patience_s):
            raise TimeoutError
        with suppress(EOFError, ConnectionResetError):
            return self.pipe.recv() if self.pipe.poll() else None

    def late(self) -> None:
        """Tell it that its time is over, and let it write its record."""
        self._signal(DEADLINE, _TIME_TO_END_S)

    def interrupted(self, directory: Path) -> None:
        """Interrupt it, and leave a record of its run; a second interruption ends the wait."""
        with suppress(KeyboardInterrupt):
            self._signal(signal.SIGINT, TIME_TO_RECORD_S)
        self._kill()
        record_if_missing(directory, status.INTERRUPTED)

    def ended(
        self, directory: Path, finished: Finished | None, cause: Cause | None = None
    ) -> Finished:
        """End the process and all that it started; return the record of its run.

        Args:
            directory: the run's.
            finished: what it sent when it finished by itself; None if it did not.
            cause: why not, if the caller ended it; None: its exit code tells.
        """
        if cause is None:  # else it has had its time
            self.process.join(_TIME_TO_END_S)
        self._kill()
        if finished is None:
            cause = cause or _cause(self.process.exitcode or 0, directory / "run.log")
            return Finished(record_if_missing(directory, cause), ())
        if not (directory / "metrics.json").is_file():  # perhaps the disk has room by now
            status.end(directory, finished.metrics)
        return finished

    def _signal(self, number: signal.Signals, patience_s: float) -> None:
        if self.process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
        self.process.join(patience_s)

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.join(_TIME_TO_END_S)


@contextmanager
def recorded(directory: Path) -> Iterator[None]:
    """Leave a record of the run in ``directory`` that gets no process, or is interrupted before."""
    try:
        yield
    except ProcessError as error:
        record_if_missing(directory, Cause.of(error))
        raise
    except KeyboardInterrupt:
        record_if_missing(directory, status.INTERRUPTED)
        raise


def record_if_missing(directory: Path, cause: Cause) -> dict[str, Any]:
    """Return the record that the run in ``directory`` has left, or else one of ``cause``."""
    if (directory / "metrics.json").is_file():
        return files.read_json_object(directory / "metrics.json")
    return status.bury(directory, cause)


def _cause(exit_code: int, log: Path) -> Cause:
    """Return the cause of a run's end, where the run could not record it itself."""
    if exit_code == _INTERRUPTED or -exit_code in interruption.SIGNALS:  # before it could take note
        return status.INTERRUPTED
    if exit_code == -signal.SIGKILL:
        return Cause(
            "failed",
            "SIGKILL",
            "The system killed the process, as it does when memory runs out.",
            less(),
        )
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return Cause("failed", name, f"The process crashed ({name}).", f"{log} says where it was.")
    return Cause(
        "failed",
        "SystemExit",
        f"The process ended with exit code {exit_code} and left no record.",
        f"{log} has what it said.",
    )


@contextmanager
def started(
    work: Callable[[Connection, Any], None],
    argument: object,
    preload: Sequence[str],
    needed: Mapping[str, str],
) -> Iterator[Child]:
    """Start a process and yield it; it does not outlive the block.

    Args:
        work: is called in it with a pipe to this process, and ``argument``.
        argument: given to ``work``.
        preload: modules that the fork server imports once, besides those that every run needs.
        needed: variables of its environment, set before torch is imported.

    Raises:
        ProcessError: it cannot be started.
    """
    method = "spawn" if needed else "forkserver"
    context: Any = multiprocessing.get_context(method)
    context.set_forkserver_preload([*_IMPORTS, *preload])
    ours, theirs = multiprocessing.Pipe()
    process = context.Process(target=work, args=(theirs, argument))
    with ours:
        try:
            with theirs, variables.temporarily({**_SETTLED, **needed}), _start_method(method):
                _start(process, method)
            yield Child(process, process.pid, ours)
        finally:
            if process.pid is not None:
                process.kill()
                process.join()


def _start(process: Any, method: str) -> None:  # noqa: ANN401  each start method has its own class
    """Start ``process``; an interruption waits until it has been sent what it is to do.

    Raises:
        ProcessError: it cannot be started.
    """
    try:
        resource_tracker.ensure_running()  # before blocking: it unblocks the signals
        if method == "forkserver":
            with _blocked():
                forkserver.ensure_running()
            with interruption.held_back():
                process.start()
        else:
            with interruption.held_back(), _blocked():
                process.start()
    except (OSError, EOFError) as error:
        said = str(error) or type(error).__name__
        raise ProcessError(
            f"No process can be started: {said}.",
            "Set TMPDIR to a directory with a shorter path: a socket is made there."
            if said.startswith("AF_UNIX path")
            else "See what is printed above, if anything, and the limits here (ulimit -a).",
        ) from error


@contextmanager
def _blocked() -> Iterator[None]:
    """Start a process with interruptions blocked, until it unblocks them itself (``set_apart``).

    A scheduler signals all processes at once. If that ended the fork server, nobody could tell how
    long to wait for the runs that it forked. A spawned process has imports to make first.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, interruption.SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _start_method(method: str) -> Iterator[None]:
    """Set the start method, which a new process inherits: it does not know joblib's own."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


@contextmanager
def set_apart(directory: Path, time_to_record_s: float) -> Iterator[None]:
    """Set this process up to work for the run in ``directory`` alone.

    An interruption ends the process once the run has recorded it. The parent's death counts as one.

    Args:
        directory: gets run.log.
        time_to_record_s: how long the run may take to write its record after its parent's death.
    """
    try:
        gc.freeze()  # no collection need go through what was imported for all runs
        gc.enable()
        os.setsid()  # Ctrl-C is for the parent, and everything started here can be ended at once
        threading.Thread(target=_die_with_parent, args=(time_to_record_s,), daemon=True).start()
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, "ascii")
        with suppress(OSError), (directory / "run.log").open("a") as log:
            # What a library prints belongs to this run, and so does the traceback of a crash.
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        faulthandler.enable(sys.stderr)
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=_LOG_FORMAT, force=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interruption.SIGNALS)
        yield
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


def _interrupt(*_: object) -> NoReturn:
    """Raise KeyboardInterrupt once: a scheduler signals the parent, too, which passes it on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _die_with_parent(time_to_record_s: float) -> None:
    """Interrupt this process as soon as the parent is no more, then end it and what it started."""
    parent = multiprocessing.parent_process()
    if parent:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(time_to_record_s)
        os.killpg(os.getpgrp(), signal.SIGKILL)
