"""Devices: what they read of themselves, and what they refuse."""

from __future__ import annotations

import os
from types import SimpleNamespace
from unittest.mock import create_autospec

import pynvml
import pytest
import torch

from bert_infer.devices.cpu import Cpu
from bert_infer.devices.cuda import Cuda


def test_threads_are_set_for_the_run_and_put_back():
    before = torch.get_num_threads()
    with Cpu(threads=1).active():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.fixture
def nvml(monkeypatch):
    """NVML's real signatures on an imagined card; the arithmetic on a real one is not seen here."""
    for name in dir(pynvml):
        if name.startswith("nvmlDevice") or name in {"nvmlInit", "nvmlShutdown"}:
            monkeypatch.setattr(pynvml, name, create_autospec(getattr(pynvml, name)))
    properties = SimpleNamespace(uuid="0123")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: properties)
    return pynvml


def test_a_cards_readings_have_their_units(nvml):
    nvml.nvmlDeviceGetClockInfo.side_effect = lambda _card, kind: {
        nvml.NVML_CLOCK_SM: 1980,
        nvml.NVML_CLOCK_MEM: 3201,
    }[kind]
    nvml.nvmlDeviceGetTemperature.return_value = 61
    nvml.nvmlDeviceGetPowerUsage.return_value = 512_300  # milliwatts
    assert Cuda().readings() == {
        "sm_clock_mhz": 1980.0,
        "memory_clock_mhz": 3201.0,
        "temperature_c": 61.0,
        "power_w": 512.3,
    }
    nvml.nvmlDeviceGetHandleByUUID.assert_called_once_with("GPU-0123")
    nvml.nvmlShutdown.assert_called_once_with()


def test_a_card_names_other_processes_and_why_it_is_slow(nvml):
    nvml.nvmlDeviceGetComputeRunningProcesses.return_value = [
        SimpleNamespace(pid=os.getpid()),
        SimpleNamespace(pid=7),
    ]
    nvml.nvmlDeviceGetCurrentClocksEventReasons.return_value = (
        pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle
    )
    assert Cuda().other_processes() == (7,)
    assert Cuda().throttle_reasons() == ("power cap",)


def test_what_nvml_cannot_say_is_unknown(nvml):
    nvml.nvmlDeviceGetPowerUsage.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    nvml.nvmlDeviceGetClockInfo.return_value = 1
    nvml.nvmlDeviceGetTemperature.return_value = 1
    assert Cuda().readings() == {}
    nvml.nvmlInit.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert Cuda().other_processes() == ()
    assert Cuda().throttle_reasons() == ()
