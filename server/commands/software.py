"""software: whether what is installed can serve. vLLM is looked at by a process of its own, which may break."""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, requires
from importlib.util import find_spec
from typing import Any

from packaging.requirements import Requirement

from layerloom.server.versions import PACKAGES, installed, trouble_with_vllm, vllm_plugins, vllm_version

from .findings import FINE, NOTE, STOP, Finding

SHOWN = ("torch", "transformers", "triton", "numba")
GROUPS = ("vllm.general_plugins", "vllm.endpoint_plugins")
PROBE = """
import json, logging, os, sys
logging.disable(logging.CRITICAL)
from layerloom.server.options import prepare_environment
prepare_environment()
import vllm.engine.arg_utils
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS
from vllm.platforms import current_platform as here
devices = []
if here.is_cuda_alike():
    import torch
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "device": here.device_type or "",
    "registered": "layerloom" in QUANTIZATION_METHODS,
    "gpus": [{"name": device.name, "bytes": device.total_memory} for device in devices],
}))
"""
PATIENCE = 180
"""Seconds for vLLM to be imported."""


def versions() -> dict[str, str | None]:
    return {
        "layerloom": installed("layerloom"),
        "python": platform.python_version(),
        "vllm": vllm_version(),
        **{name: installed(name) for name in SHOWN},
    }


def look_at_software() -> tuple[list[Finding], dict[str, Any]]:
    """What there is to say, and what vLLM says of the device; nothing where it does not start."""
    found = [Finding(FINE, "versions", ", ".join(f"{name} {version or '-'}" for name, version in versions().items()))]
    trouble = trouble_with_vllm()
    if trouble:
        return [*found, Finding(STOP, "vLLM", *trouble.split(": ", 1))], {}
    found += look_at_torch()
    missing = [group for group in GROUPS if "layerloom" not in {point.name for point in entry_points(group=group)}]
    if missing:
        text = f"vLLM cannot find layerloom: it is not registered in {', '.join(missing)}"
        found.append(Finding(STOP, "plugin", text, "install layerloom with pip: from a checkout, pip install -e ."))
    found += look_at_names()
    said = probe()
    if "error" in said:
        return [
            *found,
            Finding(STOP, "vLLM", said["error"], "install it anew; what fails: python -c 'import vllm'"),
        ], {}
    if not said["registered"] and not missing:
        found.append(Finding(STOP, "plugin", "vLLM does not load layerloom", "look at VLLM_PLUGINS"))
    if not said["device"]:
        text = "vLLM finds no device that it is built for"
        found.append(Finding(STOP, "device", text, "install vLLM's CPU build, or a driver for the GPU"))
    return found, said


def look_at_torch() -> list[Finding]:
    """Packages that must fit each other and may not, and break transformers then."""
    found = []
    package = next(name for name in PACKAGES if installed(name))
    for name, version in wanted_of(package).items():
        here = installed(name)
        if here and name == "torch" and not version.specifier.contains(here, prereleases=True):
            text = f"vLLM {vllm_version()} is built for torch{version.specifier}, and {here} is installed"
            found.append(Finding(STOP, "torch", text, f"pip install 'torch{version.specifier}'"))
    for name in ("torchvision", "torchaudio"):
        if find_spec(name) is None:
            continue
        command = [sys.executable, "-c", f"import {name}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            text = f"{name} {installed(name)} does not fit torch {installed('torch')}: {last_line(done.stderr)}"
            found.append(Finding(STOP, name, text, f"pip uninstall {name}, or install the one built for this torch"))
    return found


def wanted_of(package: str) -> dict[str, Requirement]:
    try:
        wanted = [Requirement(text) for text in requires(package) or ()]
    except PackageNotFoundError:
        return {}
    return {each.name: each for each in wanted if each.marker is None or each.marker.evaluate()}


def look_at_names() -> list[Finding]:
    given = os.environ.get("VLLM_PLUGINS")
    if given is None:
        return []
    known = vllm_plugins()
    asked = {name.strip() for name in given.split(",") if name.strip()}
    text = f"VLLM_PLUGINS is {given}"
    if asked - known:
        return [Finding(NOTE, "plugin", f"{text}: there is no {', '.join(sorted(asked - known))}", "unset it")]
    left_out = sorted(known - asked - {"layerloom"})
    if left_out:
        return [Finding(NOTE, "plugin", f"{text}: leaves out {', '.join(left_out)}", "unset it, if that is not meant")]
    return [Finding(FINE, "plugin", text)]


def probe() -> dict[str, Any]:
    """What vLLM says of the machine: device, gpus, registered; or error."""
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode == 0:
            return dict(json.loads(done.stdout.splitlines()[-1]))
        return {"error": f"it cannot be imported: {last_line(done.stderr)}"}
    except subprocess.TimeoutExpired:
        return {"error": f"it was not imported within {PATIENCE} s"}


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no reason is given")
