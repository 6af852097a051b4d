"""A built wheel works in an environment of its own, away from the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv

from conftest import QUICK, ROOT


def test_the_wheel_runs_outside_the_repository(tmp_path):
    built = tmp_path / "dist"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)],
        cwd=ROOT,
        check=True,
    )
    (wheel,) = built.glob("*.whl")
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    bin_ = environment / ("Scripts" if os.name == "nt" else "bin")
    subprocess.run([bin_ / "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    # The dependencies are lent by this environment; installing torch again would take minutes.
    site = next((environment / "lib").glob("python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [bin_ / "bert-infer", *QUICK, "batch=2"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env=clean,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (metrics,) = elsewhere.rglob("metrics.json")
    assert json.loads(metrics.read_text())["status"] == "ok"
    done = subprocess.run(
        [bin_ / "bert-infer", "report", str(metrics.parent)],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env=clean,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (metrics.parent / "report.html").exists()
    where = subprocess.run(
        [bin_ / "python", "-c", "import bert_infer.configuration.options as o; print(o.CONF)"],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env=clean,
        check=True,
    ).stdout
    assert str(environment) in where
