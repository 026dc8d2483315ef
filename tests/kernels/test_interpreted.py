"""The Triton kernels against their torch twins: in a process of their own, whose Triton interprets on the CPU."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("file", sorted(HERE.glob("interpreted_*.py")), ids=lambda file: file.stem)
def test_in_the_interpreter(file):
    command = [sys.executable, "-m", "pytest", str(file), "-p", "no:cacheprovider"]
    env = {**os.environ, "TRITON_INTERPRET": "1", "LAYERLOOM_KERNELS": "triton"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout, done.stdout
