"""A sweep: its runs are made one by one, even if some fail; missing ones can be made later."""

from __future__ import annotations

import re
import shlex
import shutil
from collections import Counter
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

from bert_infer import console, files
from bert_infer.configuration.composition import hydra_at_hand, searching
from bert_infer.configuration.overrides import assigned, key_of, quoted
from bert_infer.configuration.settings import IfChanged, Isolation
from bert_infer.errors import RefusedError
from bert_infer.files.directories import check_free, locked
from bert_infer.measuring.environment import different_leaves, lasting
from bert_infer.processes.isolated import Isolated, environment_at
from bert_infer.processes.task import Task
from bert_infer.processes.worker import Watch
from bert_infer.running import status
from bert_infer.sweeps.board import Board, drawn, followed
from bert_infer.sweeps.plan import missing, ordered

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from hydra.core.utils import JobReturn
    from hydra.plugins.launcher import Launcher

    from bert_infer.sweeps.plan import Plan, Planned

_ENDED_WITH_IT = status.INTERRUPTED._replace(message="Its sweep ended.", remedy="Resume the sweep.")


def carry_out(plan: Plan, program: str) -> int:
    """Make the runs that ``plan`` asks for and its directory lacks; return the exit code.

    Args:
        plan: what is asked for.
        program: as it was called, for the command that makes what is left.

    Raises:
        RefusedError: the directory is another process', or holds runs that cannot be mixed, or has
            been another sweep's since it was checked.
        KeyboardInterrupt: passed on, after every run that was begun has its record.
    """
    settings, directory = plan.settings, plan.directory
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        if not settings.resume:
            check_free(directory, "sweep", ())
        bury_the_dead(directory)
        done = _done(plan) if settings.resume else Counter()
        wanted = ordered(plan.runs, settings.repeats, settings.order, plan.seed)
        left = missing(wanted, done)
        if len(left) < len(wanted):
            console.show_text(f"{len(wanted) - len(left)} of {len(wanted)} runs are there already.")
        begun = len(_runs(directory))
        try:
            failed = bool(left) and _launch(plan, left)
        finally:
            is_summed_up = _sum_up(plan)
            if not_made := len(left) - (len(_runs(directory)) - begun):
                console.show_text(
                    f"Not started: {not_made} of {len(left)} runs. To make them, and those that "
                    f"failed:\n  {command_to_complete(plan, program)}"
                )
    return int(failed or not is_summed_up)


def command_to_complete(plan: Plan, program: str) -> str:
    """Return the command of ``program`` that makes what ``plan``'s directory lacks."""
    replaced = {"resume", "fail_fast", "hydra.sweep.dir"}
    kept = [o for o in plan.overrides if key_of(o) not in replaced]
    # The last: those that the sweep has recorded come first, and with resume anyway.
    ours = [f"--config-dir={plan.searchpath[-1]}"] if plan.searchpath else []
    own = [*kept, assigned("resume", str(plan.directory)), "fail_fast=false"]
    return f"{program} {shlex.join(['--multirun', *ours, *own])}"


def _sum_up(plan: Plan) -> bool:
    """Print the report of the sweep so far and write it; tell whether it could be written."""
    from bert_infer import report

    is_written = False
    try:
        bury_the_dead(plan.directory)
        is_written = report.present(report.preferring(plan.directory, plan.baseline))
    except (OSError, RefusedError) as error:  # no run at all
        console.show_text(str(error))
    console.show_directory(plan.directory.resolve())
    return is_written


def bury_the_dead(directory: Path) -> None:
    """Write a record for each run that has none, unless another process is still making it.

    Of a run that never began, what Hydra could write is removed: a full disk or a kill kept it from
    naming the run.
    """
    for path in _runs(directory):
        if (path / "metrics.json").exists() or status.writer(path) is not None:
            continue
        written_last = path / ".hydra" / "overrides.yaml"
        if written_last.exists() and written_last.stat().st_size > 0:
            status.bury(path, _ENDED_WITH_IT)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _runs(directory: Path) -> list[Path]:
    """Return the runs that were begun, whatever became of them."""
    return [hydra.parent for hydra in directory.glob("*/.hydra")]


def _numbers(directory: Path) -> Iterator[int]:
    """Yield all numbers in names of runs: with a higher one, no name is there already."""
    for path in _runs(directory):
        yield from map(int, re.findall(r"\d+", path.name))


def _done(plan: Plan) -> Counter[str]:
    """Count the runs that need not be made again, by their content's hash.

    Raises:
        RefusedError: other versions, another machine or another input made some, and
            ``if_changed`` says refuse; or one is still being made.
    """
    now = cache(lambda: [environment_at(place, plan.preload) for place in plan.places])
    keep = plan.settings.if_changed is IfChanged.keep
    alike: Counter[str] = Counter()
    otherwise: list[tuple[str, Path, list[str]]] = []
    for path, run, tokens in _recorded(plan):
        if tokens != run.content.input:
            lines = [f"the input's tokens, by SHA-256: {tokens} | {run.content.input}"]
        else:
            lines = [] if keep else _other_environment(path, now())
        if lines:
            otherwise.append((run.content_hash(), path, lines))
        else:
            alike[run.content_hash()] += 1
    stale = [one for one in otherwise if alike[one[0]] < plan.settings.repeats]
    if keep:
        return alike + Counter(content for content, _, _ in stale)
    if stale and plan.settings.if_changed is IfChanged.refuse:
        _, path, lines = stale[0]
        raise RefusedError(
            f"{len(stale)} of the {alike.total() + len(otherwise)} finished runs in "
            f"{plan.directory} were made otherwise. Run {path.name} had | now is:\n  "
            + "\n  ".join(lines),
            "Choose if_changed=rerun or if_changed=keep.",
        )
    return alike


def _recorded(plan: Plan) -> list[tuple[Path, Planned, str]]:
    """Return the runs that ended well and are asked for, those of another input too.

    Each comes with what asks for it, and with the hash of its own input's tokens.

    Raises:
        RefusedError: one is still being made.
    """
    asked = cache(lambda tokens: {run.content_hash(tokens): run for run in plan.runs})
    found = []
    for path in _runs(plan.directory):
        if not (path / "metrics.json").exists():
            raise RefusedError(
                f"Process {status.writer(path)} is still making run {path.name} of "
                f"{plan.directory}.",
                "Wait until it is done, or end it.",
            )
        try:
            metrics = files.read_json_object(path / "metrics.json")
        except RefusedError as error:
            console.show_text(f"{error.message} Run {path.name} does not count as made.")
            continue
        tokens = str(files.at(metrics, "provenance.input.sha256"))
        run = asked(tokens).get(str(files.at(metrics, "run.content_hash")))
        if run and metrics.get("status") == "ok":
            found.append((path, run, tokens))
    return found


def _other_environment(path: Path, now: Sequence[dict[str, Any]]) -> list[str]:
    """Return what differs between the environment of a run and the nearest of the present ones."""
    try:
        then = lasting(files.read_json_object(path / "environment.json"))
    except RefusedError as error:
        return [error.message]
    return min((different_leaves(then, one) for one in now), key=len)


def _launch(plan: Plan, left: Sequence[Planned]) -> bool:
    """Make the runs ``left`` with Hydra's launcher; tell whether any failed."""
    from hydra._internal.callbacks import Callbacks
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode
    from omegaconf import OmegaConf

    directory = plan.directory
    where = quoted("hydra.sweep.dir", str(directory))
    own = [o for o in plan.overrides if not key_of(o).startswith("hydra")]
    of_hydra = [o for o in plan.overrides if o not in own and key_of(o) != "hydra.sweep.dir"]
    inline = plan.settings.isolation is Isolation.inline
    isolated = None if inline else Isolated(plan.preload, plan.settings.timeout_s)
    first = 1 + max(_numbers(directory), default=-1)
    board = Board([run.overrides for run in left])
    with hydra_at_hand() as hydra:
        # Of the whole sweep, Hydra would leave out the groups that are swept over, and then miss
        # their fields.
        one = [*left[0].overrides, *of_hydra, where, *searching(plan.searchpath)]
        config = hydra.compose_config("config", one, RunMode.MULTIRUN)
        OmegaConf.set_readonly(config.hydra, value=False)
        config.hydra.overrides.task = own
        if not (directory / "multirun.yaml").exists():
            with files.whole(directory / "multirun.yaml") as beside:
                OmegaConf.save(config, beside)

        def launcher(watch: Watch) -> Launcher:
            context = HydraContext(hydra.config_loader, Callbacks(config))
            return Plugins.instance().instantiate_launcher(context, Task(isolated, watch), config)

        chosen = launcher(Watch(phase=board.phase))
        if isinstance(chosen, BasicLauncher):
            # A thread that draws would take time from forwards that this process measures.
            with nullcontext() if inline else drawn(board):
                return _one_by_one(chosen, left, first, board, fail_fast=plan.settings.fail_fast)
        with followed(board, directory):
            jobs = launcher(Watch()).launch([list(run.overrides) for run in left], first)
        return any(_metrics(job)["error"] is not None for job in jobs)


def _one_by_one(
    launcher: Launcher, left: Sequence[Planned], first: int, board: Board, *, fail_fast: bool
) -> bool:
    """Launch one run after the other; tell whether any failed."""
    failed = False
    for number, run in enumerate(left, first):
        board.begin(run.overrides)
        try:
            [job] = launcher.launch([list(run.overrides)], number)
            metrics = _metrics(job)
        except OSError as error:  # the run's directory cannot be written
            board.lost(error)
            failed = True
        else:
            failed |= metrics["error"] is not None
            board.end(metrics)
        if failed and fail_fast:
            break
    return failed


def _metrics(job: JobReturn) -> dict[str, Any]:
    """Return the record of a run; whatever Hydra kept instead is raised."""
    metrics: dict[str, Any] = job.return_value.metrics
    return metrics
