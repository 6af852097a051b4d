"""``rerun``: an earlier run, made once more from what its directory says."""

from __future__ import annotations

import shutil
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

from bert_infer import files
from bert_infer.configuration.schema import interpolation_refused
from bert_infer.errors import RefusedError
from bert_infer.files.directories import check_writable
from bert_infer.processes.isolated import GIVE_AGAIN, Isolated, recorded_config, recorded_runner

if TYPE_CHECKING:
    from bert_infer.processes.worker import Finished, Watch


@interpolation_refused()
def rerun(before: Path, directory: Path, watch: Watch) -> Finished:
    """Make the run of directory ``before`` again, in a process of its own.

    Paths in its configuration mean what they meant then.

    Args:
        before: a run's directory.
        directory: gets the new run; it is made.
        watch: is told how it goes on.

    Raises:
        RefusedError: it is no run's directory, or its model, weights or input have changed since.
    """
    from bert_infer.configuration.composition import sweep_settings

    for name in ("config.yaml", "hydra.yaml", "overrides.yaml"):
        if not (before / ".hydra" / name).is_file():
            raise RefusedError(
                f"{before} is no run directory: there is no .hydra/{name} in it.",
                "Name a directory that a run printed.",
            )
    before, directory = before.resolve(), directory.absolute()
    path = before / ".hydra" / "hydra.yaml"
    hydra = files.read_yaml(path, GIVE_AGAIN, ("hydra.runtime.cwd", "hydra.job.env_set")).hydra
    where = Path(hydra.runtime.cwd)
    if not where.is_dir():
        raise RefusedError(f"The run was made in {where}, which is gone.", "Make it again there.")
    with chdir(where):
        runner = recorded_runner(before)
        runner.input.check_is_repeatable()
        found = runner.prepare().content().hash
        if (before / "metrics.json").is_file():
            recorded = files.read_json_object(before / "metrics.json")
            if files.at(recorded, "run.content_hash") not in {None, found}:
                raise RefusedError(
                    f"The model, the weights or the input of {before} have changed since, or "
                    "another version made it.",
                    GIVE_AGAIN,
                )
        check_writable(directory, "Start it in a directory that you may write.")
        shutil.copytree(before / ".hydra", directory / ".hydra")
        timeout_s = sweep_settings(recorded_config(before)).timeout_s
        isolated = Isolated(tuple(runner.preload), timeout_s)
        return isolated.run(directory, {**hydra.job.env_set, **runner.variables()}, watch)
