"""Interruptions, by the user or a scheduler, where they would do harm."""

from __future__ import annotations

import math
import signal
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_PATIENCE_S = 1.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def held_back() -> Iterator[None]:
    """Defer an interruption to the end of the block, in which modules are imported, say.

    Python raises it wherever it happens to be: in a destructor it is lost, and an import may leave
    half a module behind. Only the main thread is interrupted. Another one a second later, as when
    somebody loses patience, acts at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, Any]] = []
    began = math.inf
    handlers = {
        number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))
    }

    def wait(number: int, frame: Any) -> None:  # noqa: ANN401  as signal.signal has it
        nonlocal began
        waiting.append((number, frame))
        if time.monotonic() > began + _PATIENCE_S:
            handlers[signal.Signals(number)](number, frame)
        began = min(began, time.monotonic())

    for number in handlers:
        signal.signal(number, wait)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    for given in waiting[:1]:
        handlers[signal.Signals(given[0])](*given)
