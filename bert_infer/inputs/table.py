"""One column of a .jsonl, .csv, .tsv or .parquet file."""

from __future__ import annotations

import csv
import json
import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bert_infer.errors import InputError, OptionError, nearest
from bert_infer.inputs import FileInput, is_unicode
from bert_infer.inputs.lines import decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Table(FileInput):
    """One column of a table file; an empty or absent cell is an empty text.

    Attributes:
        delimiter: what is between the cells of a line; None: a comma in a .csv, a tab in a .tsv.
            In a .tsv nothing is quoted, as IANA registers text/tab-separated-values.
    """

    path: str
    column: str = "text"
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is None:
            return
        written = self.delimiter.replace("\\t", "\t")  # as a shell gives it
        object.__setattr__(self, "delimiter", written)
        if len(written) != 1 or written.isalnum() or written in '\r\n"':
            allowed = """one sign: 'input.delimiter=";"' or 'input.delimiter="\\t"'"""
            raise OptionError("delimiter", self.delimiter, allowed)
        if not issubclass(_FORMATS.get(self._suffix, _Csv), _Csv):
            raise OptionError("delimiter", self.delimiter, f"null for a {self._suffix}")

    @property
    def _suffix(self) -> str:
        return Path(self.path).suffix.lower()

    def check(self) -> None:
        """Refuse a file that cannot be read, an unknown format and a missing column."""
        super().check()
        if self._suffix not in _FORMATS:
            raise OptionError("input.path", self.path, f"a file ending in {', '.join(_FORMATS)}")
        next(self.texts(), None)

    def texts(self) -> Iterator[str]:
        """Yield the column's cells.

        Raises:
            OptionError: there is no such column, or it holds no text.
            InputError: there are several such columns, or a place in the file cannot be read.
        """
        file = _FORMATS[self._suffix](self.path, self.delimiter)
        names = file.columns(self.column)
        if names.count(self.column) > 1:
            raise InputError(
                f"{self.path} has {names.count(self.column)} columns called {self.column}.",
                "Rename all but one.",
            )
        if names and self.column not in names:  # an empty file has none, and no text either
            raise OptionError(
                "input.column",
                self.column,
                f"a column of {self.path}: {', '.join(names)}",
                file.advice(names) or nearest(self.column, names),
            )
        for cell in file.cells(self.column) if names else ():
            yield "" if cell is None else cell


class _File(ABC):
    """A table file of one format."""

    def __init__(self, path: str, delimiter: str | None) -> None:
        self.path = path
        self.delimiter = delimiter

    def advice(self, names: list[str]) -> str:
        """Return why the wanted column may be missing among ``names``; empty if unknown."""
        del names
        return ""

    @abstractmethod
    def columns(self, wanted: str) -> list[str]:
        """Return the names of the columns; reading may stop once ``wanted`` is among them."""

    @abstractmethod
    def cells(self, column: str) -> Iterator[str | None]:
        """Yield the cells of ``column``.

        Raises:
            InputError: naming the place that cannot be read.
        """


class _JsonLines(_File):
    """One JSON object a line; types are JSON's own, and no string is taken for a date."""

    def columns(self, wanted: str) -> list[str]:
        names: dict[str, None] = {}
        for _, row in self._rows():
            names |= dict.fromkeys(row)
            if wanted in names:  # a key may be absent from the first lines
                break
        return list(names)

    def cells(self, column: str) -> Iterator[str | None]:
        for line, row in self._rows():
            cell = row.get(column)
            if not _is_text(cell):
                raise InputError(
                    f"{self.path}, line {line}: {column} holds {json.dumps(cell)[:40]}, no text.",
                    "Give a string, a number or null.",
                )
            yield None if cell is None else str(cell)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with Path(self.path).open("rb") as file:
            for line, text in enumerate(decoded(file, self.path), 1):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text, parse_constant=_constant)
                except (ValueError, RecursionError) as error:
                    raise self._no_object(line, f"{error}") from None
                if not isinstance(row, dict):
                    raise self._no_object(line, f"{text[:40]}")
                yield line, row

    def _no_object(self, line: int, reason: str) -> InputError:
        return InputError(
            f"{self.path}, line {line}: no JSON object ({reason}).", "Give one object a line."
        )


def _is_text(cell: object) -> bool:
    """Tell whether a value of JSON is a string that can be encoded, a number or null."""
    if isinstance(cell, str):
        return is_unicode(cell)
    return cell is None or (type(cell) in {int, float} and math.isfinite(cell))  # type: ignore[arg-type]


def _constant(name: str) -> float | None:
    """Return a number that JSON lacks; None for NaN, which pandas writes for a missing value."""
    return None if name == "NaN" else float(name)


class _Csv(_File):
    """Values with delimiters between them under a header line; a quoted one may hold line ends."""

    usual: ClassVar[str] = ","
    quoting: ClassVar[Literal[0, 3]] = csv.QUOTE_MINIMAL

    def advice(self, names: list[str]) -> str:
        other = next((sign for sign in ",;\t|" if len(names) == 1 and sign in names[0]), None)
        if other is None:
            return ""
        shown = other.replace("\t", "\\t")
        return f"Its cells seem to have another sign between them: 'input.delimiter=\"{shown}\"'."

    def columns(self, wanted: str) -> list[str]:
        del wanted
        return next(self._rows(), (0, []))[1]

    def cells(self, column: str) -> Iterator[str | None]:
        rows = self._rows()
        _, names = next(rows)
        place = names.index(column)
        for line, row in rows:
            if len(row) > len(names):
                raise InputError(
                    f"{self.path}, line {line}: {len(row)} cells under {len(names)} names.",
                    "Quote a text that holds the delimiter.",
                )
            yield row[place] if place < len(row) else None

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield each row that has cells, with the number of its last line.

        Parsing is strict: otherwise an unclosed quote would turn the rest of the file into a cell.

        Raises:
            InputError: the quoting is wrong.
        """
        csv.field_size_limit(sys.maxsize)  # a cell may be a book
        with Path(self.path).open("rb") as file:
            lines = decoded(file, self.path, keep_ends=True)
            delimiter = self.delimiter or self.usual
            rows = csv.reader(lines, delimiter=delimiter, quoting=self.quoting, strict=True)
            try:
                yield from ((rows.line_num, row) for row in rows if row)
            except csv.Error as error:
                raise InputError(
                    f"{self.path}, line {rows.line_num}: {error}.", "Correct the quoting."
                ) from None


class _Tsv(_Csv):
    """The same with tabs, and without quotes: what looks like one is part of the text."""

    usual: ClassVar[str] = "\t"
    quoting: ClassVar[Literal[0, 3]] = csv.QUOTE_NONE


class _Parquet(_File):
    """Apache Parquet."""

    def columns(self, wanted: str) -> list[str]:
        del wanted
        import pyarrow as pa
        from pyarrow import parquet

        try:
            return list(parquet.read_schema(self.path).names)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None

    def cells(self, column: str) -> Iterator[str | None]:
        import pyarrow as pa
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(columns=[column]):
                    yield from self._strings(column, batch.column(column)).to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise self._unreadable(error) from None

    def _strings(self, column: str, cells: Any) -> Any:  # noqa: ANN401  pyarrow is untyped
        """Return ``cells`` as strings, where they are strings or numbers; NaN is an absent one."""
        import pyarrow as pa
        from pyarrow import compute, types

        if types.is_dictionary(cells.type):
            cells = cells.dictionary_decode()
        if types.is_floating(cells.type):
            cells = compute.if_else(compute.is_nan(cells), None, cells)
        elif not any(is_kind(cells.type) for is_kind in _kinds_of_text()):
            raise OptionError(
                "input.column", column, f"a column of text; this one holds {cells.type}"
            )
        return cells.cast(pa.string())

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(
            f"{self.path} cannot be read as Parquet: {str(error).splitlines()[0]}",
            "Write it again, its text in UTF-8, or give another file.",
        )


def _kinds_of_text() -> list[Callable[[Any], bool]]:
    """Return what tells the types of Parquet that are written as JSON's strings and integers."""
    from pyarrow import types

    return [
        *(types.is_string, types.is_large_string, types.is_string_view),
        *(types.is_binary, types.is_large_binary, types.is_binary_view),
        *(types.is_integer, types.is_decimal, types.is_null),
    ]


_FORMATS: dict[str, type[_File]] = {
    ".jsonl": _JsonLines,
    ".csv": _Csv,
    ".tsv": _Tsv,
    ".parquet": _Parquet,
}
