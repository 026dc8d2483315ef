"""A safetensors file's header is taken or refused as by the library."""

import copy
import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from layerloom.composer import ComposeError
from layerloom.composer.sources.tensorfile import TensorFile


def test_every_dtype(tmp_path):
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16]
    dtypes += [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]
    tensors = {str(dtype): (torch.arange(6) % 2).view(2, 3).to(dtype) for dtype in dtypes}
    tensors |= {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 5)}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    file = TensorFile(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt"}
    assert file.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        read = file.read(name)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read.view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))


A = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B = {"dtype": "BF16", "shape": [2, 1], "data_offsets": [8, 12]}
VALUES = st.sampled_from(
    [0, 1, 2, 4, 8, 12, -1, 1.0, True, None, "F16", "F4", "f32", "BOOL", [], [0], [4], [2, 2], [0, 8], [8, 0], [4, 12],
     [0, 4], [4, 8], [0, 2**62], [2**64], [8, 12], {}, {"a": "b"}, {"a": 1}, A, B]
)  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_headers_are_taken_or_refused_as_by_the_library(tmp_path, data):
    header = json.loads(json.dumps({"__metadata__": {"format": "pt"}, "a": A, "b": B}))
    for _ in range(data.draw(st.integers(0, 3))):
        where = data.draw(st.sampled_from([header, *(entry for entry in header.values() if isinstance(entry, dict))]))
        key = data.draw(st.sampled_from(["__metadata__", "a", "b", "dtype", "shape", "data_offsets", "more"]))
        if data.draw(st.booleans()):
            where[key] = copy.deepcopy(data.draw(VALUES))
        else:
            where.pop(key, None)
    text = json.dumps(header).encode() + b" " * data.draw(st.integers(0, 2))
    size = data.draw(st.sampled_from([12, 12, 12, 8, 0, 4, 13]))
    path = tmp_path / "a.safetensors"
    path.unlink(missing_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    try:
        with safe_open(path, "np") as file:
            wanted = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        with pytest.raises(ComposeError, match=r"a.safetensors: "):
            TensorFile(path)
        return
    found = TensorFile(path).tensors
    assert {name: (e.dtype, list(e.shape)) for name, e in found.items()} == {
        name: (part.get_dtype(), part.get_shape()) for name, part in wanted.items()
    }
