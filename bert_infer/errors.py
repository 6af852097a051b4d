"""Every error this package raises on purpose.

    BertInferError              something ended a run; carries a message and a remedy
    ├── UnrecordableError       a forward cannot be recorded as a graph
    ├── OutOfMemoryError        a batch does not fit
    ├── ProcessError            no separate process can be started for a run
    ├── TimeLimitError          a run took longer than timeout_s
    └── RefusedError            the request cannot be met, as a rule before anything is computed
        ├── OptionError         a key has a value it cannot take
        ├── InputError          the input's content cannot be read
        ├── WeightsError        the weights do not exist or do not fit the model
        ├── NoBaselineError     no run has the options that a report's baseline names
        └── RunDirectoryError   the run's files cannot be written

A ``RefusedError`` ends the command with exit code 2 and its message, any other error in a run with
exit code 1 and a record of it.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


MAKE_ROOM = "Make room on the disk, or choose another: hydra.run.dir=DIR or hydra.sweep.dir=DIR."


class BertInferError(Exception):
    """``message`` says what went wrong, ``remedy`` what to do about it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class UnrecordableError(BertInferError):
    """A forward cannot be recorded as a graph."""


class OutOfMemoryError(BertInferError):
    """A batch does not fit, in the device's memory or the host's."""


class ProcessError(BertInferError):
    """No separate process can be started for a run."""


class TimeLimitError(BertInferError):
    """A run took longer than ``timeout_s``. It is no OSError, as those of files may be met."""


class RefusedError(BertInferError):
    """The request cannot be met; as a rule nothing was computed or written."""


class OptionError(RefusedError):
    """``key`` was given a value that it does not take."""

    def __init__(self, key: str, given: object, allowed: str, remedy: str = "") -> None:
        super().__init__(f"{key}={given} is refused: {key} takes {allowed}.", remedy)
        self.key = key
        self.given = given
        self.allowed = allowed

    def within(self, group: str) -> OptionError:
        """Return the same error with its key written as ``group.key``."""
        return OptionError(f"{group}.{self.key}", self.given, self.allowed, self.remedy)


class InputError(RefusedError):
    """The input's content cannot be read."""


class WeightsError(RefusedError):
    """The weights do not exist or do not fit the model."""


class NoBaselineError(RefusedError):
    """No run has the options that a report's baseline names."""


class RunDirectoryError(RefusedError):
    """The run's files cannot be written."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """Return a "Did you mean" sentence for the closest of ``allowed``, or nothing.

    Of several close ones, one that begins as ``given`` does is meant: batch by batch_size.
    """
    close = get_close_matches(given, list(allowed), n=3, cutoff=0.5)
    begins = [name for name in close if given.startswith(name) or name.startswith(given)]
    return did_you_mean([*begins, *close])


def did_you_mean(names: Sequence[str]) -> str:
    """Return the sentence that asks for the first of ``names``; nothing for none."""
    return f"Did you mean {names[0]}?" if names else ""
