"""planar: small numbers packed into 32-bit words along K, so that a kernel unpacks a word with one shift a field.

A tile is 32 words. With numbers of b bits a word has f = 32/b fields, and a tile 32·f columns: field i (bits i·b and
up) of word w holds column 32·i + w of the tile. What K leaves over is one narrower tile of ceil(rest / f) words, in
which that number stands for 32. Fields past the last column are 0.
"""

import torch

LANES = 32


def word_count(k: int, bits: int) -> int:
    """How many words a row of k numbers takes: ceil(k·bits / 32)."""
    fields = 32 // bits
    tiles, rest = divmod(k, LANES * fields)
    return tiles * LANES + -(-rest // fields)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """[rows, K] int32 with 0 ≤ code < 2^bits → [rows, words] int32."""
    rows, k = codes.shape
    fields = 32 // bits
    words = torch.zeros(rows, word_count(k, bits), dtype=torch.int32)
    for first, columns, width in _tiles(k, fields):
        count = columns.stop - columns.start
        padded = torch.nn.functional.pad(codes[:, columns], (0, -count % (width * fields)))
        planes = padded.view(rows, -1, fields, width)
        tile = words[:, first : first + planes.shape[1] * width].view(rows, -1, width)
        for field in range(fields):
            tile |= planes[:, :, field] << (field * bits)
    return words


def unpack(words: torch.Tensor, k: int, bits: int) -> torch.Tensor:
    """[rows, words] int32 → [rows, K] int32."""
    rows = words.shape[0]
    fields, mask = 32 // bits, (1 << bits) - 1
    codes = torch.empty(rows, k, dtype=torch.int32)
    for first, columns, width in _tiles(k, fields):
        count = columns.stop - columns.start
        tiles = -(-count // (width * fields))
        tile = words[:, first : first + tiles * width].reshape(rows, tiles, 1, width)
        shifts = torch.arange(0, 32, bits, dtype=torch.int32).view(1, 1, fields, 1)
        codes[:, columns] = ((tile >> shifts) & mask).view(rows, -1)[:, :count]
    return codes


def _tiles(k: int, fields: int) -> list[tuple[int, slice, int]]:
    """(first word, columns, words in a tile) of the full tiles together, then of the narrower one."""
    full = k - k % (LANES * fields)
    found = [(0, slice(0, full), LANES)] if full else []
    if full < k:
        found.append((full // fields, slice(full, k), -(-(k - full) // fields)))
    return found
