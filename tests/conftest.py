"""Makes `pico` importable from every folder of tests; quiet, offline, and in an order that keeps two workers busy.

Under xdist the tests of a file go to one worker, so that what its fixtures start is started once. Two exceptions:

- `pytestmark = pytest.mark.spread`: the tests of this file share nothing that is slow to make; each may go anywhere.
- Whoever asks for a server of tests/server/conftest.py (`demo`, `pico`) goes where that server is.
"""

import os

# Before torch is imported: threads of two workers that wait for each other on two cores cost more than they bring.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest

# `started` makes `demo`. They stay until the run ends, so they come after the engines, whose memory is then free again.
SERVERS = ("started", "pico")
# Longest tests first: what is short fills the gaps at the end.
FOLDERS = ("server", "kernels", "composer")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "spread: each test of this file may run on another worker")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.pluginmanager.hasplugin("xdist"):
        return
    groups = {item: group(item) for item in items}
    items.sort(key=lambda item: rank(item, groups[item]))
    for item, name in groups.items():
        if name and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(name))


def group(item: pytest.Item) -> str | None:
    """What runs on one worker, in a row; None for a test of its own."""
    for server in SERVERS:
        if server in item.fixturenames:
            return server
    return None if item.get_closest_marker("spread") else f"{item.path.parent.name}/{item.path.stem}"


def rank(item: pytest.Item, name: str | None) -> tuple[int, int]:
    return FOLDERS.index(item.path.parent.name), SERVERS.index(name) + 1 if name in SERVERS else 0
