import os

_LAZY = os.environ.get("PT_HPU_LAZY_MODE", "0") != "0"  # read once


def is_lazy():
    return _LAZY
