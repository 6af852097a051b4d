"""What ``import torch`` calls, by the entry point that gaudi_host.py declares."""

import os

is_loaded = False


def __autoload():
    if is_loaded:
        return
    lazy = os.environ.get("PT_HPU_LAZY_MODE", "0") != "0"
    if os.environ.get("PT_HPU_AUTOLOAD", str(int(not lazy))) == "1":
        import habana_frameworks.torch
