"""The ``input`` group: where the texts come from. One source a file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from bert_infer.errors import OptionError
from bert_infer.files import why_unreadable

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from bert_infer.records import Tokens
    from bert_infer.tokens import Tokenizer


class Input(ABC):
    """A source of sequences."""

    @abstractmethod
    def tokens(self, tokenizer: Tokenizer) -> Tokens:
        """Return every sequence of one pass.

        Raises:
            InputError: the source's content cannot be read.
        """

    def check(self) -> None:
        """Refuse a missing source before anything is loaded.

        Raises:
            OptionError: naming the key to change.
        """

    def check_is_repeatable(self) -> None:
        """Refuse a source that can be read only once: another process would find nothing.

        Raises:
            OptionError: naming the key to change.
        """

    def version(self) -> Hashable:
        """Return a value that changes with the content, even if the configuration does not."""
        return None

    def fill(self, tokens: Tokens, batch: int) -> Tokens:
        """Return the sequences to run; only a single prompt is repeated to fill a batch."""
        del batch
        return tokens


class TextInput(Input):
    """A source of strings."""

    @abstractmethod
    def texts(self) -> Iterator[str]:
        """Yield every text, empty ones included."""

    def tokens(self, tokenizer: Tokenizer) -> Tokens:
        """Tokenise the texts as they are read."""
        return tokenizer.encode(self.texts())


class FileInput(TextInput):
    """A source that is a file on this machine."""

    path: str

    def check(self) -> None:
        """Refuse a missing file, a directory, and a file that may not be read."""
        if reason := why_unreadable(Path(self.path)):
            raise OptionError(
                "input.path",
                self.path,
                f"an existing file that may be read; {reason}",
                "Check the spelling; a pipe is read by input=lines input.path=-.",
            )

    def version(self) -> Hashable:
        """Return the file's modification time and size."""
        status = Path(self.path).stat()
        return status.st_mtime_ns, status.st_size


def is_unicode(string: str) -> bool:
    """Tell whether ``string`` can be written as UTF-8: lone surrogates cannot."""
    try:
        string.encode()
    except UnicodeEncodeError:
        return False
    return True
