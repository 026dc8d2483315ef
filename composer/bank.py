"""bank: the pages in the engine's memory, one for every (part of the model, blend) in use."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch

from layerloom.kernels import compose

from .archive import Archive
from .codecs import Codec, Parts
from .errors import ComposeError
from .family import Family
from .plan import KINDS, LayerBlend, Plan

Part = int
"""A decoder layer by its index; the stem is the part whose index is the number of layers."""

Key = tuple[Part, LayerBlend, Codec | None]
"""What tells pages from each other; the codec is that of a page kept as deltas."""

Hosts = dict[tuple[int, int, torch.dtype], torch.Tensor]
"""Memory that one page after another is read into, because fresh memory costs more than the work."""


DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


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

    def delta_bytes(self, part: Part, codec: Codec) -> int | None:
        """What a page of deltas takes beside the base's page, or None where the engine cannot keep one."""

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
        self._staged: dict[Key, list[torch.Tensor]] = {}
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
            for key in self.own(plan).difference(self._pages, self._staged):
                self._staged[key] = self._read(key, {})
        except BaseException:
            self._staged.clear()
            raise

    def unstage(self) -> None:
        """Lets go of all that was read ahead."""
        self._staged.clear()

    def keys(self, plan: Plan) -> list[Key]:
        """The pages of a plan: one for each layer, then the stem's."""
        layers = [(part, blend, self._packing(part, blend, plan)) for part, blend in enumerate(plan.layers)]
        return [*layers, (len(layers), LayerBlend.all(plan.stem), None)]

    def _packing(self, part: Part, blend: LayerBlend, plan: Plan) -> Codec | None:
        """The codec under which a layer is kept as deltas: when it is one expert's, and that an archive under it."""
        if plan.residency != "delta" or blend.uniform is None or [weight for _, weight in blend.uniform] != [1.0]:
            return None
        source = self.family.checkpoint(blend.uniform[0][0])
        codec = source.packing(source.layer(part)) if isinstance(source, Archive) else None
        return None if codec is None or self.engine.delta_bytes(part, codec) is None else codec

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
        """What a page is made of, in the host's memory: `_sources` in the engine's layout, or a page of deltas."""
        part, blend, codec = key
        if codec is not None:
            return [self._read_deltas(part, blend, codec)]
        flats = []
        for number, source in enumerate(self._sources(part, blend)):
            place = number, self.engine.size(part), self._dtypes[part]
            if place not in hosts:
                hosts[place] = self.engine.host(*place[1:])
            checkpoint = self.family.checkpoint(source)
            named = ((name, checkpoint.read(name)) for name in self._names(part, source))
            self.engine.fill(part, hosts[place], named)
            flats.append(hosts[place])
        return flats

    def _read_deltas(self, part: Part, blend: LayerBlend, codec: Codec) -> torch.Tensor:
        ((expert, _),) = blend.uniform or ()
        archive = self.family.checkpoint(expert)
        assert isinstance(archive, Archive)
        names = archive.layer(part)
        vectors = [name for name in names if len(archive.tensors[name].shape) < 2]
        matrices = {name: archive.packed(name, codec) for name in names if name not in vectors}
        host = self.engine.host(self.engine.delta_bytes(part, codec) or 0, torch.uint8)
        self.engine.fill_deltas(part, codec, host, ((name, archive.read(name)) for name in vectors), matrices)
        return host

    def _compose(self, part: Part, blend: LayerBlend, read: list[torch.Tensor]) -> Any:
        sources = self._sources(part, blend)
        # All of them first: making room may move what is there.
        rooms = [self.engine.upload(part, host) for host in read]
        flats = {source: room.flat for source, room in zip(sources, rooms, strict=True)}
        base = flats.get("base", self.engine.base(part) if self.engine.keeps_base(self._dtypes[part]) else None)

        # In place: a span is written once, and only what is read for it is overwritten.
        out = flats[sources[0]]
        whole = blend.uniform is not None
        for kind in KINDS[:1] if whole else KINDS:
            mix = blend.of(kind)
            for start, end in [(0, len(out))] if whole else self.engine.spans(part, kind):
                experts = [flats[expert][start:end] for expert, _ in mix]
                under = None if base is None else base[start:end]
                compose(out[start:end], under, experts, [weight for _, weight in mix])
        return self.engine.seal(part, rooms[0])

    def missing(self, plan: Plan) -> int:
        """The bytes that `pages` will take, those for composing included."""
        absent = self.own(plan).difference(self._pages)
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
        rooms = len(self._sources(part, blend)) * self.engine.size(part) * self._dtypes[part].itemsize
        in_place = self.engine.size(part) * self._dtypes[part].itemsize == self.engine.bytes(part)
        return rooms - self.engine.bytes(part) if in_place else rooms

    def _sources(self, part: Part, blend: LayerBlend) -> list[str]:
        """What must be read for a page, in the order in which it gets room."""
        blends = {blend.of(kind) for kind in KINDS}
        experts = sorted({expert for mix in blends for expert, _ in mix})
        needs_base = any(sum(weight for _, weight in mix) != 1.0 for mix in blends)
        # What the engine keeps of the base need not be read again.
        return [*experts, "base"] if needs_base and not self.engine.keeps_base(self._dtypes[part]) else experts
