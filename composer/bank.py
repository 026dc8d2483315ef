"""bank: the pages in the engine's memory, one for every (part of the model, blend) in use."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch

from layerloom.kernels import compose

from .errors import ComposeError
from .family import Family
from .plan import KINDS, Blend, LayerBlend, Plan

Part = int
"""A decoder layer by its index; the stem is the part whose index is the number of layers."""


DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class Engine(Protocol):
    """What the bank asks of the engine whose layout pages have."""

    def size(self, part: Part) -> int:
        """How many numbers the part's parameters are (this rank's shard): the length of its flat page."""

    def fill(self, part: Part, flat: torch.Tensor, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Writes Hugging Face tensors of that part over all of `flat`, in the engine's own fused layout."""

    def spans(self, part: Part, kind: str) -> Sequence[tuple[int, int]]:
        """The [start, end) ranges of `flat` that hold that part's parameters of one kind (see plan.KINDS)."""

    def seal(self, part: Part, flat: torch.Tensor) -> Any:
        """The page the engine computes with, in the dtype it computes in; it keeps nothing of `flat`."""

    def base_page(self, part: Part) -> Any:
        """The page of the base, which the engine has loaded itself."""


class Bank:
    """Assembles the pages a plan needs and shares the ones two compositions have in common.

    A page lives as long as a composition that uses it: whoever calls `pages` holds them.
    """

    def __init__(self, family: Family, engine: Engine) -> None:
        self.family = family
        self.engine = engine
        self._scratch: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}
        self._dtypes = [self._dtype(part) for part in range(family.depth + 1)]
        self._pages: WeakValueDictionary[tuple[Part, LayerBlend], Any] = WeakValueDictionary()

    def __len__(self) -> int:
        """Assembled pages now in memory, the base's not counted."""
        return len(self._pages)

    def pages(self, plan: Plan) -> tuple[Any, ...]:
        """One page per layer, then the stem's. Raises ComposeError, leaving nothing behind, if one cannot be made."""
        parts = [*plan.layers, LayerBlend.all(plan.stem)]
        try:
            return tuple(self._page(part, blend) for part, blend in enumerate(parts))
        finally:
            self._scratch.clear()

    def _names(self, part: Part, source: str = "base") -> Sequence[str]:
        checkpoint = self.family.checkpoint(source)
        return checkpoint.stem if part == self.family.depth else checkpoint.layer(part)

    def _dtype(self, part: Part) -> torch.dtype:
        """The dtype blends are rounded to: the checkpoint's, whatever the engine then computes in."""
        of: dict[str, str] = {self.family.base.tensors[name].dtype: name for name in self._names(part)}
        if len(of) != 1 or next(iter(of)) not in DTYPES:
            found = ", ".join(f"{name} is {dtype}" for dtype, name in of.items())
            raise ComposeError(f"a page has one dtype, of {', '.join(DTYPES)}, but in {self.family.base.path} {found}")
        return DTYPES[next(iter(of))]

    def _page(self, part: Part, blend: LayerBlend) -> Any:
        if blend.uniform == ():
            return self.engine.base_page(part)
        page = self._pages.get((part, blend))
        if page is None:
            page = self._pages[part, blend] = self.engine.seal(part, self._assemble(part, blend))
        return page

    def _assemble(self, part: Part, blend: LayerBlend) -> torch.Tensor:
        flats: dict[str, torch.Tensor] = {}

        def flat(source: str) -> torch.Tensor:
            if source not in flats:
                flats[source] = self._buffer(len(flats), part)
                checkpoint = self.family.checkpoint(source)
                named = ((name, checkpoint.read(name)) for name in self._names(part, source))
                self.engine.fill(part, flats[source], named)
            return flats[source]

        def blended(mix: Blend, span: slice) -> None:
            weights = [weight for _, weight in mix]
            base = None if sum(weights) == 1.0 else flat("base")[span]
            compose(out[span], base, [flat(expert)[span] for expert, _ in mix], weights)

        # In place: a span is written once, and only what is read for it is overwritten.
        out = flat(next((expert for kind in KINDS for expert, _ in blend.of(kind)), "base"))
        if blend.uniform is not None:
            blended(blend.uniform, slice(None))
        else:
            for kind in KINDS:
                for start, end in self.engine.spans(part, kind):
                    blended(blend.of(kind), slice(start, end))
        return out

    def _buffer(self, number: int, part: Part) -> torch.Tensor:
        """A buffer for the part; parts of one size use it in turn, because fresh memory costs more than the work."""
        size, dtype = self.engine.size(part), self._dtypes[part]
        key = (number, size, dtype)
        if key not in self._scratch:
            self._scratch[key] = torch.empty(size, dtype=dtype)
        return self._scratch[key]
