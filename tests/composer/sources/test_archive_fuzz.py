"""Archives that are broken in any way are read as they are, or refused with their name."""

import copy
import json
import math
import os
import resource
import struct
from dataclasses import asdict
from pathlib import Path

import pytest
from archives import join, manifest_of, read_all, split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerloom.composer import ComposeError, extract, inspect
from layerloom.composer.sources.codecs import Exact, Int4, Int8, Lowrank, Sign

# A fuzzed file is refused or read; it does not crash, hang, take memory without end, or raise anything else.
fuzzed = settings(
    max_examples=int(os.environ.get("LAYERLOOM_FUZZ", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def little_memory():
    """Half a GB more than there is now: a test that takes what a file claims to be ends with another error."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 29), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def read_or_refuse(path, base):
    for use in (read_all, lambda path, _: json.dumps([asdict(report) for report in inspect(path)], default=str)):
        try:
            use(path, base)
        except ComposeError as error:
            assert str(path) in str(error)
            assert len(str(error)) < len(str(path)) + 2000


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("header", [True, False], ids=["header", "data"])
@given(data=st.data())
@fuzzed
def test_fuzz(path, made, base, header, data):
    content = bytearray(made.read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    low, high = (0, end) if header else (end, len(content))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(low, min(high, len(content)) - 1))
        kind = data.draw(st.sampled_from(["flip", "insert", "delete", "digits"]))
        if kind == "flip":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "insert":
            content[place:place] = data.draw(st.binary(min_size=1, max_size=9))
        elif kind == "delete":
            del content[place : place + data.draw(st.integers(1, 9))]
        else:
            content[place : place + 3] = data.draw(st.sampled_from([b"999", b'"",', b"-1,", b"nul", b"[[["]))
    path.write_bytes(content)
    read_or_refuse(path, base)


@pytest.fixture(scope="session")
def of_codecs(tmp_path_factory, pristine):
    """An archive of `math` under each lossy codec; what they leave is exact."""
    root = tmp_path_factory.mktemp("codecs")
    for codec in (Int8(), Int4(), Sign(), Lowrank(rank=2), Exact()):
        extract(pristine / "base", pristine / "math", root / f"{codec.codec}.safetensors", codec)
    return sorted(root.iterdir())


NUMBERS = [-1, 0, 1, 2, 16, 31, 2**16 + 1, 2**31, 2**40, 2**63 - 1, 2**63, 2**64, 10**30, 10**4000, -(10**30)]
WORDS = ["", "exact", "int3", "int8", "sign", "lowrank", "F64", "F32", "I8", "NaN", "math.safetensors", "x" * 10**5]
PATHS = [
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a..b",
    "a:words",
    "model.layers.99999999.q_proj.weight",
    "a\0b",
]
LISTS = [[], [2**62] * 3, [0, 2**62], [2**63 - 1] * 1000, [-1, 16], [16, 16, 1], [5, 4], [1, 2**62], [None], [[]]]
OTHERS = [
    None,
    True,
    math.nan,
    math.inf,
    -math.inf,
    -0.5,
    1e308,
    {},
    {"codec": "sign"},
    {"codec": "lowrank", "rank": 1},
]
ODD = st.sampled_from([*NUMBERS, *WORDS, *PATHS, *LISTS, *OTHERS])


def places(value):
    """(container, key) of everything in a JSON value."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


@pytest.mark.usefixtures("little_memory")
@given(data=st.data())
@fuzzed
def test_fuzz_of_values(path, of_codecs, base, data):
    """The header is well formed, and what it says is wrong."""
    header, content = split(data.draw(st.sampled_from(of_codecs)))
    manifest = manifest_of(header)
    for _ in range(data.draw(st.integers(1, 3))):
        every = [*places(manifest)]
        container, key = every[data.draw(st.integers(0, len(every) - 1))]
        kind = data.draw(st.sampled_from(["odd", "near", "name", "delete"]))
        value = container.get(key) if isinstance(container, dict) else container[key]
        if kind == "near" and isinstance(value, int):
            container[key] = value + data.draw(st.integers(-9, 9))
        elif kind == "near" and isinstance(value, list):
            container[key] = data.draw(st.sampled_from([value[::-1], value[1:], [*value, 1], [1, *value], value * 2]))
        elif kind == "name" and isinstance(container, dict):
            container[data.draw(st.sampled_from([*PATHS, *WORDS]))] = container.pop(key, None)
        elif kind == "delete":
            container.pop(key, None) if isinstance(container, dict) else container.pop(key)
        else:
            container[key] = copy.deepcopy(data.draw(ODD))
    header["__metadata__"]["layerloom"] = json.dumps(manifest)
    join(path, header, content)
    read_or_refuse(path, base)
