"""bench/kernels.py where there is no GPU: its checks in the interpreter, and its refusal to time anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


def run(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "LAYERLOOM_KERNELS")}
    command = [sys.executable, str(BENCH / "kernels.py"), *options]
    env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True)


def test_checks_in_the_interpreter():
    done = run("--check-only", "--seed", "1", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    for op in ("compose", "assign", "paged_linear", "delta_linear", "paged_rms_norm", "paged_embedding"):
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(f"{op}: "))
        held, total = line.split()[1], line.split()[3]
        assert held == total and int(total) > 2, line


def test_without_a_gpu_it_says_so():
    done = run()
    assert done.returncode == 1
    assert done.stdout.startswith("there is no GPU here") and len(done.stdout.splitlines()) == 1
    assert not done.stderr


@pytest.mark.parametrize("matrix", ["gate_up", "down"])
def test_the_roofline_is_that_of_the_notes(matrix, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    from shared.roofline import LLAMA_8B, decode, delta_bytes, linear

    assert round(LLAMA_8B.numbers / 1e6) == 218
    extra = {codec: 9 * sum(delta_bytes(codec, n, k) for n, k in LLAMA_8B.matrices.values()) / 1e9 for codec in CODECS}
    assert {codec: round(gigabytes, 2) for codec, gigabytes in extra.items()} == CODECS
    n, k = LLAMA_8B.matrices[matrix]
    assert linear(1, n, k, 4).bytes > 4 * 2 * n * k
    one = decode(LLAMA_8B, 64, 1, "dense").bytes
    assert 1.0 < decode(LLAMA_8B, 64, 8, "sign").bytes / one < 1.2
    assert 2.8 < decode(LLAMA_8B, 64, 8, "dense").bytes / one < 3.0


# GB of an extra language whose own layers are 9 of 32.
CODECS = {"dense": 3.93, "int8": 1.99, "int4": 1.01, "sign": 0.25}
