"""The best device that is there."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache

from bert_infer.devices import Device, DeviceChoice
from bert_infer.devices.cpu import Cpu
from bert_infer.devices.cuda import Cuda, driver
from bert_infer.devices.hpu import Hpu, host

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Auto(DeviceChoice):
    """The best device that is there."""

    name = "auto"

    def resolve(self) -> Device:
        """Return a Gaudi card with its plugin, else GPU 0 if PyTorch can use it, else the CPU."""
        if host.is_here():
            return Hpu()
        if not driver.is_here():
            return Cpu()
        if complaint := driver.unusable() or driver.without_kernels(0):
            _tell(complaint.why)
            return Cpu()
        return Cuda()


@cache
def _tell(why: str) -> None:
    """Warn once that there is a driver, but that PyTorch cannot use it."""
    _LOG.warning("device=auto takes the CPU: torch %s", why)
