"""Which run the others are compared with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bert_infer.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Baseline:
    """Options by name; a run that has them all can be a baseline.

    Attributes:
        values: the value of each, as a record writes it.
    """

    values: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Baseline:
        """Return the baseline that ``text`` names: ``dtype=fp32 batch=1``, or with commas.

        Raises:
            OptionError: it names no option, one twice, or one without a value.
        """
        values: dict[str, str] = {}
        for word in re.split(r"[\s,]+", text.strip()):
            key, _, value = word.partition("=")
            if not key or not value or key in values:
                raise OptionError(
                    "baseline",
                    text,
                    "different options as KEY=VALUE, with spaces or commas between them: "
                    '"dtype=fp32 batch=1"',
                )
            values[key] = value
        return cls(values)

    def matches(self, options: Mapping[str, str]) -> bool:
        """Return whether a run with ``options`` has all of these values."""
        return all(options.get(key) == value for key, value in self.values.items())

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values.items())
