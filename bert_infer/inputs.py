"""The ``input`` group: where the texts come from."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_infer.errors import InputError, OptionError, nearest
from bert_infer.records import Text, Tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from numpy.typing import NDArray

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
        """Refuse, before anything is loaded, a source that is not there.

        Raises:
            OptionError: naming the key to change.
        """

    def version(self) -> Hashable:
        """Return what differs once the content has changed and the configuration has not."""
        return None

    def fill(self, tokens: Tokens, batch: int) -> Tokens:
        """Return the sequences to run; only a single prompt is repeated to fill a batch."""
        del batch
        return tokens


class TextInput(Input):
    """A source of strings."""

    @abstractmethod
    def texts(self) -> Iterator[Text]:
        """Yield every text, empty ones included."""

    def tokens(self, tokenizer: Tokenizer) -> Tokens:
        """Tokenise the texts as they are read."""
        return tokenizer.encode(self.texts())


@dataclass(frozen=True)
class Prompt(TextInput):
    """A text, or a list of texts, given as they are."""

    text: Any  # omegaconf has no union of a string and a list

    def __post_init__(self) -> None:
        texts = (self.text,) if isinstance(self.text, str) else self.text
        if not isinstance(texts, Sequence) or not all(_is_text(t) for t in texts):
            raise OptionError("text", repr(self.text), "a string or a list of strings, in UTF-8")
        object.__setattr__(self, "text", tuple(texts))

    def texts(self) -> Iterator[Text]:
        """Yield the prompts."""
        yield from (Text(position, string) for position, string in enumerate(self.text))

    def fill(self, tokens: Tokens, batch: int) -> Tokens:
        """Repeat a single prompt's sequence ``batch`` times."""
        return tokens.repeat(batch) if len(tokens) == 1 else tokens


def _is_text(value: object) -> bool:
    """Tell a string from other things, and from bytes that the shell passed on undecoded."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


@dataclass(frozen=True)
class Lines(TextInput):
    """A UTF-8 text file, one text a line."""

    path: str

    def check(self) -> None:
        """Refuse a missing file."""
        if self.path != "-":
            _check_file(self.path)

    def version(self) -> Hashable:
        """Return the file's time and size."""
        return None if self.path == "-" else _version(self.path)

    def texts(self) -> Iterator[Text]:
        """Yield the lines without their ends."""
        if self.path == "-":
            yield from _decoded(enumerate(_standard_input()), "standard input")
            return
        with Path(self.path).open("rb") as file:
            yield from _decoded(enumerate(file), self.path)


@cache
def _standard_input() -> tuple[bytes, ...]:
    """Read standard input once for all the runs of a sweep."""
    if sys.stdin is None:
        raise InputError("Standard input is closed.", "Pipe texts into the command.")
    return tuple(sys.stdin.buffer)


def _decoded(lines: Iterator[tuple[int, bytes]], name: str) -> Iterator[Text]:
    for position, line in lines:
        try:
            yield Text(
                position, line.decode("utf-8-sig" if position == 0 else "utf-8").rstrip("\r\n")
            )
        except UnicodeDecodeError as error:
            raise InputError(
                f"{name}, line {position + 1}: not UTF-8 ({error.reason} at byte {error.start}).",
                "Convert the file first: iconv -f ENCODING -t UTF-8.",
            ) from None


@dataclass(frozen=True)
class Table(TextInput):
    """One column of a table file."""

    path: str
    column: str = "text"

    def check(self) -> None:
        """Refuse a missing file, an unknown format and a column that the table lacks."""
        _check_file(self.path)
        if Path(self.path).suffix.lower() not in _TABLE_FORMATS:
            raise OptionError(
                "input.path", self.path, f"a file ending in {', '.join(_TABLE_FORMATS)}"
            )
        for batch in self._batches():
            self._check_column(batch.schema.names)
            return

    def version(self) -> Hashable:
        """Return the file's time and size."""
        return _version(self.path)

    def texts(self) -> Iterator[Text]:
        """Yield the column's cells; an empty cell is an empty text."""
        position = 0
        for batch in self._batches():
            self._check_column(batch.schema.names)
            for cell in batch.column(self.column).to_pylist():
                yield Text(position, "" if cell is None else str(cell))
                position += 1

    def _batches(self) -> Iterator[Any]:
        import pyarrow as pa

        try:
            yield from _TABLE_FORMATS[Path(self.path).suffix.lower()](self.path)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{self.path} cannot be read as a table: {reason}",
                "Its ending must say its format, and text must be UTF-8.",
            ) from None

    def _check_column(self, names: list[str]) -> None:
        if names.count(self.column) > 1:
            raise InputError(
                f"{self.path} has {names.count(self.column)} columns called {self.column}.",
                "Rename all but one.",
            )
        if self.column not in names:
            raise OptionError(
                "input.column",
                self.column,
                f"a column of {self.path}: {', '.join(names)}",
                nearest(self.column, names),
            )


def _read_jsonl(path: str) -> Iterator[Any]:
    from pyarrow import json

    return iter(json.open_json(path))


def _read_csv(path: str) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import csv

    # Quoted cells may hold line ends; nothing is guessed to be a number, so 007 stays 007.
    parsing = csv.ParseOptions(newlines_in_values=True)
    columns = csv.open_csv(path, parse_options=parsing).schema.names
    strings = csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()))
    return iter(csv.open_csv(path, parse_options=parsing, convert_options=strings))


def _read_parquet(path: str) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        yield from file.iter_batches()


_TABLE_FORMATS = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


class Lengths(Enum):
    """How the lengths of synthetic sequences are distributed."""

    fixed = "fixed"
    uniform = "uniform"
    lognormal = "lognormal"


@dataclass(frozen=True)
class Synthetic(Input):
    """Random token ids, for a workload that is only its lengths."""

    texts: int
    lengths: Lengths
    mu: float
    sigma: float
    min: int
    max: int
    seed: int

    def __post_init__(self) -> None:
        if self.texts < 1:
            raise OptionError("texts", self.texts, "a whole number from 1")
        if not 1 <= self.min <= self.max:
            raise OptionError("min", self.min, f"a whole number from 1 to input.max, {self.max}")
        if not 0 <= self.sigma < np.inf:
            raise OptionError("sigma", self.sigma, "a number from 0")
        if not np.isfinite(self.mu):
            raise OptionError("mu", self.mu, "a finite number")
        if self.seed < 0:
            raise OptionError("seed", self.seed, "a whole number from 0")

    def tokens(self, tokenizer: Tokenizer) -> Tokens:
        """Draw the sequences: the lengths first, then the ids.

        Raises:
            OptionError: sequences longer than the model takes.
        """
        if self.max > tokenizer.max_length:
            raise OptionError(
                "input.max", self.max, f"at most max_length, {tokenizer.max_length} tokens here"
            )
        generator = np.random.default_rng(self.seed)
        lengths = _DRAW[self.lengths](self, generator).clip(self.min, self.max).astype(np.int64)
        # Ids from 1: id 0 is padding in every BERT vocabulary.
        ids = generator.integers(1, tokenizer.vocab_size, lengths.sum(), dtype=np.int32)
        return tokenizer.ragged(ids, lengths)


def _fixed(of: Synthetic, _: np.random.Generator) -> NDArray[np.number]:
    return np.full(of.texts, of.max)


def _uniform(of: Synthetic, generator: np.random.Generator) -> NDArray[np.number]:
    return generator.integers(of.min, of.max, of.texts, endpoint=True)


def _lognormal(of: Synthetic, generator: np.random.Generator) -> NDArray[np.number]:
    return generator.lognormal(of.mu, of.sigma, of.texts).round()


_DRAW: dict[Lengths, Callable[[Synthetic, np.random.Generator], NDArray[np.number]]] = {
    Lengths.fixed: _fixed,
    Lengths.uniform: _uniform,
    Lengths.lognormal: _lognormal,
}


def _version(path: str) -> Hashable:
    status = Path(path).stat()
    return status.st_mtime_ns, status.st_size


def _check_file(path: str) -> None:
    if Path(path).is_dir():
        raise OptionError("input.path", path, "a file; this is a directory")
    if not Path(path).is_file():
        raise OptionError(
            "input.path", path, "an existing file", "Nothing is there; check the spelling."
        )
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise OptionError("input.path", path, "a readable file", f"{error.strerror}.") from None
