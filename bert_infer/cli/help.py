"""What ``--help`` prints."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from bert_infer.configuration.options import groups, options, searchpath, values

if TYPE_CHECKING:
    from collections.abc import Sequence


def help_text(program: str, own: Sequence[str] = ()) -> str:
    """Return what ``--help`` prints.

    Args:
        program: as it was called.
        own: directories with further options.
    """
    lines = [
        "Run BERT inference, measure it, and keep a record of the run.",
        "",
        f"  {program}                                    BERT-Large, fp32, batch 1",
        f"  {program} dtype=bf16 batch=12                choose",
        f"  {program} --multirun dtype=fp32,bf16 batch=1,12   every combination",
        f'  {program} text="Good morning BERT!"          short for input.text=...',
        f"  {program} input=lines input.path=texts.txt   your own texts",
        f"  {program} report DIRECTORY                   what a sweep showed: table, plots, page",
        f"  {program} ls batch=12 status=ok              find runs and sweeps again",
        f"  {program} compare DIRECTORY ...              what finished runs or sweeps differ in",
        f"  {program} rerun DIRECTORY                    a run once more, from its directory",
        f"  {program} --multirun resume=DIRECTORY        what a sweep lacks",
        f'  {program} duel "dtype=bf16" "dtype=fp32"     two configurations, measured in turn',
        "",
        "Values, as KEY=VALUE:",
        *(f"  {line}" for key, value in values().items() for line in _value_lines(key, *value)),
    ]
    for group, default in groups().items():
        none = {"null": "none of these"} if default == "null" else {}
        lines += [
            "",
            f"{group}=",
            *(f"  {name:<20} {line}" for name, line in (none | options(group, own)).items()),
        ]
    lines += [
        "",
        "The first option of a group is its default. An option's own fields, say those of",
        f"batching=by_length: {program} batching=by_length --cfg job --package batching",
        "Hydra's own flags: --hydra-help",
    ]
    return "\n".join(lines)


def own_options(arguments: Sequence[str]) -> list[str]:
    """Return the directory of the user's own options among ``arguments``.

    Raises:
        RefusedError: there is no such directory.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", nargs="?")
    return searchpath(parser.parse_known_args(arguments)[0].config_dir)


def _value_lines(key: str, default: str, line: str) -> list[str]:
    """Return a value's line of help, and one for each key inside it."""
    if not default.startswith("{"):
        return [f"{f'{key}={default}':<24} {line}"]
    inside = re.findall(r"(\w+): (\w+)", default)
    return [
        f"{f'{key}.{name}={value}':<24} {part.strip()}"
        for (name, value), part in zip(inside, line.split(";"), strict=True)
    ]
