"""standalone: layerloom.kernels from this repository, installed or not, with nothing but torch and triton."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

KERNELS = Path(__file__).resolve().parents[2] / "kernels"


def find_kernels() -> None:
    """Makes `import layerloom.kernels` mean the folder kernels/ beside this one, for this process."""
    package = ModuleType("layerloom")
    package.__path__ = []
    spec = importlib.util.spec_from_file_location(
        "layerloom.kernels", KERNELS / "__init__.py", submodule_search_locations=[str(KERNELS)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules |= {"layerloom": package, "layerloom.kernels": module}
    package.kernels = module  # type: ignore[attr-defined]
    spec.loader.exec_module(module)
