"""The machine and the software that a run had."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_infer import cgroup, machine
from bert_infer.measuring.measure import describe_clock

if TYPE_CHECKING:
    from bert_infer.devices import Device

_PACKAGES = (
    "bert-infer",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface-hub",
    "hydra-core",
    "omegaconf",
    "numpy",
    "pyarrow",
    "scipy",
)
_VARIABLES = (
    *("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"),
    *("MKL_NUM_THREADS", "KMP_AFFINITY", "KMP_BLOCKTIME"),
    *("OMP_DYNAMIC", "OMP_WAIT_POLICY", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR"),
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE"),
    *("DNNL_MAX_CPU_ISA", "DNNL_DEFAULT_FPMATH_MODE"),  # oneDNN takes its former names, too
    *("LD_PRELOAD", "MALLOC_CONF"),
    *("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_DEVICE_MAX_CONNECTIONS"),
    *("CUDA_LAUNCH_BLOCKING", "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", "CUBLAS_WORKSPACE_CONFIG"),
    *("NVIDIA_TF32_OVERRIDE", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
    *("TORCHINDUCTOR_MAX_AUTOTUNE", "TORCHINDUCTOR_FREEZING", "TRITON_DEFAULT_FP_FUSION"),
)
"""Variables that change what is computed, or how fast; those that are set are recorded."""


def describe(device: Device) -> dict[str, Any]:
    """Return the content of environment.json; what cannot be read is None."""
    import torch

    return {
        "software": {"python": platform.python_version()}
        | {p: machine.package_version(p) for p in _PACKAGES},
        "os": platform.platform(),
        "cpu": _cpu(),
        "threads": {
            "intra_op": torch.get_num_threads(),
            "inter_op": torch.get_num_interop_threads(),
        },
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "device": {"kind": device.name} | device.describe(),
        "measurement": describe_clock(),
        "git_commit": _git_commit(),
    }


def lasting(environment: dict[str, Any]) -> dict[str, Any]:
    """Return ``environment`` without the conditions, which belong to one run alone."""
    return {key: value for key, value in environment.items() if key != "conditions"}


def different_leaves(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Return a line for each leaf of nested mappings that differs."""
    a, b = flattened(first), flattened(second)
    return [
        f"{key}: {a.get(key)} | {b.get(key)}"
        for key in sorted({*a, *b})
        if a.get(key) != b.get(key)
    ]


def flattened(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= flattened(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def digest(content: object) -> str:
    """Return the SHA-256 of ``content`` as canonical JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _cpu() -> dict[str, Any]:
    return {
        "model": machine.cpu_model(),
        "flags": sorted(machine.cpu_flags()),
        "cores": os.cpu_count(),
        "cores_allowed": machine.cores_allowed(),
        "quota_cores": cgroup.cores(),
        "governor": machine.governor(),
        "memory_bytes": machine.memory_bytes(),
    }


@cache
def _git_commit() -> str | None:
    """Return the checkout's commit, "-dirty" when it has changes; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            [  # noqa: S607  git is where the user's PATH has it
                "git",
                "-C",
                str(root),
                "describe",
                "--always",
                "--abbrev=40",
                "--dirty",
                "--exclude=*",
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
