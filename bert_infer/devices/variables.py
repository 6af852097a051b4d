"""Environment variables: set for a while, or for a device that reads them when it is imported."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bert_infer.errors import RefusedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

_OURS: dict[str, str] = {}
"""What this process has set for a run, and may change until a module has read it."""


@contextmanager
def temporarily(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set the ``wanted`` variables inside, and restore their values afterwards."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def check(wanted: Mapping[str, str]) -> None:
    """Refuse ``wanted`` variables that contradict the user's own environment.

    Raises:
        RefusedError: naming the variable.
    """
    for name, value in wanted.items():
        found = os.environ.get(name)
        if found not in {None, value} and name not in _OURS:
            raise RefusedError(
                f"The environment has {name}={found}, and this run needs {name}={value}.",
                f"Unset it (unset {name}), or choose the graph mode and device fields that fit it.",
            )


def settle(wanted: Mapping[str, str], readers: Collection[str]) -> None:
    """Set the ``wanted`` variables, before any of the modules ``readers`` is imported.

    Raises:
        RefusedError: one of them was imported under another setting; or as ``check``.
    """
    check(wanted)
    reader = next((name for name in readers if name in sys.modules), None)
    for name, value in wanted.items():
        if os.environ.get(name) == value:
            continue
        if reader:
            raise RefusedError(
                f"This run needs {name}={value}, and this process has imported {reader} with "
                f"{name}={os.environ.get(name, 'unset')}, which it reads once.",
                "Make it a command of its own, or a sweep whose runs are processes of their own.",
            )
        os.environ[name] = _OURS[name] = value
