"""What a container's control group grants, on files as the kernel writes them and on a real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import QUICK, ROOT

from bert_infer import cgroup, compose
from bert_infer.errors import OptionError
from bert_infer.machine import cores_allowed


@pytest.fixture
def granted(monkeypatch, tmp_path):
    """Return a function that writes which groups this process is in, and their files."""
    monkeypatch.setattr(cgroup, "TABLE", tmp_path / "cgroup")
    monkeypatch.setattr(cgroup, "ROOT", tmp_path)

    def write(table, files):
        for name, content in {"cgroup": table, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n" if content else "")

    return write


VERSION_1 = {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("table", "files", "cores", "memory"),
    [
        ("0::/", {"cpu.max": "150000 100000", "memory.max": "4096"}, 1.5, 4096),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, None, None),
        ("0::/a/b", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, 0.5, None),
        ("0::/../..", {"cpu.max": "50000 100000"}, 0.5, None),
        ("4:memory:/x\n1:cpu:/on/the/host\n0::/", VERSION_1, 1.5, None),
        ("1:cpu:/", VERSION_1 | {"cpu/cpu.cfs_quota_us": "-1"}, None, None),
        ("2:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None, None),
        ("2:memory:/", {"memory/memory.limit_in_bytes": "4096"}, None, 4096),
        ("", {}, None, None),
    ],
)
def test_limits_of_both_versions(granted, table, files, cores, memory):
    granted(table, files)
    assert cgroup.cores() == cores
    assert cgroup.memory_bytes() == memory


def test_a_quota_counts_its_periods_and_rounds_down(granted):
    files = {"cpu.max": "150000 100000", "cpu.stat": "nr_periods 40\nnr_throttled 10"}
    granted("0::/", files)
    assert cgroup.periods() == {"nr_periods": 40, "nr_throttled": 10}
    assert cores_allowed() == 1
    granted("0::/", {"cpu.max": "1000 100000"})
    assert cores_allowed() == 1
    granted("0::/", {"cpu.max": "max 100000"})
    assert cgroup.periods() == {}
    assert cores_allowed() == len(os.sched_getaffinity(0))


def test_outputs_that_outgrow_the_limit_are_refused(granted):
    granted("0::/", {"memory.max": str(64 << 20)})
    for batch, says in ((150_000, "fill this machine's memory"), (10**7, "of this text in")):
        with pytest.raises(OptionError, match=says):
            compose(["model=tiny", f"batch={batch}"]).prepare()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_threads_that_openmp_binds_are_as_many_as_without():
    """Seen to fail: one, as the only thread by then was bound to a core of its own."""
    threads = (
        "import torch; from bert_infer.devices.cpu import Cpu\n"
        "with Cpu().active(): print(torch.get_num_threads())"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    found = {
        subprocess.run(
            [sys.executable, "-c", threads],
            env=environment | binding,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for binding in ({}, {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"})
    }
    assert len(found) == 1


@pytest.fixture
def of_half_a_core():
    """Yield the directory of a group that may have half the time of a core."""
    mount, name = cgroup.ROOT / "cpu", f"bert_infer_{os.getpid()}"
    group, quota = (
        (mount / name, {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "50000"})
        if mount.is_dir()
        else (cgroup.ROOT / name, {"cpu.max": "50000 100000"})
    )
    try:
        group.mkdir()
        for file, content in quota.items():
            (group / file).write_text(content)
    except OSError as error:
        with suppress(OSError):
            group.rmdir()
        pytest.skip(f"no quota can be set here: {error}")
    yield group
    group.rmdir()


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_in_a_container_with_a_quota_threads_do_not_wait_for_one_another(of_half_a_core, tmp_path):
    """Seen to fail: as many threads as cores, and no word of what they waited for."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}

    def run(*overrides):
        done = subprocess.run(
            [sys.executable, ROOT / "run.py", *QUICK, "hydra.run.dir=run", *overrides],
            cwd=tmp_path,
            env=environment,
            preexec_fn=lambda: (of_half_a_core / "cgroup.procs").write_text(str(os.getpid())),
            check=True,
            capture_output=True,
            timeout=100,
        )
        assert not done.stderr
        records = [Path(tmp_path, "run", f"{n}.json") for n in ("environment", "metrics")]
        environment_json, metrics = (json.loads(path.read_text()) for path in records)
        for path in records:
            path.unlink()
        codes = {warning["code"] for warning in metrics["warnings"]}
        return environment_json, codes & {"cpu_quota", "more_threads_than_cores"}

    default, _ = run()
    assert default["threads"]["intra_op"] == 1
    assert default["cpu"]["quota_cores"] == 0.5
    until = ("until.relative_ci=0.000001", "until.max_s=1")
    two, warned = run("device=cpu", "device.threads=2", "batch=64", *until)
    assert two["threads"]["intra_op"] == 2
    assert two["conditions"]["quota_used_up"] > 0.1
    assert warned == {"cpu_quota", "more_threads_than_cores"}
