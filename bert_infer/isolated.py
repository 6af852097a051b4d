"""A run in a process of its own: what it does to itself, it does to no other run.

Importing torch takes seconds, so processes are forked from one that has done so and nothing else
(multiprocessing's forkserver). A run that needs other environment variables gets a fresh
interpreter. Whoever asked waits blocked, and imports no torch.
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
from dataclasses import dataclass
from multiprocessing import connection, forkserver, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

from bert_infer import environment, files, status, worker
from bert_infer.attempts import LESS
from bert_infer.inputs.lines import spooled
from bert_infer.status import Cause
from bert_infer.worker import Finished, Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerProcess, SpawnProcess

    from omegaconf import DictConfig

    from bert_infer.devices import Device
    from bert_infer.plan import Place
    from bert_infer.runner import Runner

    Process = ForkServerProcess | SpawnProcess

_TIME_TO_END_S = 5.0
_TIME_TO_RECORD_S = 30.0
"""How long an interrupted run may take to write its record, before it is ended."""
_SETTLED = {"HF_HUB_OFFLINE": "1"}
"""Whoever asked has asked the hub: runs take what is in its cache, and do not wait for it again."""
_DEADLINE = signal.SIGUSR1
"""What tells a run that its time is over: anybody may send SIGTERM."""
_INTERRUPTIONS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_INTERRUPTED = 130
_OOM_SCORE = "500"  # of -1000 to 1000: where memory runs out, the run goes before its parent


class Assignment(NamedTuple):
    """What a process is told: where its run is described, its time, a file for standard input."""

    directory: Path
    timeout_s: float | None
    stdin: str


@dataclass(frozen=True)
class Isolated:
    """How runs are started and ended.

    Attributes:
        preload: modules that the process which is forked imports, once.
        timeout_s: seconds after which a run is ended; None never.
    """

    preload: tuple[str, ...]
    timeout_s: float | None

    def run(self, directory: Path, variables: Mapping[str, str], watch: Watch) -> Finished:
        """Make the run that ``.hydra`` in ``directory`` describes.

        Args:
            directory: where its files go.
            variables: of the environment, set before torch is imported.
            watch: ``phase`` is told how the run goes on.

        Raises:
            KeyboardInterrupt: passed on, after the run's record is written. A second one ends the
                process at once.
        """
        stdin = spooled()
        assignment = Assignment(directory, self.timeout_s, stdin.name if stdin else os.devnull)
        with _process(_run, assignment, self.preload, variables) as (process, pipe):
            try:
                finished, cause = self._wait(process, pipe, watch), None
            except TimeoutError as error:
                late = (TimeoutError.__name__, str(error), worker.TAKES_TOO_LONG)
                finished, cause = None, Cause("failed", *late)
                _signal(process, _DEADLINE, _TIME_TO_END_S)
            except KeyboardInterrupt:
                with suppress(KeyboardInterrupt):  # a second one ends the wait
                    _signal(process, signal.SIGINT, _TIME_TO_RECORD_S)
                _kill_group(process)
                _record_if_missing(directory, status.INTERRUPTED)
                raise
            _kill_group(process)  # with what it may have started
            if finished is None:
                cause = cause or _cause(process.exitcode or 0, directory / "run.log")
                return Finished(_record_if_missing(directory, cause), ())
            if not (directory / "metrics.json").is_file():  # it could not, and perhaps now it can
                status.end(directory, finished.metrics)
            return finished

    def _wait(self, process: Process, pipe: Connection, watch: Watch) -> Finished | None:
        """Follow the run to its end; None where it came to none by itself.

        Raises:
            TimeoutError: it takes too long.
        """
        deadline = time.monotonic() + self.timeout_s if self.timeout_s else None
        finished = None
        with suppress(EOFError, ConnectionResetError):
            while True:
                left = max(0.0, deadline - time.monotonic()) if deadline else None
                if not connection.wait([pipe, process.sentinel], left):
                    raise _too_late(self.timeout_s)
                if not pipe.poll():  # it has died, and nothing of it is left to be read
                    break
                message = pipe.recv()
                if isinstance(message, Finished):
                    finished = message
                else:
                    watch.phase(message)
        process.join(_TIME_TO_END_S)
        return finished


def _too_late(timeout_s: float | None) -> TimeoutError:
    return TimeoutError(f"It was not done after timeout_s={timeout_s}, and was ended.")


def _cause(exit_code: int, log: Path) -> Cause:
    """Return the cause of a run's end that it could not record itself."""
    if exit_code == _INTERRUPTED or -exit_code in _INTERRUPTIONS:  # before it could take note
        return status.INTERRUPTED
    if exit_code == -signal.SIGKILL:
        return Cause(
            "failed",
            "SIGKILL",
            "The system killed the process, as it does when memory runs out.",
            LESS,
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


def environment_at(place: Place, preload: Sequence[str]) -> dict[str, Any]:
    """Return what environment.json would say of a run there now."""
    with _process(_describe, place.device, preload, dict(place.variables)) as (_, pipe):
        found: dict[str, Any] = pipe.recv()
    return found


@contextmanager
def _process(
    work: Callable[[Connection, Any], None],
    argument: object,
    preload: Sequence[str],
    variables: Mapping[str, str],
) -> Iterator[tuple[Process, Connection]]:
    """Start a process and yield it with the pipe from it; it does not outlive the block."""
    method = "spawn" if variables else "forkserver"
    context: Any = multiprocessing.get_context(method)
    context.set_forkserver_preload(list(preload))
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, argument))
    with ours:
        with theirs, _environment({**_SETTLED, **variables}), _start_method(method):
            if method == "forkserver":
                _ensure_forkserver()
            process.start()
        try:
            yield process, ours
        finally:
            process.kill()
            process.join()


def _ensure_forkserver() -> None:
    """Start the process to be forked, which holds back what interrupts this one, as its forks do.

    A scheduler signals all processes at once. Were this one ended by that, nobody would know how
    long to wait for the runs that it forked.
    """
    resource_tracker.ensure_running()  # it lets the signals in
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTIONS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _record_if_missing(directory: Path, cause: Cause) -> dict[str, Any]:
    if (directory / "metrics.json").is_file():
        return files.read_json_object(directory / "metrics.json")
    return status.bury(directory, cause)


def _signal(process: Process, number: signal.Signals, patience_s: float) -> None:
    """Let the run write its record, and wait for that."""
    with suppress(ProcessLookupError):
        os.kill(process.pid or 0, number)
    process.join(patience_s)


def _kill_group(process: Process) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join(_TIME_TO_END_S)


@contextmanager
def _start_method(method: str) -> Iterator[None]:
    """Set the method that a new process takes over: it does not know that of joblib's workers."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set ``variables``, and put back what was there."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(pipe: Connection, assignment: Assignment) -> None:
    """Be the process of the run that is assigned."""

    def end(*_: object) -> NoReturn:
        raise _too_late(assignment.timeout_s)

    if assignment.timeout_s:
        signal.signal(_DEADLINE, end)  # it still has time to write its record
    sys.stdin = Path(assignment.stdin).open(encoding="utf-8")  # noqa: SIM115  as long as the process
    with _set_apart(assignment.directory):
        pipe.send(
            worker.carry_out(
                lambda: recorded_runner(assignment.directory),
                assignment.directory,
                Watch(phase=pipe.send),
                isolation="process",
            )
        )


@contextmanager
def _set_apart(directory: Path) -> Iterator[None]:
    """Make this process one that works for the run in ``directory`` alone.

    An interruption ends it, after the run has taken note.
    """
    try:
        gc.freeze()  # what was imported for all runs need not be gone through before each pass
        os.setsid()  # Ctrl-C is for the parent, and everything started here can be ended at once
        threading.Thread(target=_die_with_parent, daemon=True).start()
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, "ascii")
        with suppress(OSError), (directory / "run.log").open("a") as log:
            # What a library prints belongs to this run, and so does where a crash was.
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        faulthandler.enable(sys.stderr)
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=_LOG_FORMAT, force=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTIONS)
        yield
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None


def _interrupt(*_: object) -> NoReturn:
    """Raise KeyboardInterrupt once: a scheduler signals the parent, too, which passes it on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _describe(pipe: Connection, device: Device) -> None:
    with device.active():
        pipe.send(environment.describe(device))


_LOG_FORMAT = "[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"  # Hydra's


def recorded_runner(directory: Path) -> Runner:
    """Return the Runner of the run that ``.hydra`` in ``directory`` describes."""
    from omegaconf import OmegaConf

    from bert_infer.composition import runner_from

    hydra = directory / ".hydra"
    config = cast("DictConfig", OmegaConf.load(hydra / "config.yaml"))
    return runner_from(config, [str(o) for o in OmegaConf.load(hydra / "overrides.yaml")])


def _die_with_parent() -> None:
    """End this process and what it started as soon as the parent is no more."""
    parent = multiprocessing.parent_process()
    if parent:
        connection.wait([parent.sentinel])
        os.killpg(os.getpgrp(), signal.SIGKILL)
