"""An engine that ends its process in every way there is, as another package would add it."""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import time
from dataclasses import dataclass

import psutil

from bert_infer.engines.fused import Fused


def _allocate():
    import torch

    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
    kept = []
    while True:
        kept.append(torch.ones(1 << 26))


def _accelerator_is_full():
    """Raise what PyTorch does: no accelerator is needed to see what becomes of it."""
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def _hang():
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)


def _full_disk():
    """Let every file end where a full disk would."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


DEEDS = {
    "nothing": lambda: None,
    "segfault": faulthandler._sigsegv,  # noqa: SLF001
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": _hang,
    "allocate": _allocate,
    "accelerator_is_full": _accelerator_is_full,
    "exit": lambda: os._exit(3),
    "raise": lambda: 1 / 0,
    "full_disk": _full_disk,
}


@dataclass(frozen=True)
class Deadly(Fused):
    """Computes as fused does, until the forward number ``after``."""

    deed: str
    after: int

    name = "deadly"

    @property
    def imports(self):
        return ("deadly_to_import",) if self.deed == "be_imported" else super().imports

    def load(self, architecture, weights, dtype, device):
        encode = super().load(architecture, weights, dtype, device)
        left = self.after

        def forward(*inputs):
            nonlocal left
            left -= 1
            if left == 0:
                DEEDS[self.deed]()
            return encode(*inputs)

        return forward
