"""What Hydra calls for a run, in the directory that it has made for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bert_infer.configuration.composition import runner_from
from bert_infer.configuration.overrides import as_written
from bert_infer.processes import worker

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bert_infer.processes.isolated import Isolated
    from bert_infer.processes.worker import Finished, Watch


@dataclass(frozen=True)
class Task:
    """Makes one run.

    Attributes:
        isolated: makes the run in a process of its own; None: it is made in this one.
        watch: is told how it goes on.
    """

    isolated: Isolated | None
    watch: Watch

    def __call__(self, config: DictConfig) -> Finished:
        """Make the run, and return how it ended."""
        from hydra.core.hydra_config import HydraConfig

        hydra = HydraConfig.get()
        directory, overrides = Path(hydra.runtime.output_dir), as_written(hydra.overrides.task)
        if self.isolated is None:
            return worker.carry_out(lambda: runner_from(config, overrides), directory, self.watch)
        variables = {**hydra.job.env_set, **runner_from(config).variables()}
        return self.isolated.run(directory, variables, self.watch)
