"""bank: the pages in the engine's memory, one for every (part of the model, blend) in use."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch

from layerloom.composer.family.family import Family
from layerloom.composer.family.plan import KINDS, LayerBlend, Plan, kind_of
from layerloom.composer.sources.adapter import Adapter
from layerloom.composer.sources.archive import Archive
from layerloom.composer.sources.codecs import DTYPES, Codec, Parts
from layerloom.kernels import compose
from layerloom.kernels.compose import left_by
from layerloom.kernels.delta import Delta, Dense, size

Part = int
"""A decoder layer by its index; the stem is the part whose index is the number of layers."""

Key = tuple[Part, LayerBlend, Codec | None]
"""What tells pages from each other; the codec is that of a page kept as deltas."""

Hosts = dict[tuple[int, int, torch.dtype], torch.Tensor]
"""Memory that one page after another is read into, because fresh memory costs more than the work."""


class Room(Protocol):
    """Memory for one page while it is composed."""

    @property
    def flat(self) -> torch.Tensor:
        """Its numbers, [size], on the device where pages are composed. Good until the engine makes more room."""


class Engine(Protocol):
    """What the bank asks of the engine whose layout pages have."""

    def size(self, part: Part) -> int:
        """How many numbers the part's parameters are (this rank's shard): the length of its flat page."""

    def spans(self, part: Part, kind: str) -> Sequence[tuple[int, int]]:
        """The [start, end) ranges of a flat page that hold that part's parameters of one kind (see plan.KINDS)."""

    def host(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory of the host, [size], to fill."""

    def fill(self, part: Part, flat: torch.Tensor, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Writes Hugging Face tensors of that part over all of `flat`, in the engine's own fused layout."""

    def upload(self, part: Part, host: torch.Tensor) -> Room:
        """A flat page where pages are composed. Raises NoRoom."""

    def bytes(self, part: Part) -> int:
        """What a page of that part takes, in the dtype the engine computes in."""

    def keeps_base(self, dtype: torch.dtype) -> bool:
        """Whether the base is in the engine's memory as flat pages of that dtype."""

    def base(self, part: Part) -> torch.Tensor:
        """The flat page of the base, where the engine keeps it."""

    def room(self, part: Part, dtype: torch.dtype) -> Room:
        """Memory for a page, where the base is kept. Raises NoRoom."""

    def delta_bytes(self, part: Part, codec: Codec) -> int | None:
        """What a layer's deltas take as they are packed, or None where the engine's layout has no place for them."""

    def keeps_deltas(self, codec: Codec) -> bool:
        """Whether it computes with deltas that stay packed."""

    def fill_deltas(
        self,
        part: Part,
        codec: Codec,
        host: torch.Tensor,
        vectors: Iterable[tuple[str, torch.Tensor]],
        matrices: Mapping[str, Parts],
    ) -> None:
        """Writes a page of deltas, uint8 [delta_bytes], in the engine's own layout."""

    def upload_deltas(self, part: Part, codec: Codec, host: torch.Tensor) -> Any:
        """The page that computes with the base's matrices and their packed differences. Raises NoRoom."""

    def deltas(self, part: Part, page: Any) -> list[Delta]:
        """What such a page holds, run after run of a flat page."""

    def seal(self, part: Part, room: Room) -> Any:
        """The page the engine computes with, in the dtype it computes in: the room itself, or something of its own."""

    def base_page(self, part: Part) -> Any:
        """The page of the base, which the engine has loaded itself."""


class Bank:
    """Assembles the pages a plan needs and shares the ones two compositions have in common.

    A page lives as long as a composition that uses it: whoever calls `pages` holds them.
    """

    def __init__(self, family: Family, engine: Engine) -> None:
        self.family = family
        self.engine = engine
        self._changed: dict[tuple[Part, str], bool] = {}
        """Whether an expert changes a part; asked for all compositions whenever one is added."""
        self._staged: dict[Key, list[torch.Tensor]] = {}
        self._rounded = [self._kinds(part) for part in range(family.depth + 1)]
        self._dtypes = [self._dtype(part) for part in range(family.depth + 1)]
        self._pages: WeakValueDictionary[Key, Any] = WeakValueDictionary()

    def __len__(self) -> int:
        """Assembled pages now in memory, the base's not counted."""
        return len(self._pages)

    def pages(self, plan: Plan) -> tuple[Any, ...]:
        """One page per layer, then the stem's. Raises ComposeError, leaving nothing behind, if one cannot be made."""
        hosts: Hosts = {}
        return tuple(self._page(key, hosts) for key in self.keys(plan))

    def dtypes(self) -> set[torch.dtype]:
        """Those that pages are composed in."""
        return set(self._dtypes)

    def stage(self, plan: Plan) -> None:
        """Reads what `pages` will have to, into the host's memory. May run on a thread of its own.

        Raises ComposeError, leaving nothing behind.
        """
        try:
            for key in self.own(plan):
                if key not in self._pages and key not in self._staged:
                    self._staged[key] = self._read(key, {})
        except BaseException:
            self._staged.clear()
            raise

    def unstage(self, plan: Plan) -> None:
        """Lets go of what was read ahead for a plan."""
        for key in self.own(plan):
            self._staged.pop(key, None)

    def keys(self, plan: Plan) -> list[Key]:
        """The pages of a plan: one for each layer, then the stem's."""
        blends = [self._blend(part, blend) for part, blend in enumerate((*plan.layers, LayerBlend.all(plan.stem)))]
        return [(part, blend, self._kept(part, blend, plan)) for part, blend in enumerate(blends)]

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

    def _page(self, key: Key, hosts: Hosts) -> Any:
        part, blend, codec = key
        if blend.uniform == ():
            return self.engine.base_page(part)
        page = self._pages.get(key)
        if page is None:
            read = self._staged.pop(key, None) or self._read(key, hosts)
            if codec is None:
                page = self._compose(part, blend, read)
            else:
                page = self.engine.upload_deltas(part, codec, read[0])
            self._pages[key] = page
        return page

    def _read(self, key: Key, hosts: Hosts) -> list[torch.Tensor]:
        """What a page is made of, in the host's memory: `_sources` in the engine's layout, packed where they are."""
        part, blend, codec = key
        if codec is not None:
            ((expert, _),) = blend.uniform or ()
            return [self._read_deltas(part, expert, codec)]
        read = []
        for number, (source, packing) in enumerate(self._sources(part, blend).items()):
            if packing is not None:
                read.append(self._read_deltas(part, source, packing))
                continue
            place = number, self.engine.size(part), self._dtypes[part]
            if place not in hosts:
                hosts[place] = self.engine.host(*place[1:])
            checkpoint = self.family.checkpoint(source)
            named = ((name, checkpoint.read(name)) for name in self._names(part, source))
            self.engine.fill(part, hosts[place], named)
            read.append(hosts[place])
        return read

    def _read_deltas(self, part: Part, expert: str, codec: Codec) -> torch.Tensor:
        source: Any = self.family.checkpoint(expert)
        names = source.layer(part)
        vectors = [name for name in names if len(source.tensors[name].shape) < 2]
        matrices = {name: source.packed(name, codec) for name in names if name not in vectors}
        host = self.engine.host(self.engine.delta_bytes(part, codec) or 0, torch.uint8)
        self.engine.fill_deltas(part, codec, host, ((name, source.read(name)) for name in vectors), matrices)
        return host

    def _compose(self, part: Part, blend: LayerBlend, read: list[torch.Tensor]) -> Any:
        sources = self._sources(part, blend)
        # All the room there must be first: making it may move what is there.
        rooms, packed = {}, {}
        for (source, codec), host in zip(sources.items(), read, strict=True):
            if codec is None:
                rooms[source] = self.engine.upload(part, host)
            else:
                packed[source] = self.engine.upload_deltas(part, codec, host)
        room = next(iter(rooms.values())) if rooms else self.engine.room(part, self._dtypes[part])
        flats = {source: made.flat for source, made in rooms.items()}
        deltas = {source: self.engine.deltas(part, page) for source, page in packed.items()}
        base = flats.get("base", self.engine.base(part) if self.engine.keeps_base(self._dtypes[part]) else None)

        # In place: a span is written once, and only what is read for it is overwritten.
        out = room.flat
        if blend.uniform is not None:
            runs = [size(delta) for delta in next(iter(deltas.values()), ())]
            experts = [deltas[e] if e in deltas else cut(flats[e], runs) for e, _ in blend.uniform]
            compose(out, base, experts, [weight for _, weight in blend.uniform])
        else:
            for kind in KINDS:
                for start, end in self.engine.spans(part, kind):
                    views = [flats[expert][start:end] for expert, _ in blend.of(kind)]
                    under = None if base is None else base[start:end]
                    compose(out[start:end], under, views, [weight for _, weight in blend.of(kind)])
        for kind, dtype in self._rounded[part].items():
            for start, end in self.engine.spans(part, kind) if dtype != out.dtype else ():
                out[start:end] = out[start:end].to(dtype)
        return self.engine.seal(part, room)

    def missing(self, plan: Plan) -> int:
        """The bytes that `pages` will take, those for composing included."""
        absent = {key for key in self.own(plan) if key not in self._pages}
        return sum(map(self.bytes, absent)) + max(map(self.scratch, absent), default=0)

    def own(self, plan: Plan) -> set[Key]:
        """The pages of a plan that are not the base's."""
        return {key for key in self.keys(plan) if key[1].uniform != ()}

    def bytes(self, key: Key) -> int:
        """What a page takes in the engine's memory."""
        part, _, codec = key
        return self.engine.bytes(part) if codec is None else self.engine.delta_bytes(part, codec) or 0

    def scratch(self, key: Key) -> int:
        """What composing a page takes beside it."""
        part, blend, codec = key
        if codec is not None:
            return 0
        flat = self.engine.size(part) * self._dtypes[part].itemsize
        packings = self._sources(part, blend).values()
        uploads = [flat if packing is None else self.engine.delta_bytes(part, packing) or 0 for packing in packings]
        # The page is made where its first flat source was, unless it is to be of another dtype.
        in_place = flat in uploads and flat == self.engine.bytes(part)
        return sum(uploads) - in_place * flat

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
