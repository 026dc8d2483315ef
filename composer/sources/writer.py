"""writer: a safetensors file written part by part, which appears when it is complete."""

import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from layerloom.composer.errors import ComposeError

WORDS = {torch.uint8: "U8", torch.int32: "I32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class Writer:
    """Collects tensors in files without a name beside the one to be, because the header, which is first, comes last.

    There are two: numbers of 4 bytes and byte strings of a multiple of 4 first, numbers of 2 bytes after them, so that
    each tensor lies where its dtype must. Within each the order is that of `add`.
    """

    def __init__(self, wide: IO[bytes], narrow: IO[bytes]) -> None:
        self._spools = (wide, narrow)
        self._entries: tuple[dict[str, Any], dict[str, Any]] = ({}, {})

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Writes a contiguous tensor of one of WORDS' dtypes."""
        which = int(tensor.element_size() == 2)
        spool = self._spools[which]
        start = spool.tell()
        spool.write(tensor.reshape(-1).view(torch.uint8).numpy().data)
        shape = list(tensor.shape)
        self._entries[which][name] = {
            "dtype": WORDS[tensor.dtype],
            "shape": shape,
            "data_offsets": [start, spool.tell()],
        }

    def finish(self, out: IO[bytes], metadata: dict[str, str]) -> None:
        """Writes header and data."""
        shift = self._spools[0].tell()
        for entry in self._entries[1].values():
            entry["data_offsets"] = [offset + shift for offset in entry["data_offsets"]]
        header = {"__metadata__": metadata, **self._entries[0], **self._entries[1]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        out.write(len(text).to_bytes(8, "little") + text)
        for spool in self._spools:
            spool.seek(0)
            shutil.copyfileobj(spool, out, 1 << 20)


@contextmanager
def new_file(path: Path) -> Iterator[tuple[Writer, Path]]:
    """A writer, and the temporary name under which to finish; it gets its own name when the block ends well.

    Whatever else happens, nothing is left. Raises ComposeError when `path` exists or cannot be written.
    """
    if path.exists():
        raise ComposeError(f"{path}: exists: name another, or remove it")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            spools = [stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for _ in range(2)]
            yield Writer(*spools), partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.rename(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ComposeError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
