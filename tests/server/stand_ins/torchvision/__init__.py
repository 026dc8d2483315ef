"""torchvision: what stands for it in tests: the registry's builds are for CUDA, and do not load beside a CPU's torch.

vLLM imports it with every class that has a vision tower. Nothing of it is called where there are no images.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock


class Anything(Loader, MetaPathFinder):
    """Finds every module of torchvision, empty but for mocks."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.startswith(f"{__name__}.") else None

    def exec_module(self, module: ModuleType) -> None:
        module.__getattr__ = mocked


def mocked(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return MagicMock(name=name)


__version__ = "0.28.0"
__getattr__ = mocked
sys.meta_path.insert(0, Anything())
