"""What can be chosen, read from ``conf/``: the groups, their options, a line about each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

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


def options(group: str, searchpath: Sequence[str] = ()) -> dict[str, str]:
    """Return every option of ``group`` with its line of help, the default first.

    Args:
        group: its name.
        searchpath: further directories with options, which come last.
    """
    default = groups()[group]
    found = [
        sorted(directory.glob("*.yaml"), key=lambda path: (path.stem != default, path.stem))
        for directory in (CONF / group, *(Path(own, group) for own in searchpath))
    ]
    return {path.stem: _summary(path) for paths in found for path in paths}


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


def _summary(path: Path) -> str:
    comments = (
        line.removeprefix("# ")
        for line in path.read_text("utf-8").splitlines()
        if line.startswith("# ") and not line.startswith("# @")
    )
    return next(comments, "")
