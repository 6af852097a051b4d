"""A config-driven experiment runner for BERT inference.

from bert_infer import compose
result = compose(["dtype=bf16", "batch=12"]).run(["Good morning BERT!"])

What is asked for:    cli, configuration, conf/ beside this package
The way of the data:  inputs, tokens, batching, devices, models, dtypes, operators, engines, graphs,
                      outputs, metrics, files, report
A run:                runner, running, measuring, caveats, records, machine, cgroup, memory
Where it takes place: processes
Several runs:         sweeps, duel
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bert_infer.configuration.composition import compose as compose
    from bert_infer.runner import Result as Result
    from bert_infer.runner import Runner as Runner

__all__ = ["Result", "Runner", "compose"]


def __getattr__(name: str) -> object:
    """Import the public names on first use, so that ``--help`` stays fast."""
    if name == "compose":
        from bert_infer.configuration.composition import compose

        return compose
    if name in {"Result", "Runner"}:
        from bert_infer import runner

        return getattr(runner, name)
    raise AttributeError(name)
