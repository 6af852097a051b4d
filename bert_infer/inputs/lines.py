"""A text file or standard input, one text a line."""

from __future__ import annotations

import atexit
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bert_infer.errors import InputError, OptionError
from bert_infer.inputs import FileInput

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

_STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Lines(FileInput):
    """A UTF-8 text file, one text a line; ``-`` is standard input."""

    path: str

    def check(self) -> None:
        """Refuse a path that is not a readable file."""
        if self.path != _STANDARD_INPUT:
            super().check()

    def check_is_repeatable(self) -> None:
        """Refuse standard input."""
        if self.path == _STANDARD_INPUT:
            raise OptionError(
                "input.path",
                self.path,
                "a file here: several processes read the input, or it is read again later",
                "Write the texts to a file first.",
            )

    def version(self) -> Hashable:
        """Return the file's modification time and size; None for standard input, read only once."""
        return None if self.path == _STANDARD_INPUT else super().version()

    def texts(self) -> Iterator[str]:
        """Yield the lines without their ends."""
        if self.path == _STANDARD_INPUT:
            yield from decoded(_standard_input(), "standard input")
            return
        with Path(self.path).open("rb") as file:
            yield from decoded(file, self.path)


@cache
def _standard_input() -> tuple[bytes, ...]:
    """Read standard input once for all the runs of a sweep.

    Raises:
        InputError: it is closed.
    """
    if sys.stdin is None:
        raise InputError("Standard input is closed.", "Pipe texts into the command.")
    return tuple(sys.stdin.buffer)


@cache
def spooled() -> IO[bytes] | None:
    """Return a file with what this process has read from standard input; None if it has not.

    For the processes that it starts. The file is removed when this process ends.
    """
    if not _standard_input.cache_info().currsize:
        return None
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115  open as long as the process
    file.writelines(_standard_input())
    file.flush()
    atexit.register(file.close)
    return file


def decoded(lines: Iterable[bytes], name: str, *, keep_ends: bool = False) -> Iterator[str]:
    """Yield each of ``lines`` as a text, without a byte-order mark.

    Args:
        lines: bytes with their line ends.
        name: what they are read from.
        keep_ends: leave the line ends, for a format in which they may belong to a text.

    Raises:
        InputError: naming the line of ``name`` that is not UTF-8; or its lines end as on old Macs.
    """
    for position, line in enumerate(lines):
        try:
            text = line.decode("utf-8" if position else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {position + 1}: not UTF-8 ({error.reason} at byte {error.start}).",
                "Convert the file first: iconv -f ENCODING -t UTF-8.",
            ) from None
        bare = text.rstrip("\r\n")
        if position == 0 and "\r" in bare and not text.endswith("\n"):  # so it is the only line
            raise InputError(
                f"{name} ends its lines as old Macs did, with a carriage return alone.",
                "Convert the file first: tr '\\r' '\\n' < FILE.",
            )
        yield text if keep_ends else bare
