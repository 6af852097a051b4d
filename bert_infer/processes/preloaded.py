"""What the fork server imports first: it collects no garbage, and leaves at once when it ends.

Its children enable the collector again (``process.set_apart``), and end as they always would.
"""

import atexit
import gc
import os

_SERVER = os.getpid()


def _leave() -> None:
    if os.getpid() == _SERVER:
        os._exit(0)


gc.disable()
atexit.register(_leave)
