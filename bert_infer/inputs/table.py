"""One column of a .jsonl, .csv or .parquet file."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_infer.errors import InputError, OptionError, nearest
from bert_infer.inputs import FileInput
from bert_infer.inputs.lines import decoded
from bert_infer.records import Text

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Table(FileInput):
    """One column of a table file; an empty or absent cell is an empty text."""

    path: str
    column: str = "text"

    def check(self) -> None:
        """Refuse what is no readable file, an unknown format and a column that is not there."""
        super().check()
        if Path(self.path).suffix.lower() not in _FORMATS:
            raise OptionError("input.path", self.path, f"a file ending in {', '.join(_FORMATS)}")
        for _ in islice(self.texts(), 1):
            return

    def texts(self) -> Iterator[Text]:
        """Yield the column's cells."""
        file = _FORMATS[Path(self.path).suffix.lower()](self.path)
        names = file.columns(self.column)
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
        for position, cell in enumerate(file.cells(self.column)):
            yield Text(position, "" if cell is None else cell)


class _File(ABC):
    """A table file of one format."""

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def columns(self, wanted: str) -> list[str]:
        """Return the names of the columns, or of as many as it takes to see ``wanted``."""

    @abstractmethod
    def cells(self, column: str) -> Iterator[str | None]:
        """Yield the cells of ``column``."""

    @contextmanager
    def _arrow_errors(self) -> Iterator[None]:
        """Say what Arrow could not read.

        Raises:
            InputError: the file is broken, or not what its ending says.
        """
        import pyarrow as pa

        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{self.path} cannot be read as a table: {reason}",
                "Its ending must say its format, and text must be UTF-8.",
            ) from None


class _JsonLines(_File):
    """One JSON object a line, read as JSON says: nothing is guessed to be a date."""

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
            if isinstance(cell, dict | list | bool):
                raise InputError(
                    f"{self.path}, line {line}: {column} holds {json.dumps(cell)[:40]}, no text.",
                    "Give a string, a number or null.",
                )
            yield None if cell is None else str(cell)

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with Path(self.path).open("rb") as file:
            for position, text in decoded(file, self.path):
                if not text.strip():
                    continue
                try:
                    row = json.loads(text)
                except (ValueError, RecursionError) as error:
                    raise self._no_object(position + 1, f"{error}") from None
                if not isinstance(row, dict):
                    raise self._no_object(position + 1, f"{text[:40]}")
                yield position + 1, row

    def _no_object(self, line: int, reason: str) -> InputError:
        return InputError(
            f"{self.path}, line {line}: no JSON object ({reason}).", "Give one object a line."
        )


class _Csv(_File):
    """Comma-separated values under a line of names; a quoted cell may hold line ends."""

    def columns(self, wanted: str) -> list[str]:
        del wanted
        with self._arrow_errors():
            return list(self._open({}).schema.names)

    def cells(self, column: str) -> Iterator[str | None]:
        import pyarrow as pa

        with self._arrow_errors():
            # Nothing is guessed to be a number: 007 stays 007.
            for batch in self._open({column: pa.string()}):
                yield from batch.column(column).to_pylist()

    def _open(self, types: dict[str, Any]) -> Any:  # noqa: ANN401  pyarrow is untyped
        from pyarrow import csv

        return csv.open_csv(
            self.path,
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=types, include_columns=list(types)),
        )


class _Parquet(_File):
    """Apache Parquet."""

    def columns(self, wanted: str) -> list[str]:
        del wanted
        from pyarrow import parquet

        with self._arrow_errors():
            return list(parquet.read_schema(self.path).names)

    def cells(self, column: str) -> Iterator[str | None]:
        import pyarrow as pa
        from pyarrow import parquet

        with self._arrow_errors(), parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(columns=[column]):
                yield from batch.column(column).cast(pa.string()).to_pylist()


_FORMATS: dict[str, type[_File]] = {".jsonl": _JsonLines, ".csv": _Csv, ".parquet": _Parquet}
