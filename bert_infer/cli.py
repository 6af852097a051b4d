"""The command line: from arguments to runs, messages and an exit code.

Exit codes: 0 all went well, 1 a run failed, 2 the request was refused, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bert_infer.commands import COMMANDS
from bert_infer.errors import BertInferError, RefusedError, RunDirectoryError
from bert_infer.options import CONF, help_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from omegaconf import DictConfig

_REFUSED, _FAILED, _INTERRUPTED = 2, 1, 130
_RESULTS = ("metrics.json", "multirun.yaml")


def entry_point() -> None:
    """Run the installed command ``bert-infer``."""
    sys.exit(main(sys.argv[1:], "bert-infer"))


def main(arguments: Sequence[str], program: str) -> int:
    """Do what ``arguments`` ask and return the exit code."""
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is None and set(arguments) & {"--help", "-h"}:
        sys.stdout.write(help_text(program) + "\n")
        return 0
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        return command(program, arguments[1:]) if command else _run(arguments)
    except BertInferError as error:
        if wants_traceback:
            raise
        sys.stderr.write(f"{error}\n")
        return _REFUSED if isinstance(error, RefusedError) else _FAILED
    except KeyboardInterrupt:
        if wants_traceback:
            raise
        sys.stderr.write("Interrupted.\n")
        return _INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    """Check every run that is asked for, then let Hydra call ``_execute`` for each."""
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException

    from bert_infer.overrides import check_overrides, expand_short_forms

    asked = get_args_parser().parse_args(list(arguments))
    overrides = expand_short_forms(asked.overrides)
    searchpath = [str(Path(asked.config_dir).resolve())] if asked.config_dir else []
    check_overrides(overrides, bundled_only=not searchpath)
    if not (asked.cfg or asked.info or asked.hydra_help or asked.shell_completion):
        _check(overrides, searchpath, is_sweep=asked.multirun)

    codes = [0]

    @hydra.main(version_base="1.3", config_path=str(CONF.resolve()), config_name="config")
    def job(config: DictConfig) -> None:
        codes.append(_execute(config))

    flags = [argument for argument in arguments if argument not in asked.overrides]
    with _arguments([*flags, *overrides]), _hydra_errors_raised():
        try:
            job()
        except HydraException as error:
            raise RefusedError(str(error).strip(), "Try --help.") from error
        except OSError as error:
            raise RunDirectoryError(
                f"The run directory cannot be written: {error}.",
                "Choose another: hydra.run.dir=DIR.",
            ) from error
    return max(codes)


def _check(overrides: list[str], searchpath: list[str], *, is_sweep: bool) -> None:
    """Compose and prepare every run, so that a mistake in any ends the command before the first.

    Raises:
        RefusedError: the first mistake.
    """
    from bert_infer.composition import config_from, runner_from
    from bert_infer.overrides import sweep

    runs = sweep(overrides) if is_sweep else [overrides]
    if not is_sweep and len(sweep(overrides)) > 1:
        raise RefusedError(
            f"{' '.join(overrides)} asks for several runs.",
            "Add --multirun (or -m) to make a sweep.",
        )
    configs = [config_from(run, searchpath, job=number) for number, run in enumerate(runs)]
    for config in configs:
        runner_from(config).prepare()
    if is_sweep:
        _check_free("sweep", configs[0], [config.hydra.sweep.subdir for config in configs])
    else:
        _check_free("run", configs[0], [""])


def _check_free(kind: str, config: DictConfig, folders: list[str]) -> None:
    """Refuse directories that hold results already, or that runs would share.

    Raises:
        RunDirectoryError: naming the key to change.
    """
    root = Path(config.hydra[kind].dir)
    if any((d / name).exists() for d in (root, *map(root.joinpath, folders)) for name in _RESULTS):
        raise RunDirectoryError(
            f"{root} holds a run or sweep already.", f"Choose another: hydra.{kind}.dir=DIR."
        )
    shared = next((folder for folder in folders if folders.count(folder) > 1), None)
    if shared is not None:
        raise RunDirectoryError(
            f"hydra.sweep.subdir gives several runs the same directory, {shared}.",
            "Leave it out, or let it contain ${hydra.job.num}.",
        )


def _execute(config: DictConfig) -> int:
    """Make one run in the directory that Hydra made for it; return its exit code."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from bert_infer import console, worker
    from bert_infer.composition import runner_from

    hydra_config = HydraConfig.get()
    directory = Path(hydra_config.runtime.output_dir)
    overrides = list(hydra_config.overrides.task)
    if hydra_config.mode is RunMode.MULTIRUN:
        console.show_heading(
            f"\nRun {hydra_config.job.num}: {' '.join(overrides) or 'as configured'}"
        )
    with console.progress_bar() as progress:
        metrics, last = worker.carry_out(runner_from(config), directory, overrides, progress)
    if last:
        console.show_outputs(last)
        console.show_metrics(metrics)
    error = metrics["error"]
    if error:
        sys.stderr.write("The run failed. {type}: {message}\n  {remedy}\n".format(**error))
    console.show_directory(directory)
    return _FAILED if error else 0


@contextmanager
def _arguments(arguments: list[str]) -> Iterator[None]:
    """Let Hydra, which reads sys.argv, see ``arguments``."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _hydra_errors_raised() -> Iterator[None]:
    """Make Hydra raise what goes wrong instead of printing it and leaving with exit code 1."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
