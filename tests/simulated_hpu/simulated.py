"""A pytest plugin: makes this process believe that it runs on a host with a Gaudi card.

Loaded by ``-p simulated`` with this directory on PYTHONPATH, before anything imports torch.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import pytest

from bert_infer.devices.hpu import host

_HOST = tempfile.TemporaryDirectory()


def _pretend(root: Path) -> None:
    # Gaudi's own build of torch is told by its version.
    metadata = root / "site" / "torch-0.dist-info"
    metadata.mkdir(parents=True)
    own = version("torch").partition("+")[0] + "+hpu.1.24.2"
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {own}\n")
    sys.path.insert(0, str(root / "site"))
    card = root / "driver" / "0000:21:00.0"
    card.mkdir(parents=True)
    (card / "device").write_text("0x1020\n")
    host.DRIVER = root / "driver"


_pretend(Path(_HOST.name))


@pytest.fixture
def driver():
    """The driver's directory; what a test changes in it is put back."""
    card = host.DRIVER / "0000:21:00.0" / "device"
    yield host.DRIVER
    card.write_text("0x1020\n")


@pytest.fixture
def card():
    from card import CARD

    yield CARD
    CARD.missing = set()
    CARD.taken = CARD.lets_read = False


@pytest.fixture(autouse=True)
def _no_time_for_ceilings(monkeypatch):
    """The card is simulated: what its fastest matmul takes is of no interest."""
    from bert_infer import ceiling

    monkeypatch.setattr(ceiling, "_SEARCH_S", 0.0)
    monkeypatch.setattr(ceiling, "_REPEAT_S", 0.0)
