"""The directories that runs are written into: free, writable, used by one process at a time."""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bert_infer.errors import RunDirectoryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


_RESULTS = ("metrics.json", "multirun.yaml")
_PROBE_BYTES = 1 << 16


@contextmanager
def usable(key: str) -> Iterator[None]:
    """Refuse, for ``key``, a directory that the system cannot take, such as one of a long name.

    Raises:
        RunDirectoryError: naming the key to change.
    """
    try:
        yield
    except OSError as error:
        raise RunDirectoryError(
            f"{key} names a directory that cannot be used: {error}.", f"Choose another: {key}=DIR."
        ) from error


def check_free(root: Path, kind: str, folders: Sequence[str]) -> None:
    """Refuse a directory that holds results already, itself or in any of its ``folders``.

    Raises:
        RunDirectoryError: naming the key to change.
    """
    if any((d / name).exists() for d in (root, *map(root.joinpath, folders)) for name in _RESULTS):
        raise RunDirectoryError(
            f"{root} holds a run or sweep already.", f"Choose another: hydra.{kind}.dir=DIR."
        )


def check_apart(folders: Sequence[str]) -> None:
    """Refuse directories that runs would share, and those that do not lie side by side.

    Args:
        folders: the runs', in the sweep's directory.

    Raises:
        RunDirectoryError: naming the key to change.
    """
    if len(set(folders)) < len(folders):
        raise RunDirectoryError(
            "hydra.sweep.subdir gives several runs the same directory.",
            "Leave it out, or let it contain ${hydra.job.num}.",
        )
    if deep := [folder for folder in folders if folder == ".." or Path(folder).name != folder]:
        raise RunDirectoryError(
            f"hydra.sweep.subdir={deep[0]} is no name of a directory in the sweep's own, where "
            "report and resume look for runs.",
            "Leave it out, or give it a name without a slash.",
        )


def check_writable(root: Path, remedy: str) -> None:
    """Write a little where the run's directory will be, and remove it again.

    Args:
        root: the directory, which need not be there yet.
        remedy: what to do where it cannot be written.

    Raises:
        RunDirectoryError: it cannot be written, or the disk is full.
    """
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * _PROBE_BYTES)
    except OSError as error:
        raise RunDirectoryError(
            f"The run directory cannot be written: {there}: {error.strerror}.", remedy
        ) from None


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Make ``directory`` if need be, and keep other single runs out of it.

    The directory itself is locked, so that nothing else lies in it for that. The system releases it
    when the process ends, however it ends.

    Raises:
        RunDirectoryError: another run is being made there, or has just been.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunDirectoryError(
                f"{directory} is being written by another run.",
                "Wait until it is done, or choose another: hydra.run.dir=DIR.",
            ) from None
        except OSError:
            pass  # NFS, for one, locks no directories
        check_free(directory, "run", ())
        yield
    finally:
        os.close(descriptor)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold ``directory``'s lock; the system releases it when the process ends, however it ends.

    Raises:
        RunDirectoryError: another process holds it; the message has its id.
    """
    with (directory / ".lock").open("a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunDirectoryError(
                f"{directory} is being written by process {file.read().strip() or 'unknown'}.",
                "Wait until it is done, or end it.",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
        file.truncate(0)
