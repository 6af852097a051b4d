"""Write real, ragged English to standard output: paragraphs of the Python manual, one a line.

    python benchmarks/manual_text.py [PARAGRAPHS] > manual.txt

The text ships with every Python, so anyone can repeat a run on it.
"""

from __future__ import annotations

import sys
from itertools import islice
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def paragraphs() -> Iterator[str]:
    """Yield the manual's paragraphs of three words or more, in the order of its chapters."""
    for _, chapter in sorted(topics.items()):
        for paragraph in chapter.split("\n\n"):
            if len(paragraph.split()) > 2:  # noqa: PLR2004  fewer are headings
                yield " ".join(paragraph.split())


def main(count: int) -> None:
    """Print the first ``count`` (200) paragraphs."""
    for paragraph in islice(paragraphs(), count):
        print(paragraph)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 200)
