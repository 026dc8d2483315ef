"""bank: the pages in the engine's memory, one for every (part of the model, blend) in use."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch

from layerloom.composer.family.family import Family
from layerloom.composer.family.plan import KINDS, LayerBlend, Plan, kind_of
from layerloom.composer.sources.adapter import Adapter
from layerloom.composer.sources.archive import Archive
from layerloom.composer.sources.codecs import DTYPES, Codec
from layerloom.kernels import compose
from layerloom.kernels.compose import left_by
from layerloom.kernels.delta import Delta, Dense, size

from .engine import Engine, Part, Read

Key = tuple[Part, LayerBlend, Codec | None]
"""What tells pages from each other; the codec is that of a page kept as deltas."""


@dataclass(frozen=True)
class Reserved:
    """The pages of a plan, one for each layer, then the stem's; and what those that are not made yet need beside."""

    plan: Plan
    keys: tuple[Key, ...]
    pages: tuple[Any, ...]
    spare: Sequence[Any]


class Bank:
    """Assembles the pages a plan needs and shares the ones two compositions have in common.

    A page lives as long as a composition that uses it: whoever has what `reserve` returned holds them. `before` is the
    bank of the family that this one takes the place of, on the same base: pages whose experts are the same bytes as
    before are shared with it.
    """

    def __init__(self, family: Family, engine: Engine, before: "Bank | None" = None) -> None:
        self.family = family
        self.engine = engine
        self._changed: dict[tuple[Part, str], bool] = {}
        """Whether an expert changes a part; asked for all compositions whenever one is added."""
        self._rounded = [self._kinds(part) for part in range(family.depth + 1)]
        self._dtypes = [self._dtype(part) for part in range(family.depth + 1)]
        self._pages: WeakValueDictionary[Any, Any] = WeakValueDictionary() if before is None else before._pages
        self._made: WeakSet[Any] = WeakSet() if before is None else before._made
        if before is not None:
            return
        named = {name: family.base.tensors[name] for part in range(family.depth + 1) for name in self._names(part)}
        engine.learn({n: torch.empty(t.shape, dtype=DTYPES[t.dtype], device="meta") for n, t in named.items()})

    def __len__(self) -> int:
        """Assembled pages now in memory, the base's not counted."""
        return len(self._made)

    def pages(self, plan: Plan) -> tuple[Any, ...]:
        """One page per layer, then the stem's. Raises ComposeError, leaving nothing behind, if one cannot be made."""
        reserved = self.reserve(plan)
        self.make(reserved)
        return reserved.pages

    def dtypes(self) -> set[torch.dtype]:
        """Those that pages are composed in."""
        return set(self._dtypes)

    def reserve(self, plan: Plan) -> Reserved:
        """The pages of a plan: what is not there yet has its room, and is to be made. Raises NoRoom."""
        pages, keys = [], self.keys(plan)
        for key in keys:
            part, blend, codec = key
            content = self._content(key)
            page = self.engine.base_page(part) if blend.uniform == () else self._pages.get(content)
            if page is None:
                page = self._pages[content] = self.engine.reserve(part, codec)
            pages.append(page)
        left = self._left(plan, pages)
        return Reserved(plan, tuple(keys), tuple(pages), self.engine.spare(self._beside(key for key, _ in left)))

    def is_made(self, reserved: Reserved) -> bool:
        return not self._left(reserved.plan, reserved.pages)

    def make(self, reserved: Reserved, stopped: Callable[[], bool] = lambda: False) -> int:
        """Makes the pages that are not, on any thread, but on one at a time; or not all, when it is `stopped`.

        Returns their bytes, 0 when it was stopped. Raises ComposeError; then none of them counts as made.
        """
        left = self._left(reserved.plan, reserved.pages)
        with self.engine.making():
            # The stem first, as it takes most memory while it is made.
            for key, page in reversed(left):
                for piece in self._pieces(key):
                    if stopped():
                        return 0
                    self._make(key, page, piece, reserved.spare)
        for _, page in left:
            self._made.add(page)
        return sum(self.bytes(key) for key, _ in left)

    def _left(self, plan: Plan, pages: Sequence[Any]) -> list[tuple[Key, Any]]:
        """What is not made of the pages of a plan."""
        keys = zip(self.keys(plan), pages, strict=True)
        return [(key, page) for key, page in keys if key[1].uniform != () and page not in self._made]

    def keys(self, plan: Plan) -> list[Key]:
        """The pages of a plan: one for each layer, then the stem's."""
        blends = [self._blend(part, blend) for part, blend in enumerate((*plan.layers, LayerBlend.all(plan.stem)))]
        return [(part, blend, self._kept(part, blend, plan)) for part, blend in enumerate(blends)]

    def _content(self, key: Key) -> tuple[Key, tuple[str, ...]]:
        """What a page holds: a key of this family, and the revisions of the experts in it."""
        experts = {expert for kind in KINDS for expert, _ in key[1].of(kind)}
        return key, tuple(self.family.checkpoint(expert).revision for expert in sorted(experts))

    def _blend(self, part: Part, blend: LayerBlend) -> LayerBlend:
        """The blend, or the base alone where it is one expert that changes nothing in this part."""
        return blend if blend.alone is None or self._changes(part, blend.alone) else LayerBlend.all(())

    def _changes(self, part: Part, expert: str) -> bool:
        if (part, expert) not in self._changed:
            ours, theirs = self.family.checkpoint(expert).tensors, self.family.base.tensors
            self._changed[part, expert] = any(ours[name] != theirs[name] for name in self._names(part))
        return self._changed[part, expert]

    def _kept(self, part: Part, blend: LayerBlend, plan: Plan) -> Codec | None:
        """The codec under which a layer is kept as deltas: when it is one expert's, and that is stored so."""
        if plan.residency != "delta" or blend.alone is None:
            return None
        codec = self._packing(part, blend.alone)
        return codec if codec is not None and self.engine.keeps_deltas(codec) else None

    def _packing(self, part: Part, expert: str) -> Codec | None:
        """The codec of a layer's matrices that can go to the engine as they are stored."""
        source = self.family.checkpoint(expert)
        if part == self.family.depth or not isinstance(source, Archive | Adapter):
            return None
        codec = source.packing(source.layer(part))
        return None if codec is None or self.engine.delta_bytes(part, codec) is None else codec

    def _names(self, part: Part, source: str = "base") -> Sequence[str]:
        checkpoint = self.family.checkpoint(source)
        return checkpoint.stem if part == self.family.depth else checkpoint.layer(part)

    def _kinds(self, part: Part) -> dict[str, torch.dtype]:
        """The dtype each kind of tensor is rounded to: the checkpoint's, whatever the engine then computes in."""
        return {kind_of(name): DTYPES[self.family.base.tensors[name].dtype] for name in self._names(part)}

    def _dtype(self, part: Part) -> torch.dtype:
        """The dtype a page is composed in: that of its tensors, or fp32 where they are of several."""
        dtypes = set(self._rounded[part].values())
        return next(iter(dtypes)) if len(dtypes) == 1 else torch.float32

    def _pieces(self, key: Key) -> Sequence[slice]:
        part, _, codec = key
        return [slice(0, 0)] if codec is not None else self.engine.pieces(part)

    def _make(self, key: Key, page: Any, piece: slice, spare: Sequence[Any]) -> None:
        """Reads what a piece of a page is made of, blends it, and gives it to the engine."""
        part, blend, codec = key
        if codec is not None:
            ((expert, _),) = blend.uniform or ()
            self.engine.put_deltas(page, self._read_deltas(part, expert, codec))
            return
        dtype, free = self._dtypes[part], iter(spare)

        def more() -> torch.Tensor:
            return self.engine.flat(next(free), dtype, piece.stop - piece.start)

        out = self.engine.in_place(page)[piece] if self.engine.makes_in_place(dtype) else more()
        flats: dict[str, torch.Tensor] = {}
        deltas: dict[str, list[Delta]] = {}
        for source, packing in self._sources(part, blend).items():
            if packing is None:
                # In place: a span is written once, and only what is read for it is overwritten.
                into = flats[source] = more() if flats else out
                self.engine.fill(part, piece, into, self._names(part, source), self._reading(source))
            else:
                host = self._read_deltas(part, source, packing)
                deltas[source] = self.engine.deltas(part, packing, next(free), host)
        under = flats.get("base", self.engine.base(part)[piece] if self.engine.keeps_base(dtype) else None)
        if blend.uniform is not None:
            runs = [size(delta) for delta in next(iter(deltas.values()), ())]
            experts = [deltas[e] if e in deltas else cut(flats[e], runs) for e, _ in blend.uniform]
            compose(out, under, experts, [weight for _, weight in blend.uniform])
        else:
            for kind in KINDS:
                for span in self._spans(part, kind, piece):
                    views = [flats[expert][span] for expert, _ in blend.of(kind)]
                    base = None if under is None else under[span]
                    compose(out[span], base, views, [weight for _, weight in blend.of(kind)])
        for kind, rounded in self._rounded[part].items():
            for span in self._spans(part, kind, piece) if rounded != dtype else ():
                out[span] = out[span].to(rounded)
        self.engine.put(part, page, piece, out)

    def _spans(self, part: Part, kind: str, piece: slice) -> Iterator[slice]:
        """Where in a piece the parameters of a kind are."""
        for start, end in self.engine.spans(part, kind):
            if piece.start <= start and end <= piece.stop:
                yield slice(start - piece.start, end - piece.start)

    def _reading(self, source: str) -> Read:
        checkpoint = self.family.checkpoint(source)

        def read(name: str, out: torch.Tensor | None) -> torch.Tensor:
            direct = (
                out is not None and out.device.type == "cpu" and out.dtype == DTYPES[checkpoint.tensors[name].dtype]
            )
            return checkpoint.read(name, out if direct else None)

        return read

    def _read_deltas(self, part: Part, expert: str, codec: Codec) -> torch.Tensor:
        source: Any = self.family.checkpoint(expert)
        names = source.layer(part)
        vectors = [name for name in names if len(source.tensors[name].shape) < 2]
        matrices = {name: source.packed(name, codec) for name in names if name not in vectors}
        return self.engine.fill_deltas(part, codec, ((name, source.read(name)) for name in vectors), matrices)

    def missing(self, plan: Plan) -> int:
        """The bytes that `reserve` will take, those that are only for making pages included."""
        absent = [key for key in self.own(plan) if self._content(key) not in self._pages]
        return sum(map(self.bytes, absent)) + self.scratch(absent)

    def own(self, plan: Plan) -> set[Key]:
        """The pages of a plan that are not the base's."""
        return {key for key in self.keys(plan) if key[1].uniform != ()}

    def bytes(self, key: Key) -> int:
        """What a page takes in the engine's memory."""
        part, _, codec = key
        return self.engine.bytes(part) if codec is None else self.engine.delta_bytes(part, codec) or 0

    def scratch(self, keys: Iterable[Key]) -> int:
        """What making pages takes beside them, one after the other."""
        return sum(self._beside(keys))

    def _beside(self, keys: Iterable[Key]) -> list[int]:
        """Bytes of each piece of spare memory, the n-th of which is the n-th that `_make` asks for."""
        each = [self._spares(key) for key in keys]
        return [max(sizes) for sizes in zip_longest(*each, fillvalue=0)]

    def _spares(self, key: Key) -> list[int]:
        part, blend, codec = key
        if codec is not None:
            return []
        piece = max((piece.stop - piece.start for piece in self.engine.pieces(part)), default=0)
        flat = piece * self._dtypes[part].itemsize
        packings = list(self._sources(part, blend).values())
        if self.engine.makes_in_place(self._dtypes[part]) and None in packings:
            packings.remove(None)
        return [flat if packing is None else self.engine.delta_bytes(part, packing) or 0 for packing in packings]

    def _sources(self, part: Part, blend: LayerBlend) -> dict[str, Codec | None]:
        """What must be read for a page, and the codec of that which is decoded only where pages are composed."""
        blends = {blend.of(kind) for kind in KINDS}
        experts = sorted({expert for mix in blends for expert, _ in mix})
        kept = self.engine.keeps_base(self._dtypes[part])
        packings = {expert: self._packing(part, expert) if kept and len(blends) == 1 else None for expert in experts}
        sources = {expert: codec if codec is not None and codec.bitwise else None for expert, codec in packings.items()}
        # What the engine keeps of the base need not be read again.
        if not kept and any(left_by([weight for _, weight in mix]) for mix in blends):
            sources["base"] = None
        return sources


def cut(flat: torch.Tensor, runs: Sequence[int]) -> torch.Tensor | list[Delta]:
    """A flat page as deltas of these lengths; as it is where there are none."""
    return [Dense(run) for run in torch.split(flat, list(runs))] if runs else flat
