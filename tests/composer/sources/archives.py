"""archives: a delta archive taken apart and put together again."""

import json
import struct

from layerloom.composer import Archive


def split(path):
    """(header, data)"""
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def join(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def manifest_of(header):
    return json.loads(header["__metadata__"]["layerloom"])


def edit(path, change):
    """Changes what the archive says of itself."""
    header, data = split(path)
    manifest = manifest_of(header)
    change(manifest)
    header["__metadata__"]["layerloom"] = json.dumps(manifest)
    join(path, header, data)


def read_all(path, base):
    archive = Archive(path, base)
    return {name: archive.read(name) for name in archive.tensors}
