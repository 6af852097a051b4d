"""The command line: from arguments to runs, messages and an exit code.

Exit codes: 0 all went well, 1 a run failed, or what a command shows, or a sweep's report, could not
be written, 2 the request was refused, 130 interrupted.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bert_infer.cli.commands import COMMANDS
from bert_infer.cli.help import help_text, own_options
from bert_infer.configuration.schema import interpolation_refused
from bert_infer.errors import BertInferError, RefusedError, RunDirectoryError
from bert_infer.processes import ending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bert_infer.cli.request import Request
    from bert_infer.processes.isolated import Isolated

_REFUSED, _FAILED, _INTERRUPTED = 2, 1, 130


def entry_point() -> None:
    """Run the installed command ``bert-infer``."""
    enter("bert-infer")


def enter(program: str) -> NoReturn:
    """Do what this process was started for as ``program``, and end it."""
    code = main(sys.argv[1:], program)
    ending.leave_at_once(code)
    sys.exit(code)


def main(arguments: Sequence[str], program: str) -> int:
    """Do what ``arguments`` ask and return the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: output is discarded
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be valid text
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # if ignored, as by nohup, it stays so
            signal.signal(number, signal.default_int_handler)
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        return _do(arguments, program)
    except (BertInferError, ModuleNotFoundError, KeyboardInterrupt, OSError) as error:
        if wants_traceback:
            raise
        message, code = _end(error)
        sys.stderr.write(f"{message}\n")
        return code


def _do(arguments: Sequence[str], program: str) -> int:
    from bert_infer import console

    command = COMMANDS.get(arguments[0]) if arguments else None
    code = 0
    if command:
        code = command(program, arguments[1:])
    elif set(arguments) & {"--help", "-h"}:
        console.show_text(help_text(program, own_options(arguments)))
    elif "--version" in arguments:
        from bert_infer.machine import package_version

        console.show_text(f"bert_infer {package_version('bert-infer') or 'not installed'}")
    else:
        return _run(arguments, program)
    return code or (_FAILED if console.OUT.has_lost else 0)


def _end(error: BaseException) -> tuple[str, int]:
    """Return the message for ``error``, and the exit code."""
    match error:
        case KeyboardInterrupt():
            return "Interrupted.", _INTERRUPTED
        case ModuleNotFoundError():
            message = (
                f"This Python ({sys.executable}) has no package {error.name}.\n  Use that of the "
                "environment where bert_infer is installed, as .venv/bin/python, or install it "
                "here: pip install -e ."
            )
            return message, _REFUSED
        case RefusedError():
            return str(error), _REFUSED
        case OSError():
            return f"{error}.\n  Check the path, and what you may read and write.", _FAILED
        case _:
            return str(error), _FAILED


@interpolation_refused()
def _run(arguments: Sequence[str], program: str) -> int:
    """Check every run that is asked for, then make them; return the exit code."""
    from hydra.errors import HydraException

    from bert_infer import console  # noqa: F401  an interruption past this leaves a record
    from bert_infer.cli.request import Request
    from bert_infer.sweeps import sweep  # an interruption past this leaves a record

    request = Request.of(arguments)
    try:
        if request.only_shows:
            request.show()
            return 0
        if request.is_sweep:
            make = partial(sweep.carry_out, request.plan(), program)
        else:
            make = partial(_carry_out, request, *request.check())
        try:
            return make()
        except OSError as error:
            raise RunDirectoryError(
                f"The run directory cannot be written: {error}.",
                f"Choose another: hydra.{request.kind}.dir=DIR.",
            ) from error
    except HydraException as error:
        raise RefusedError(str(error).strip(), "Try --help.") from error


def _carry_out(request: Request, directory: Path, isolated: Isolated | None) -> int:
    """Make the single run that has been checked; return the exit code.

    Raises:
        KeyboardInterrupt: passed on, after the run has its record if it was begun.
    """
    from bert_infer import console
    from bert_infer.configuration.composition import hydra_at_hand, searching
    from bert_infer.configuration.overrides import quoted
    from bert_infer.files.directories import alone_in
    from bert_infer.processes.task import Task
    from bert_infer.processes.worker import Watch
    from bert_infer.running import status, terminal

    # Hydra would name the directory anew, by the time.
    settled = [quoted("hydra.run.dir", str(directory)), "hydra.mode=RUN"]
    overrides = [*request.overrides, *settled, *searching(request.searchpath)]
    with alone_in(directory), console.progress_bar("start") as bar, hydra_at_hand() as hydra:
        try:
            job = hydra.run("config", Task(isolated, Watch(bar.progress, bar.phase)), overrides)
        except KeyboardInterrupt:
            if (directory / "run.log").exists() and not (directory / "metrics.json").exists():
                status.bury(directory, status.INTERRUPTED)
            raise
    finished = job.return_value
    terminal.show(finished, directory.resolve())
    return _FAILED if finished.metrics["error"] else 0
