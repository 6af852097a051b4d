"""NVIDIA's driver and torch's build: whether they are there, and fit each other and the card."""

from __future__ import annotations

import ctypes
import os
import re
import warnings
from functools import cache
from pathlib import Path
from typing import NamedTuple

from bert_infer.devices.cuda import nvml
from bert_infer.errors import RefusedError

_BUILDS = "https://pytorch.org/get-started/locally"
_KERNEL_MODULE = Path("/proc/driver/nvidia/version")


def check() -> None:
    """Refuse a machine without a driver, and a build of torch that it does not serve.

    Raises:
        RefusedError: naming ``device``.
    """
    if not is_here():
        raise RefusedError(
            "device=cuda is refused: this machine has no NVIDIA driver.",
            "Use device=cpu or device=auto.",
        )
    if complaint := unusable():
        raise complaint.as_error()


class Complaint(NamedTuple):
    """Why a GPU cannot be used.

    Attributes:
        why: a sentence on torch, without its subject.
        remedy: what to do besides not using it.
    """

    why: str
    remedy: str

    def as_error(self) -> RefusedError:
        """Return the error that refuses it."""
        import torch

        return RefusedError(
            f"device=cuda is refused: torch {torch.__version__} {self.why}",
            f"{self.remedy}, or use device=cpu.",
        )


@cache
def unusable() -> Complaint | None:
    """Return why torch can use no GPU; None if it can.

    Cached, as torch itself warns only once.
    """
    import torch

    if torch.version.cuda is None:
        return Complaint("is built without CUDA.", f"Install a build for CUDA ({_BUILDS})")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not said and nvml.cards():
        return Complaint(
            f"finds no GPU: CUDA_VISIBLE_DEVICES={visible!r} leaves none of this machine's.",
            "Unset CUDA_VISIBLE_DEVICES, or name GPUs in it that `nvidia-smi -L` lists",
        )
    reason = str(said[0].message).partition("\n")[0] if said else "the driver has none."
    return Complaint(
        f"finds no GPU it can use: {reason} It is built for CUDA {torch.version.cuda}; the driver "
        f"({version() or 'version unknown'}) serves {nvml.cuda_version() or 'none'}.",
        f"Update the driver, install a build of torch that fits it ({_BUILDS})",
    )


def without_kernels(index: int) -> Complaint | None:
    """Return that torch has no kernels for the card, so that the first would fail; else None."""
    import torch

    capability, built_for = torch.cuda.get_device_capability(index), torch.cuda.get_arch_list()
    if not built_for or any(_serves(built, capability) for built in built_for):
        return None
    major, minor = capability
    return Complaint(
        f"has no kernels for GPU {index}, whose compute capability is {major}.{minor}: it is built "
        f"for {', '.join(built_for)}.",
        f"Install a build of torch that has them ({_BUILDS}: for an older card one for an older "
        "CUDA)",
    )


def _serves(built: str, capability: tuple[int, int]) -> bool:
    """Tell whether code such as ``sm_86`` or ``compute_90`` runs on a card of this capability.

    Machine code (sm) runs on later minor versions of the same major one; PTX (compute) is compiled
    by the driver for any later card: CUDA C++ Programming Guide, "Compute Capabilities".
    """
    of = divmod(int(re.sub(r"\D", "", built)), 10)
    return of <= capability and (built.startswith("compute") or of[0] == capability[0])


def is_here() -> bool:
    """Tell, without importing torch, whether there is a driver: CUDA needs one."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def version() -> str | None:
    """Read the kernel module's version, as in "NVRM version: ... Kernel Module  550.54  ...".

    NVML is asked where there is no such file: sandboxes show a file system of their own.
    """
    try:
        words = _KERNEL_MODULE.read_text("utf-8").partition("\n")[0].split()
    except OSError:
        words = []
    return next((w for w in words if w[0].isdigit() and "." in w), None) or nvml.driver_version()
