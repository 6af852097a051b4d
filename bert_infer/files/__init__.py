"""A run's directory: files that are there whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import re
from contextlib import contextmanager
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from bert_infer.records import Forward


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to; it replaces ``path`` once it is complete."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def unfinished(directory: Path) -> list[Path]:
    """Return the temporary files that ``whole``, or safetensors in it, left in a killed process."""
    named = re.compile(r"\..+\.\d+|\.tmp\w{6}")
    return [path for path in directory.iterdir() if named.fullmatch(path.name) and path.is_file()]


def why_unreadable(path: Path) -> str | None:
    """Return why ``path`` is not a readable file, to end a sentence with; None if it is."""
    try:
        if path.is_dir():
            return "this is a directory"
        if not path.exists():
            return "nothing is there"
        if not path.is_file():
            return "this is a pipe or device"
        path.open("rb").close()
    except OSError as error:  # a name that is too long, most of all
        return f"{error.strerror}".lower()
    return None


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that ``path`` holds.

    Raises:
        RefusedError: it holds something else, or cannot be read.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RefusedError(f"{path} cannot be read as JSON: {error}.", "Replace it.") from None
    if not isinstance(content, dict):
        raise RefusedError(f"{path} holds no JSON object.", "Replace it.")
    return content


def at(content: Mapping[str, Any], key: str) -> Any:  # noqa: ANN401  whatever JSON holds
    """Return what stands at a dotted key; None where nothing does."""
    value: Any = content
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def read_yaml(path: Path, remedy: str, keys: Iterable[str] = ()) -> Any:  # noqa: ANN401  whatever YAML holds
    """Return the file's content, read by omegaconf.

    Args:
        path: YAML that Hydra wrote.
        remedy: what to do where it is damaged.
        keys: dotted keys that must be in it.

    Raises:
        RefusedError: it is damaged.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]  # of one name

    try:
        content = OmegaConf.load(path)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        said = str(error).partition("\n")[0]
        raise RefusedError(f"{path} is damaged: {said}.", remedy) from None
    has_keys = isinstance(content, DictConfig)
    if lacks := [k for k in keys if not has_keys or OmegaConf.select(content, k) is None]:
        raise RefusedError(f"{path} is damaged: it lacks {', '.join(lacks)}.", remedy)
    return content


def as_json(content: Any) -> str:  # noqa: ANN401  whatever JSON holds
    """Return ``content`` as JSON; NumPy's numbers, which components may hold, become Python's.

    Raises:
        TypeError: it has something that JSON lacks.
        ValueError: it has such a number.
    """
    return json.dumps(content, indent=2, allow_nan=False, default=_number)


def _number(value: Any) -> Any:  # noqa: ANN401  see above
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} is nothing that JSON has: {value!r}")


def write_json(path: Path, content: Any) -> None:  # noqa: ANN401  whatever JSON holds
    """Write ``content``.

    Raises:
        TypeError, ValueError: as ``as_json``.
    """
    with whole(path) as beside:
        beside.write_text(as_json(content) + "\n", "utf-8")


def write_forwards(path: Path, forwards: Iterable[Forward]) -> None:
    """Write one row a measured forward; ``start_s`` counts from the first one's start.

    ``wall_ms`` is what throughput counts: the sum of the four before it, or less where a device
    overlaps them (see ``Forward``). ``duration_ms`` is the synchronised forward alone.
    """
    forwards = list(forwards)
    columns = _columns(forwards[0].start_s if forwards else 0.0)
    with whole(path) as beside, beside.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        # Maps call the getters faster than a comprehension by row would.
        rows.writerows(zip(*(map(cell, forwards) for cell in columns.values()), strict=True))


def _columns(began_s: float) -> dict[str, Callable[[Forward], float]]:
    """Return what forwards.csv says of a forward, by column."""
    return {
        "pass": attrgetter("pass_index"),
        "batch_index": attrgetter("batch_index"),
        "sequences": attrgetter("sequences"),
        "real_tokens": attrgetter("real_tokens"),
        "padded_tokens": attrgetter("padded_tokens"),
        "start_s": lambda forward: forward.start_s - began_s,
        "lay_out_ms": lambda forward: forward.lay_out_s * 1e3,
        "copy_in_ms": lambda forward: forward.copy_in_s * 1e3,
        "duration_ms": lambda forward: forward.duration_s * 1e3,
        "copy_out_ms": lambda forward: forward.copy_out_s * 1e3,
        "wall_ms": lambda forward: forward.wall_s * 1e3,
    }
