"""Every kernel compiles for every architecture, spills nothing and has not grown: bench/kernel_resources.py says so."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "kernel_resources.py"


def test_resources():
    # A process of its own: one that has interpreted kernels cannot compile them.
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
