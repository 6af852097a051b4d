"""What a process need not do: collect garbage among imports, and take itself apart at its end.

torch and transformers are some thousand modules. Collections while they are imported find nothing
and take a tenth of the time; the interpreter's end frees all of it object by object, which takes a
quarter as long again as the imports.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage in the block."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def leave_at_once(code: int) -> None:
    """Have this process end with ``code`` as soon as Python has called what ``atexit`` holds.

    Call it last: what is registered with ``atexit`` after it is called twice. A debugger or
    profiler around the program has had its turn by then.
    """

    def leave() -> None:
        atexit.unregister(leave)
        atexit._run_exitfuncs()  # noqa: SLF001  as multiprocessing's own processes end
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a closed pipe, or none
                stream.flush()
        os._exit(code)

    atexit.register(leave)
