"""Makes `pico` importable from every folder of tests; quiet, offline, and in an order that keeps two workers busy.

Under xdist (`--dist loadscope`) the tests of a file go to one worker, so that what its fixtures start is started once.
Its marks for groups do nothing with pytest 9.2, so its scheduler is told here.
"""

import os

# Before torch is imported: threads of two workers that wait for each other on two cores cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# It goes before the option that says how large a KV cache is; a gigabyte for each of the small engines takes long.
os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)

from pathlib import Path
from typing import Any

import pytest

# The files of tests that share nothing that is slow to make: each test may go anywhere.
SPREAD = (
    "test_parity",
    "test_nested_models",
    "test_arena_pages",
    "test_second_runner",
    "test_faults",
    "test_interpreted",
    "test_resources",
)
# Files whose tests ask the same servers.
TOGETHER = dict.fromkeys(
    (
        "test_auto",
        "test_chat",
        "test_clients",
        "test_client_proxy",
        "test_client_snippets",
        "test_evaluate",
        "test_routes",
        "test_refusals",
        "test_series",
        "test_living_family",
        "test_studio",
        "test_studio_many",
        "test_studio_recipes",
        "test_studio_routes",
    ),
    "test_http",
)
# What takes long first: what is short fills the gaps at the end.
FIRST = (
    "test_http",
    *TOGETHER,
    "test_residency",
    "test_parity",
    "test_nested_models",
    "test_faults",
    "test_several_servers",
)
FOLDERS = ("server", "kernels", "composer", "docs")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def rank(item: pytest.Item) -> tuple[int, int]:
        folder, stem = item.path.relative_to(HERE).parts[0], item.path.stem
        return FOLDERS.index(folder), FIRST.index(stem) if stem in FIRST else len(FIRST)

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            stem = Path(nodeid.partition("::")[0]).stem
            return nodeid if stem in SPREAD else TOGETHER.get(stem, stem)

    return ByFile(config, log) if config.getvalue("dist") == "loadscope" else None
