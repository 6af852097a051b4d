"""Claims on cards that serve one process at a time: a lock file each, which names its holder."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bert_infer.devices.hpu.host import Holder, command_of
from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def check(slots: Sequence[str], remedy: str) -> None:
    """Refuse if all ``slots`` are claimed.

    Raises:
        RefusedError: saying who has them.
    """
    file, holders = _claim(slots)
    if file is None:
        raise _all_taken(holders, remedy)
    file.close()


@contextmanager
def claimed(slots: Sequence[str], remedy: str) -> Iterator[None]:
    """Hold a claim on one of ``slots`` inside; the system releases it when the process ends.

    Raises:
        RefusedError: all are claimed; saying by whom.
    """
    file, holders = _claim(slots)
    if file is None:
        raise _all_taken(holders, remedy)
    with file:
        with suppress(OSError):  # a full disk, or another user's file: the lock holds all the same
            file.truncate(0)
            json.dump(Holder(os.getpid(), command_of(os.getpid()))._asdict(), file)
            file.flush()
        yield


def _all_taken(holders: list[Holder], remedy: str) -> RefusedError:
    return RefusedError(
        f"device=hpu is refused: a Gaudi card serves one process at a time, and "
        f"{' and '.join(map(str, holders)) or 'another'} has it.",
        remedy,
    )


def _claim(slots: Sequence[str]) -> tuple[IO[str] | None, list[Holder]]:
    """Return the locked file of a free slot, or None and who holds them all."""
    holders = []
    for slot in slots:
        file = _open(Path(tempfile.gettempdir()) / f"bert_infer-{slot}.lock")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            with file, suppress(ValueError, TypeError):
                file.seek(0)
                holders.append(Holder(**json.load(file)))
        else:
            return file, []
    return None, holders


def _open(path: Path) -> IO[str]:
    """Open for all users: locking takes no right to write; naming the holder, a courtesy, does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        return os.fdopen(descriptor, "r", encoding="utf-8")
    with suppress(PermissionError):  # whatever the umask
        os.fchmod(descriptor, 0o644)
    return os.fdopen(descriptor, "r+", encoding="utf-8")
