"""The numerics of layerloom: tensors in, tensors out, nothing else known."""

from .compose import compose
from .paged_embedding import paged_embedding
from .paged_linear import paged_linear
from .paged_rms_norm import paged_rms_norm, paged_rows, rms_norm
from .route import Route, by_page

__all__ = [
    "Route",
    "by_page",
    "compose",
    "paged_embedding",
    "paged_linear",
    "paged_rms_norm",
    "paged_rows",
    "rms_norm",
]
