"""machine: what a machine has to serve with: cores, memory, and places to write to."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from .findings import FINE, NOTE, STOP, Finding, gigabytes

CGROUP = Path("/sys/fs/cgroup")
SHARED = Path("/dev/shm")
LITTLE_SHARED = 200_000_000
"""Bytes that vLLM's queues between processes take, about."""
FAST = ("avx512_vnni", "avx512_bf16", "amx_tile", "avx512", "avx2")


def look_at_machine(vllm: dict[str, Any]) -> list[Finding]:
    """`vllm` is what it says of the device."""
    gpus = vllm.get("gpus", [])
    found = [Finding(FINE, "GPU", f"{gpu['name']}, {gigabytes(gpu['bytes'])}") for gpu in gpus]
    total, free = memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found.append(Finding(FINE, "CPU", f"{cores} cores, {', '.join(features()) or 'no vector instructions known'}"))
    if vllm.get("device") == "cpu":
        found += look_at_cpu()
    found.append(Finding(FINE, "memory", f"{gigabytes(free)} free of {gigabytes(total)}"))
    with suppress(OSError):
        shared = os.statvfs(SHARED)
        room = shared.f_bavail * shared.f_frsize
        if room < LITTLE_SHARED:
            text = f"{SHARED} has {gigabytes(room)}, too little for several processes"
            found.append(Finding(STOP, "memory", text, "in a container: --shm-size=1g, or --ipc=host"))
    return found + look_at_places()


def look_at_cpu() -> list[Finding]:
    found = []
    if "avx512" not in features():
        text = "without AVX-512: vLLM is slow on it, and some of its builds do not start"
        found.append(Finding(NOTE, "CPU", text, "expect a few tokens per second, or use another machine"))
    preloaded = os.environ.get("LD_PRELOAD", "")
    missing = [name for name in ("libtcmalloc", "libiomp") if name not in preloaded]
    if missing:
        text = f"{' and '.join(missing)} not in LD_PRELOAD, with which vLLM is faster"
        found.append(Finding(NOTE, "CPU", text, "see `set LD_PRELOAD` in vLLM's guide to installing on a CPU"))
    return found


def features() -> list[str]:
    """Those of the CPU that count here, as torch knows them."""
    import torch

    ask = {
        "avx512": torch.cpu._is_avx512_supported,
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported,
        "avx512_vnni": torch.cpu._is_vnni_supported,
        "amx_tile": torch.cpu._is_amx_tile_supported,
        "avx2": torch.cpu._is_avx2_supported,
    }
    return [name for name in FAST if ask[name]()]


def memory() -> tuple[int, int]:
    """Bytes that there are and that are free, for this container where it is one."""
    import psutil

    here = psutil.virtual_memory()
    total, free = here.total, here.available
    with suppress(OSError, ValueError):
        most = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        total, free = min(total, most), min(free, most - used)
    return total, free


def look_at_places() -> list[Finding]:
    from layerloom.composer.sources.remembered import cache_directory

    cache = Path(os.environ.get("VLLM_CACHE_ROOT", "~/.cache/vllm")).expanduser()
    places = {"temporary files": Path(tempfile.gettempdir()), "vLLM's cache": cache}
    with suppress(OSError, RuntimeError):
        places["fingerprints of files"] = cache_directory()
    found = []
    for what, place in places.items():
        reason = unwritable(place)
        if reason:
            level = STOP if what == "temporary files" else NOTE
            found.append(Finding(level, "files", f"{what}: {place}: {reason}", "free some room, or make it writable"))
    return found or [Finding(FINE, "files", f"caches can be written: {', '.join(map(str, places.values()))}")]


def unwritable(place: Path) -> str | None:
    """Why nothing can be written there, or in the first folder above that there is."""
    while not place.exists():
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"x" * 4096)
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None
