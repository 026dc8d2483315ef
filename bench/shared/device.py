"""device: what processes have of the memory of NVIDIA's devices."""

import shutil
import subprocess
from collections.abc import Sequence


def on_device(pids: Sequence[int]) -> int:
    """Bytes of these processes on NVIDIA's devices, as its driver counts them; 0 where there is none."""
    if shutil.which("nvidia-smi") is None:
        return 0
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    used = (tuple(map(int, line.split(","))) for line in lines)
    return sum(size << 20 for pid, size in used if pid in pids)
