"""packer: matrices packed for oneDNN on a thread of their own, while the next ones are read."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from layerloom.kernels.threads import be_alone, set_openmp

LARGEST = 1 << 27
"""Bytes of a matrix that is packed twice at start, to see whether one thread packs it as all of them do."""

Linear = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Shape = tuple[int, int, torch.dtype]


_alike: dict[tuple[int, Shape], bool] = {}
"""Whether one thread packs a matrix as so many do: a matter of the library alone."""


def try_shape(weight: torch.Tensor, pack: Callable[[], Linear], linear: Linear) -> None:
    """Packs a matrix by `pack` in one thread, and sees whether that is what `linear` computes with.

    oneDNN packs for as many threads as OpenMP has, and beside an engine one thread is to do it. For all shapes that
    were tried it packs alike; but it does not say so, and as it keeps its code by a matrix' shape, it would compute
    nonsense if it did not. So each shape is tried at start, and is packed by all threads if it is not alike.
    """
    kind = torch.get_num_threads(), shape_of(weight)
    if kind[0] == 1 or kind in _alike or weight.nbytes > LARGEST:
        return
    with ThreadPoolExecutor(1, initializer=be_alone) as pool:
        other = pool.submit(pack).result()
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    _alike[kind] = torch.equal(other(x, weight, None), linear(x, weight, None))


class Packer:
    """Packs one matrix after another; one waits while another is packed."""

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    @contextmanager
    def working(self) -> Iterator[None]:
        """Around what is to be packed: at the end it is."""
        # What the last one to pack left behind, if it was cut short, is not for this one.
        self._last = None
        with ThreadPoolExecutor(1, "layerloom-packer") as self._pool:
            yield
            self._wait()

    def do(self, pack: Callable[[], None], shapes: Iterable[Shape]) -> None:
        """Packs matrices of these shapes, when those before are. Raises what packing those did."""
        assert self._pool is not None
        self._wait()
        alone = all(_alike.get((self._threads, shape)) for shape in shapes)

        def packed() -> None:
            set_openmp(1 if alone else self._threads)
            pack()

        self._last = self._pool.submit(packed)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()


def shape_of(weight: torch.Tensor) -> Shape:
    rows, columns = weight.shape
    return rows, columns, weight.dtype
