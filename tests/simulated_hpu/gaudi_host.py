"""A host with a Gaudi card, as far as this process can see."""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from bert_infer.devices.hpu import host

_HOST = tempfile.TemporaryDirectory()


def pretend() -> None:
    """Make this process believe in it, before anything imports torch."""
    root = Path(_HOST.name)
    # Gaudi's own build of torch is told by its version.
    _install(root / "site", "torch", version("torch").partition("+")[0] + "+hpu.1.24.2")
    plugin = _install(root / "site", "habana-torch-plugin", "1.24.2.17")
    (plugin / "entry_points.txt").write_text(
        "[torch.backends]\ndevice_backend = habana_frameworks.autoload:__autoload\n"
    )
    sys.path.insert(0, str(root / "site"))
    card = root / "driver" / "0000:21:00.0"
    card.mkdir(parents=True)
    (card / "device").write_text("0x1020\n")
    host.DRIVER = root / "driver"


def _install(site: Path, name: str, version: str) -> Path:
    metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return metadata
