"""What can be chosen, read from ``conf/``: the groups, their options, a line about each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable

CONF = next(
    directory
    # In a wheel conf/ lies in the package, in a checkout beside it.
    for directory in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf")
    if directory.is_dir()
)

_CONFIG = (CONF / "config.yaml").read_text("utf-8")


def groups() -> dict[str, str]:
    """Return every group with its default, in the order in which data passes through them."""
    return dict(re.findall(r"^  - (\w+): (\S+)", _CONFIG, re.MULTILINE))


def options(group: str) -> dict[str, str]:
    """Return every option of ``group`` with its line of help, the default first."""
    default = groups()[group]
    paths = sorted(
        (CONF / group).glob("*.yaml"), key=lambda path: (path.stem != default, path.stem)
    )
    return {path.stem: _summary(path) for path in paths}


def searchpath(config_dir: str | Path | None) -> list[str]:
    """Return the absolute path of a directory with options of the user's own; none for None.

    Raises:
        RefusedError: there is no such directory.
    """
    if config_dir is None:
        return []
    if not Path(config_dir).is_dir():
        raise RefusedError(
            f"--config-dir={config_dir} is refused: there is no such directory.",
            "Name one that holds options of your own, as in DIR/batching/mine.yaml.",
        )
    return [str(Path(config_dir).resolve())]


def options_below(directories: Iterable[str], group: str) -> list[str]:
    """Return the options of ``group`` in directories of the user's own."""
    return [
        path.relative_to(Path(directory, group)).with_suffix("").as_posix()
        for directory in directories
        for path in sorted(Path(directory, group).rglob("*.yaml"))
    ]


def options_about(group: str, word: str) -> list[str]:
    """Return the options of ``group`` that have ``word`` in their name, then those in their line.

    So gpu finds cuda, whose line is "an NVIDIA GPU", and float32 finds fp32.
    """
    lines = options(group)
    is_there = re.compile(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", re.IGNORECASE)
    in_names = [name for name in lines if is_there.search(name)]
    return in_names + [name for name, line in lines.items() if is_there.search(line)]


def options_with(group: str, field: str, directories: Iterable[str] = ()) -> list[str]:
    """Return the options of ``group`` that have ``field``, also those in ``directories``."""
    has = re.compile(rf"^{re.escape(field)}:", re.MULTILINE)
    return [
        option
        for directory in (str(CONF), *directories)
        for option in options_below([directory], group)
        if has.search(Path(directory, group, f"{option}.yaml").read_text("utf-8"))
    ]


def values() -> dict[str, tuple[str, str]]:
    """Return every top-level value with its default and its line of help."""
    found = re.findall(r"^(\w+): +(\S+|{.*}) +# (.*)$", _CONFIG, re.MULTILINE)
    return {key: (default, line) for key, default, line in found}


def help_text(program: str) -> str:
    """Return what ``--help`` prints."""
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
    for group in groups():
        lines += [
            "",
            f"{group}=",
            *(f"  {name:<20} {line}" for name, line in options(group).items()),
        ]
    lines += [
        "",
        "The first option of a group is its default. An option's own fields, say those of",
        f"batching=by_length: {program} batching=by_length --cfg job --package batching",
        "Hydra's own flags: --hydra-help",
    ]
    return "\n".join(lines)


def _value_lines(key: str, default: str, line: str) -> list[str]:
    """Return a value's line of help, and one for each key inside it."""
    if not default.startswith("{"):
        return [f"{f'{key}={default}':<24} {line}"]
    inside = re.findall(r"(\w+): (\w+)", default)
    return [
        f"{f'{key}.{name}={value}':<24} {part.strip()}"
        for (name, value), part in zip(inside, line.split(";"), strict=True)
    ]


def _summary(path: Path) -> str:
    comments = (
        line.removeprefix("# ")
        for line in path.read_text("utf-8").splitlines()
        if line.startswith("# ") and not line.startswith("# @")
    )
    return next(comments, "")
