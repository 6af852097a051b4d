"""The end of a process, without taking it apart.

torch and transformers are some thousand modules. The interpreter's end frees them object by object,
which takes a third as long again as to import them.
"""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress


def leave_at_once(code: int) -> None:
    """Have this process end with ``code`` as soon as Python has called what ``atexit`` holds.

    Call it last: what is registered with ``atexit`` after it is called twice. A debugger or
    profiler around the program has had its turn by then.
    """

    def leave() -> None:
        atexit.unregister(leave)
        atexit._run_exitfuncs()  # noqa: SLF001  as multiprocessing's own processes end
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # what is lost was told where it was printed
                stream.flush()
        os._exit(code)

    atexit.register(leave)
