"""Devices: what they read of themselves, and what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import create_autospec

import psutil
import pynvml
import pytest
import torch
from test_metrics import finished

from bert_infer import compose, metrics
from bert_infer.devices import auto, cuda
from bert_infer.devices.counters import Counted
from bert_infer.devices.cpu import Cpu
from bert_infer.devices.cuda import Cuda
from bert_infer.dtypes import Bf16, Bf16Autocast, Fp32, Int8, Tf32
from bert_infer.errors import RefusedError
from bert_infer.graphs import Compile
from bert_infer.graphs.cuda_graphs import CudaGraphs
from bert_infer.measuring import environment
from bert_infer.measuring.conditions import between, snapshot


def test_threads_are_set_for_the_run_and_put_back():
    before = torch.get_num_threads()
    with Cpu(threads=1).active():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


@pytest.fixture
def nvml(monkeypatch):
    """NVML's real signatures on an imagined card; the arithmetic on a real one is not seen here."""
    for name in dir(pynvml):
        if name.startswith(("nvmlDevice", "nvmlSystem")) or name in {"nvmlInit", "nvmlShutdown"}:
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
    assert Cuda().reading().gauges == {
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
    assert Cuda().reading().processes == (7,)
    assert Cuda().reading().throttled == ("power cap",)
    nvml.nvmlDeviceGetCurrentClocksEventReasons.return_value = (
        pynvml.nvmlClocksEventReasonHwThermalSlowdown | pynvml.nvmlClocksEventReasonHwSlowdown
    )
    assert Cuda().reading().throttled == ("hardware slowdown", "hardware temperature")


@pytest.mark.parametrize(
    ("listed", "others"),
    [
        ([12], ()),  # ourselves, by the host's number
        ([12, 13], (12, 13)),  # one of them is, and the other is not
        ([1], (1,)),  # somebody whom we can see here
        ([None, 12], (12,)),  # we are known by our own
    ],
)
def test_a_process_in_a_container_does_not_take_itself_for_another(
    nvml, monkeypatch, listed, others
):
    """Seen to fail: only this process' own id left out; a strange one always left out."""
    monkeypatch.setattr(psutil, "pid_exists", lambda pid: pid in {1, os.getpid()})
    nvml.nvmlDeviceGetComputeRunningProcesses.return_value = [
        SimpleNamespace(pid=pid or os.getpid()) for pid in listed
    ]
    assert Cuda().reading().processes == others


@pytest.mark.parametrize(
    ("listed", "others"),
    [
        # As drivers before 535.154 fill the list for two processes.
        ([os.getpid(), 0, 2**32 - 1, 2**32 - 1], ()),
        (pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION), ()),
        (pynvml.NVMLLibraryMismatchError("the driver is older than the library"), ()),
    ],
    ids=["no_ids", "forbidden", "mismatch"],
)
def test_a_list_of_processes_that_cannot_be_read_ends_no_run(nvml, listed, others):
    """Seen to fail: the numbers asked of psutil, which overflows; NVMLError alone suppressed."""
    nvml.nvmlDeviceGetComputeRunningProcesses.side_effect = (
        listed if isinstance(listed, Exception) else [[SimpleNamespace(pid=pid) for pid in listed]]
    )
    reading = Cuda().reading()
    assert reading.processes == others
    assert reading.gauges, "and it costs no other figure"
    assert reading.counters


def test_a_part_of_a_card_is_asked_by_its_own_id(nvml):
    """Seen to fail: "GPU-" alone, by which nothing is found."""
    not_found = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
    nvml.nvmlDeviceGetHandleByUUID.side_effect = [not_found, "a part of a card"]
    nvml.nvmlDeviceGetClockInfo.return_value = 1980
    nvml.nvmlDeviceGetTemperature.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    nvml.nvmlDeviceGetPowerUsage.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert Cuda().reading().gauges == {"sm_clock_mhz": 1980.0, "memory_clock_mhz": 1980.0}
    nvml.nvmlDeviceGetHandleByUUID.assert_called_with("MIG-0123")


def test_throttling_between_two_readings_is_seen(nvml):
    """Seen to fail: the reasons of the two moments alone."""
    nvml.nvmlDeviceGetCurrentClocksEventReasons.return_value = 0
    nvml.nvmlDeviceGetComputeRunningProcesses.return_value = []
    nvml.nvmlDeviceGetTotalEnergyConsumption.side_effect = [5_000, 12_500]  # millijoules
    counted = {pynvml.NVML_PERF_POLICY_POWER: 0, pynvml.NVML_PERF_POLICY_THERMAL: 9_000_000}

    def status(_card, policy):
        if policy not in counted:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(violationTime=counted[policy])

    nvml.nvmlDeviceGetViolationStatus.side_effect = status
    before = snapshot(Cuda())
    assert before.device.throttled_s == {"power cap": 0, "temperature": 0.009}
    counted[pynvml.NVML_PERF_POLICY_POWER] = 1_000_000
    after = snapshot(Cuda())
    assert between(before, after).throttled == ("power cap",)
    counted_j = Counted(*(moment.device.counters for moment in (before, before, after))).as_json()
    assert counted_j["measured_energy_j"] == 7.5


def test_a_cards_memory_and_its_drivers_cuda_are_known_without_using_it(nvml):
    nvml.nvmlDeviceGetCount.return_value = 2
    nvml.nvmlDeviceGetHandleByIndex.side_effect = lambda index: index
    nvml.nvmlDeviceGetMemoryInfo.side_effect = lambda index: SimpleNamespace(
        total=(index + 1) << 30
    )
    assert Cuda().memory_bytes() == 2 << 30
    nvml.nvmlInit.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert Cuda().memory_bytes() is None


def test_the_drivers_version_is_the_kernels_or_where_that_is_hidden_nvmls(
    nvml, monkeypatch, tmp_path
):
    """Seen to fail: the file alone, which sandboxes lack."""
    file = tmp_path / "version"
    monkeypatch.setattr(cuda.driver, "_KERNEL_MODULE", file)
    nvml.nvmlSystemGetDriverVersion.return_value = "580.95.05"
    assert cuda.driver.version() == "580.95.05"
    file.write_text("NVRM version: NVIDIA UNIX Kernel Module  550.54  Tue\nGCC version:  12.2")
    assert cuda.driver.version() == "550.54"
    file.unlink()
    nvml.nvmlInit.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert cuda.driver.version() is None


def test_a_cards_power_limit_is_part_of_the_environment(nvml, monkeypatch):
    properties = SimpleNamespace(uuid="0123", name="H200", major=9, minor=0, total_memory=1 << 37)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _index: properties)
    nvml.nvmlDeviceGetPowerManagementLimit.return_value = 700_000  # milliwatts
    assert Cuda(fuses=False).describe()["power_limit_w"] == 700.0
    nvml.nvmlDeviceGetPowerManagementLimit.side_effect = pynvml.NVMLError_NotSupported()
    assert Cuda(fuses=False).describe()["power_limit_w"] is None


@pytest.mark.parametrize(
    ("variables", "warned"),
    [
        ({}, {}),
        ({"CUDA_LAUNCH_BLOCKING": "0"}, {}),
        ({"CUDA_LAUNCH_BLOCKING": ""}, {}),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, dict.fromkeys(("fp32", "tf32", "bf16"), "launch_blocking")),
        ({"NVIDIA_TF32_OVERRIDE": "0"}, {"tf32": "tf32_overruled"}),
        ({"NVIDIA_TF32_OVERRIDE": "1"}, {}),
    ],
)
def test_variables_that_overrule_a_run_are_warned_of(variables, warned):
    for dtype in (Fp32(), Tf32(), Bf16()):
        found = {caveat.code: caveat for caveat in Cuda().overruled(dtype, variables)}
        assert set(found) == {warned[dtype.name]} if dtype.name in warned else not found
        assert all(name in c.message for name in variables for c in found.values())
        assert list(Cpu().overruled(dtype, variables)) == []


def test_a_processor_that_may_multiply_in_a_shorter_format_is_warned_of():
    """Seen to fail: nothing was said, and its outputs could become the reference of other runs.

    int8 and autocast, which hold weights in fp32 and multiply otherwise, were warned as well.
    """
    for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"):
        (caveat,) = Cpu().overruled(Fp32(), {name: "BF16"})
        assert caveat.message.startswith(f"{name}=BF16 is set")
        assert not list(Cpu().overruled(Fp32(), {name: "strict"}))
        for dtype in (Bf16(), Int8(), Bf16Autocast()):
            assert not list(Cpu().overruled(dtype, {name: "BF16"}))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux binds threads")
def test_cores_that_threads_are_bound_to_are_counted_together():
    """Seen to fail: one core, the one that OpenMP bound the main thread to."""
    counting = (
        "import torch; from bert_infer.machine import cores_allowed;"
        "torch.ones(4096, 4096).sum(); print(cores_allowed())"
    )
    bound = os.environ | {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    bound.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", counting]
    done = subprocess.run(command, env=bound, capture_output=True, text=True, check=True)
    physical = psutil.cpu_count(logical=False) or 1
    assert int(done.stdout) >= min(physical, len(os.sched_getaffinity(0)))


def test_variables_that_are_set_are_recorded(monkeypatch):
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    recorded = environment.describe(Cpu())["variables"]
    assert recorded["CUDA_LAUNCH_BLOCKING"] == "1"
    assert "LD_PRELOAD" not in recorded
    card = replace(finished(), environment={"variables": recorded, "threads": {"intra_op": 1}})
    card.environment["device"] = {}
    card.prepared = replace(card.prepared, device=Cuda())
    assert "launch_blocking" in {w["code"] for w in metrics.of(card)["warnings"]}


@pytest.fixture
def driver(monkeypatch):
    """A machine that seems to have a GPU, and a build of torch for CUDA 13.0."""
    monkeypatch.setattr(cuda.driver, "is_here", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cuda.driver.unusable.cache_clear()
    yield
    cuda.driver.unusable.cache_clear()


TOO_OLD = "CUDA initialization: The NVIDIA driver on your system is too old (found version 12020)."


@pytest.mark.usefixtures("driver")
def test_a_driver_too_old_for_torch_is_one_message_with_a_remedy(nvml, monkeypatch, caplog):
    """Seen to fail: torch's own warning, which it gives once, and asked again says nothing."""
    nvml.nvmlSystemGetCudaDriverVersion_v2.return_value = 12020
    said = [TOO_OLD + "\nPlease update."]

    def is_available():
        if said:
            warnings.warn(said.pop(), stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    for _ in range(2):
        with pytest.raises(RefusedError) as refused:
            compose(["model=tiny", "device=cuda"]).prepare()
        assert TOO_OLD in refused.value.message
        assert "is built for CUDA 13.0" in refused.value.message
        assert "serves 12.2" in refused.value.message
        assert "Update the driver" in refused.value.remedy
        assert "\n" not in refused.value.message
    assert isinstance(auto.Auto().resolve(), Cpu)
    assert isinstance(auto.Auto().resolve(), Cpu)
    (told,) = caplog.records
    assert "device=auto takes the CPU" in told.getMessage()


@pytest.mark.usefixtures("driver")
def test_without_a_card_or_with_another_index_cuda_is_refused(nvml, monkeypatch):
    nvml.nvmlSystemGetCudaDriverVersion_v2.return_value = 13000
    with pytest.raises(RefusedError, match="the driver has none"):
        Cuda().check()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    nvml.nvmlDeviceGetCount.return_value = 0
    cuda.driver.unusable.cache_clear()
    with pytest.raises(RefusedError, match="the driver has none"):
        Cuda().check()
    nvml.nvmlDeviceGetCount.return_value = 1
    for visible in ("", "7"):
        cuda.driver.unusable.cache_clear()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(
            RefusedError, match=f"CUDA_VISIBLE_DEVICES='{visible}' leaves"
        ) as hidden:
            Cuda().check()
        assert hidden.value.remedy.startswith("Unset CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    cuda.driver.unusable.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RefusedError, match="is built without CUDA"):
        Cuda().check()
    cuda.driver.unusable.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", "sm_90".split)
    with pytest.raises(RefusedError, match=r"device.index=2 is refused: .* 0 to 1"):
        Cuda(index=2).check()
    Cuda(index=1).check()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with pytest.raises(RefusedError, match=r"0 to 1 with CUDA_VISIBLE_DEVICES=2,3"):
        Cuda(index=2).check()
    assert isinstance(auto.Auto().resolve(), Cuda)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("capability", "built_for", "is_served"),
    [
        ((7, 0), "sm_75 sm_80 sm_90 sm_100 sm_120 compute_120", False),
        ((8, 9), "sm_75 sm_80 sm_86 sm_90", True),
        ((8, 0), "sm_75 sm_86 sm_90", False),
        ((10, 0), "sm_90 sm_120", False),
        ((12, 1), "sm_90 compute_120", True),
        ((9, 0), "sm_80 sm_90a", True),
    ],
)
def test_a_card_that_torch_has_no_kernels_for_is_refused(
    capability, built_for, is_served, monkeypatch, caplog
):
    """Seen to fail: taken, and the run ends with "no kernel image is available"."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", built_for.split)
    if is_served:
        Cuda().check()
        assert isinstance(auto.Auto().resolve(), Cuda)
        return
    with pytest.raises(RefusedError, match="has no kernels for GPU 0") as refused:
        compose(["model=tiny", "device=cuda"]).prepare()
    assert "Install a build of torch" in refused.value.remedy
    assert isinstance(auto.Auto().resolve(), Cpu)
    (told,) = caplog.records
    assert "device=auto takes the CPU" in told.getMessage()
    assert "has no kernels" in told.getMessage()


@pytest.mark.usefixtures("driver")
def test_a_card_older_than_inductor_serves_gets_no_compiled_layers(monkeypatch):
    """Seen to fail: is_possible() alone, and the first layer ends the run."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_arch_list", "sm_61 sm_70".split)
    monkeypatch.setattr(cuda.fusing, "is_possible", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (7, 0))
    assert Cuda().compiles_regions
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (6, 1))
    assert not Cuda().compiles_regions
    with pytest.raises(RefusedError, match=r"device.fuses=true is refused: .* older than Volta"):
        Cuda(fuses=True).check()


@pytest.mark.usefixtures("driver")
def test_compiling_is_refused_where_inductor_would(monkeypatch):
    """Seen to fail: it was taken, and the run ended once the weights were loaded."""
    monkeypatch.setattr(cuda.fusing, "is_possible", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (7, 0))
    Cuda().check_graph(Compile())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: (6, 1))
    with pytest.raises(RefusedError, match=r"graph=compile is refused: .* older than Volta"):
        Cuda().check_graph(Compile())
    Cuda().check_graph(CudaGraphs())


def test_an_older_drivers_name_for_throttling_is_asked_too(nvml):
    """Seen to fail: no reason, whatever held the clock down."""
    nvml.nvmlDeviceGetCurrentClocksEventReasons.side_effect = pynvml.NVMLError(
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    )
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons.return_value = (
        pynvml.nvmlClocksEventReasonSwPowerCap
    )
    assert Cuda().reading().throttled == ("power cap",)


def test_what_nvml_cannot_say_is_unknown(nvml):
    nvml.nvmlDeviceGetPowerUsage.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
    nvml.nvmlDeviceGetClockInfo.return_value = 1
    nvml.nvmlDeviceGetTemperature.return_value = 1
    assert set(Cuda().reading().gauges) == {"sm_clock_mhz", "memory_clock_mhz", "temperature_c"}
    nvml.nvmlDeviceGetTotalEnergyConsumption.side_effect = nvml.nvmlDeviceGetPowerUsage.side_effect
    assert Cuda().reading().counters is None
    nvml.nvmlInit.side_effect = pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert Cuda().reading().processes == ()
    assert Cuda().reading().throttled == ()
    assert Cuda().reading().throttled_s == {}
    assert Cuda().reading().gauges == {}
