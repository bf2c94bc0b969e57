"""The command that a person with a GPU types, on next to nothing and without one."""

import json
import os
import subprocess
import sys

from helpers import REPOSITORY


def test_the_gpu_benchmark_takes_its_whole_way_on_a_processor(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--small", "--out", tmp_path / "gpu.json"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["against_the_processor"][0]["input gradient, relative error"] == 0
    assert {row[two] for row in found["against_itself"] for two in ("again", "graph and loop")} == {
        "the same to the bit"
    }
    steps = {row["training"]: row["PGD steps a sample"] for row in found["against_itself"]}
    assert 0 < steps["psat"] < 10 == steps["fat, noise, none stops"]  # else no rule was looked at
    cpu, device = found["one_epoch"]
    assert cpu == device
    assert all(row["images/s"] > 0 and row["x floor"] > 0 for row in found["speed"])
    assert found["verdicts"][0]["images whose verdict differs"] == 0 and found["memory"]
    assert "cut short" not in done.stdout
