"""A pytest plugin: makes this process believe that it runs on a host with a Gaudi card.

Loaded by ``-p simulated`` with this directory on PYTHONPATH, before anything imports torch.
"""

from __future__ import annotations

import os

import gaudi_host
import pytest

from bert_infer.devices.hpu import host

gaudi_host.pretend()
os.environ["PT_HPU_AUTOLOAD"] = "0"  # the suites import torch before a run has set the mode


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
    from bert_infer.measuring import ceiling

    monkeypatch.setattr(ceiling, "_SEARCH_S", 0.0)
    monkeypatch.setattr(ceiling, "_REPEAT_S", 0.0)
