"""Texts given on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bert_infer.errors import OptionError
from bert_infer.inputs import TextInput, is_unicode
from bert_infer.machine import memory_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bert_infer.records import Tokens

_BYTES_A_SEQUENCE = 64  # its offset, length and place in the order, some of them twice


@dataclass(frozen=True)
class Prompt(TextInput):
    """A text, or a list of texts, given as they are."""

    text: Any  # omegaconf has no union of a string and a list

    def __post_init__(self) -> None:
        texts = (self.text,) if isinstance(self.text, str) else self.text
        if not isinstance(texts, Sequence) or not all(
            isinstance(t, str) and is_unicode(t) for t in texts
        ):
            raise OptionError("text", repr(self.text), "a string or a list of strings, in UTF-8")
        object.__setattr__(self, "text", tuple(texts))

    def texts(self) -> Iterator[str]:
        """Yield the prompts."""
        yield from self.text

    def fill(self, tokens: Tokens, batch: int) -> Tokens:
        """Repeat a single prompt's sequence ``batch`` times.

        Raises:
            OptionError: there is no memory for so many copies.
        """
        if len(tokens) > 1:
            return tokens
        memory = memory_bytes()
        a_copy = tokens.ids.nbytes + _BYTES_A_SEQUENCE
        if memory and batch * a_copy > memory // 4:
            raise OptionError(
                "batch",
                batch,
                f"at most {memory // 4 // a_copy} of this text in this machine's memory",
            )
        return tokens.repeat(batch)
