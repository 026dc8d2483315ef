"""The numerics of layerloom: tensors in, tensors out, nothing else known."""

# Where a checkout is on the path it hides Hugging Face's package of this name, and transformers imports that to see its
# version: then there is nothing here.
if __name__ == "layerloom.kernels":
    from .assign import assign, buffers
    from .compose import compose
    from .delta_linear import delta_linear
    from .paged_embedding import paged_embedding
    from .paged_linear import paged_linear
    from .paged_rms_norm import paged_rms_norm, paged_rows, rms_norm
    from .route import Route, by_page
    from .tiles import Rows, Tiles

__all__ = [
    "Route",
    "Rows",
    "Tiles",
    "assign",
    "buffers",
    "by_page",
    "compose",
    "delta_linear",
    "paged_embedding",
    "paged_linear",
    "paged_rms_norm",
    "paged_rows",
    "rms_norm",
]
