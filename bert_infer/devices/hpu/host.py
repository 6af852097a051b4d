"""Gaudi cards as the system shows them, and their PyTorch plugin, found without importing torch."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bert_infer.devices.hpu import plugin
from bert_infer.errors import RefusedError
from bert_infer.machine import package_version

if TYPE_CHECKING:
    from collections.abc import Iterator

DRIVER = Path("/sys/bus/pci/drivers/habanalabs")
PROCESSES = Path("/proc")
ACCELERATORS = Path("/sys/class/accel")  # of all vendors
KERNELS = Path("/usr/lib/habanalabs/libtpc_kernels.so")  # where Intel's packages have them
_NODE = re.compile(r"/dev/(accel/accel|hl)\d+")  # compute nodes, not control nodes

# PCI device ids, from the driver's own list.
_GENERATIONS = {
    **dict.fromkeys((0x1000, 0x1001, 0x1010, 0x1011), 1),
    **dict.fromkeys((0x1020, 0x1021), 2),
    **dict.fromkeys((0x1060, 0x1061, 0x1062, 0x1063), 3),
}

_INSTALLER = "https://vault.habana.ai/artifactory/gaudi-installer/1.24.1/habanalabs-installer.sh"
_PAGE = "docs/gaudi.md has the whole installation."


class Holder(NamedTuple):
    """A process that has cards, by their nodes in /dev."""

    pid: int
    command: str
    nodes: frozenset[Path]

    def __str__(self) -> str:
        return f"process {self.pid} ({self.command})"


def is_here() -> bool:
    """Tell whether there are a card with its driver, and the plugin."""
    return bool(cards()) and installed_at() is not None


def cards() -> tuple[str, ...]:
    """Return the PCI addresses of the cards that the driver serves."""
    with suppress(OSError):
        return tuple(sorted(path.name for path in DRIVER.iterdir() if ":" in path.name))
    return ()


def own_card() -> str | None:
    """Return the PCI address of the card that this process has open; unknown is None."""
    there = set(cards())
    opened = {_address(node) for node in _gaudis(PROCESSES / "self")} & there
    found = opened or there
    return found.pop() if len(found) == 1 else None


def generation() -> int | None:
    """Return 1, 2 or 3 for Gaudi, Gaudi 2 and Gaudi 3, of the first card; unknown is None."""
    for card in cards():
        with suppress(OSError, ValueError):
            return _GENERATIONS.get(int((DRIVER / card / "device").read_text("ascii"), 16))
    return None


def installed_at() -> Path | None:
    """Return where the plugin is installed."""
    spec = find_spec(plugin.NAME.partition(".")[0])
    places = (spec.submodule_search_locations or ()) if spec else ()
    found = (Path(place) / "torch" for place in places)
    return next((path for path in found if path.is_dir()), None)


def check() -> None:
    """Refuse a machine without the plugin, the driver or a card, and a torch of another release.

    Raises:
        RefusedError: with the commands that install what is missing.
    """
    place = installed_at()
    if place is None:
        raise RefusedError(
            f"device=hpu is refused: Gaudi's PyTorch plugin, {plugin.NAME}, is not installed here.",
            f"It is not on PyPI. wget {_INSTALLER}; bash habanalabs-installer.sh install --type "
            "pytorch --venv makes ~/habanalabs-venv, into which this package goes; or use one of "
            f"Intel's containers. {_PAGE}",
        )
    if not DRIVER.is_dir():
        raise RefusedError(
            "device=hpu is refused: this machine runs no driver for Gaudi cards.",
            f"wget {_INSTALLER}; bash habanalabs-installer.sh install --type base, then "
            f"sudo modprobe habanalabs. {_PAGE}",
        )
    if not cards():
        raise RefusedError(
            "device=hpu is refused: the driver serves no Gaudi card.",
            f"lspci -d 1da3: lists cards, hl-smi those that work. {_PAGE}",
        )
    needs, has = _needed_torch(place), _torch()
    if needs and has and _minor(needs) != _minor(has):
        raise RefusedError(
            f"device=hpu is refused: the plugin was built for torch {needs}, and torch {has} is "
            "installed: pip has replaced Gaudi's own build, or the plugin is of another release.",
            f"bash habanalabs-installer.sh install --type pytorch --venv makes ~/habanalabs-venv, "
            f"which has both. {_PAGE}",
        )


def has_own_torch() -> bool:
    """Tell whether the torch installed is Gaudi's build, without which there is no lazy mode."""
    local = (_torch() or "").partition("+")[2]
    return local.startswith(("hpu", "git"))


def holders() -> tuple[Holder, ...]:
    """Return the other processes that have a card open, as far as this user may see."""
    found = (_holder(path) for path in PROCESSES.glob("[0-9]*") if path.name != str(os.getpid()))
    return tuple(sorted(holder for holder in found if holder))


def module_of(node: Path) -> int | None:
    """Return the module id of a card; None where the driver does not tell it, as older ones."""
    with suppress(OSError, ValueError):
        return int((ACCELERATORS / node.name / "device" / "module_id").read_text("ascii"))
    return None


def _command_of(process: Path) -> str:
    """Return its command line, or a question mark."""
    with suppress(OSError):
        words = (process / "cmdline").read_bytes().split(b"\0")
        return b" ".join(words).decode(errors="replace").strip() or "?"
    return "?"


def _holder(process: Path) -> Holder | None:
    if nodes := frozenset(_gaudis(process)):
        return Holder(int(process.name), _command_of(process), nodes)
    return None


def _gaudis(process: Path) -> Iterator[Path]:
    """Yield the nodes of cards that a process has open, as far as this user may see."""
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                node = descriptor.readlink()
                if _NODE.fullmatch(str(node)) and (
                    node.name.startswith("hl") or _address(node) in cards()
                ):
                    yield node


def _address(node: Path) -> str:
    """Return the PCI address behind a node of /dev/accel."""
    return (ACCELERATORS / node.name / "device").resolve().name


def _needed_torch(place: Path) -> str | None:
    with suppress(OSError):
        return (place / "required_version.txt").read_text("utf-8").strip()
    return None


def _torch() -> str | None:
    return package_version("torch")


def _minor(of: str) -> list[str]:
    return of.split(".")[:2]
