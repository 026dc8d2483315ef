"""engine: what the bank asks of the engine in whose memory pages are."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from layerloom.composer.sources.codecs import Codec, Parts
from layerloom.kernels.delta import Delta

Part = int
"""A decoder layer by its index; the stem is the part whose index is the number of layers."""

Read = Callable[[str, torch.Tensor | None], torch.Tensor]
"""A tensor of a source by its name; in the second argument, which is of its shape, if that is of its dtype too."""


class Engine(Protocol):
    """What the bank asks of the engine whose layout pages have.

    Pages are reserved on the engine's own thread, and made on others while it computes with those that are made.
    """

    def learn(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Sees the base's tensors, with dtypes and shapes and on the device "meta", before it is asked the rest."""

    def spans(self, part: Part, kind: str) -> Sequence[tuple[int, int]]:
        """The [start, end) ranges of a flat page that hold that part's parameters of one kind (see plan.KINDS).

        A flat page is all of a part's parameters (this rank's shard) in a row.
        """

    def pieces(self, part: Part) -> Sequence[slice]:
        """The ranges of a flat page that are made one after the other, and hold all its parameters."""

    def bytes(self, part: Part) -> int:
        """What a page of that part takes, in the dtype the engine computes in."""

    def reserve(self, part: Part, codec: Codec | None) -> Any:
        """A page to be made, of deltas under a codec if there is one. Raises NoRoom."""

    def spare(self, sizes: Sequence[int]) -> Sequence[Any]:
        """Memory of so many bytes each, beside pages, for when pages are made. Raises NoRoom."""

    def making(self) -> AbstractContextManager[Any]:
        """Around what a thread does to make pages; what it asked for is done when that ends."""

    def makes_in_place(self, dtype: torch.dtype) -> bool:
        """Whether pages of that dtype are made where they stay."""

    def in_place(self, page: Any) -> torch.Tensor:
        """The flat page itself, if so."""

    def flat(self, spare: Any, dtype: torch.dtype, count: int) -> torch.Tensor:
        """Numbers in spare memory."""

    def fill(self, part: Part, piece: slice, into: torch.Tensor, names: Iterable[str], read: Read) -> None:
        """Puts the tensors of a part that are in a piece into `into`, in the engine's own fused layout."""

    def put(self, part: Part, page: Any, piece: slice, made: torch.Tensor) -> None:
        """Takes a piece into the page: it is in its place, or is copied there as the engine computes with it."""

    def keeps_base(self, dtype: torch.dtype) -> bool:
        """Whether the base is in the engine's memory as flat pages of that dtype."""

    def base(self, part: Part) -> torch.Tensor:
        """The flat page of the base, where the engine keeps it."""

    def base_page(self, part: Part) -> Any:
        """The page of the base, which the engine has loaded itself."""

    def delta_bytes(self, part: Part, codec: Codec) -> int | None:
        """What a layer's deltas take as they are packed, or None where the engine's layout has no place for them."""

    def keeps_deltas(self, codec: Codec) -> bool:
        """Whether it computes with deltas that stay packed."""

    def fill_deltas(
        self, part: Part, codec: Codec, vectors: Iterable[tuple[str, torch.Tensor]], matrices: Mapping[str, Parts]
    ) -> torch.Tensor:
        """Memory of the host, uint8 [delta_bytes], with a page of deltas in the engine's own layout."""

    def put_deltas(self, page: Any, host: torch.Tensor) -> None:
        """Takes deltas into their page."""

    def deltas(self, part: Part, codec: Codec, spare: Any, host: torch.Tensor) -> list[Delta]:
        """Deltas in spare memory, where pages are made: run after run of a flat page."""
