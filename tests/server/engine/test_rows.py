"""A tied table is in memory once: its rows are read out of what the output head is packed into."""

import ctypes
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engines import Answer, answers, prompts, run, sampling, settings
from pico import make_family
from torch import nn

from layerloom.composer import Family, merge
from layerloom.composer.sources.codecs import same
from layerloom.server import Runtime
from layerloom.server.engine import rows
from layerloom.server.engine.rows import PackedRows, understood

pytestmark = [
    pytest.mark.usefixtures("engine_environment"),
    pytest.mark.skipif(not torch.cpu._is_avx512_supported(), reason="tried where oneDNN packs for AVX-512"),
]

NAMES = ["base", "math", "swahili", "math+bengali@stem=average"]


@pytest.fixture(autouse=True, scope="module")
def kernels():
    from vllm.platforms import current_platform

    current_platform.import_kernels()


@pytest.fixture(autouse=True)
def onednn(monkeypatch):
    """On a processor with AMX vLLM has another product for matrices as small as these tests'."""
    monkeypatch.setattr("vllm.model_executor.layers.utils._CPU_SGL_GEMM_MAX_WEIGHT_BYTES", 0)


@pytest.fixture
def on_another_machine():
    """Lets the test, and those after it, find out anew what this machine does."""
    understood.cache_clear()
    yield
    understood.cache_clear()


def packed(weight: torch.Tensor) -> Callable[..., Any]:
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    module = nn.Module()
    module.weight, module.bias = nn.Parameter(weight, requires_grad=False), None
    dispatch_cpu_unquantized_gemm(module, remove_weight=True)
    return module.cpu_linear


def matrix(n: int, k: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(n * k)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("k", [1, 7, 33, 64, 100, 896, 1536])
def test_all_rows_are_the_matrix(k, dtype):
    for n in (1, 64, 65, 131, 192, 1000):
        weight = matrix(n, k, dtype)
        linear = packed(weight.clone())
        found = PackedRows.of(linear, weight)
        if dtype == torch.float16 and found is None:
            pytest.skip("this CPU has no product of float16 matrices")
        assert found is not None
        backwards = torch.arange(n).flip(0)
        assert same(found.take(backwards), weight[backwards])
        # No product changes what it is read from.
        for tokens in (1, 3, 128):
            linear(matrix(tokens, k, dtype), weight.new_empty(0), None)
        assert same(found.take(backwards), weight[backwards])


def test_rows_come_in_the_shape_of_their_ids():
    weight = matrix(200, 100)
    found = PackedRows.of(packed(weight.clone()), weight)
    assert found is not None
    for ids in (torch.tensor([[7, 7, 199], [0, 64, 63]]), torch.tensor(5), torch.empty(0, dtype=torch.int64)):
        expected = nn.functional.embedding(ids, weight)
        assert found.take(ids).shape == expected.shape
        assert found.take(ids).is_contiguous()
        assert same(found.take(ids), expected)


def test_memory_lives_as_long_as_its_rows():
    weight = matrix(20_000, 256)
    found = PackedRows.of(packed(weight.clone()), weight)
    assert found is not None
    # What was free would be written over now.
    others = [packed(torch.ones_like(weight)) for _ in range(3)]
    assert same(found.take(torch.arange(len(weight))), weight)
    assert len(others) == 3


@pytest.mark.parametrize("row", [0, 63, 136, 199])
def test_rows_of_another_matrix_are_noticed(row):
    weight = matrix(200, 100)
    linear = packed(weight.clone())
    weight[row, 99] += 1
    assert PackedRows.of(linear, weight) is None


def test_products_without_packed_memory_have_no_rows():
    weight, handler = matrix(200, 100), matrix(1, 1)
    assert PackedRows.of(torch.nn.functional.linear, weight) is None
    assert PackedRows.of(lambda x, w, bias: torch.nn.functional.linear(x, w, bias), weight) is None
    assert PackedRows.of(lambda x, w, bias: handler, weight) is None


@pytest.mark.parametrize("name", ["Handler", "Node", "Memory", "Storage"])
def test_another_release_has_one_field_more(name, monkeypatch, on_another_machine):
    """Whatever is read in place of the others, there are no rows or the right ones, and no crash."""
    weight = matrix(200, 100)
    linear = packed(weight.clone())
    fields = getattr(rows, name)._fields_
    found = []
    for at in range(len(fields)):
        changed = (*fields[:at], ("another", rows.POINTER), *fields[at:])
        monkeypatch.setattr(rows, name, type(name, (ctypes.Structure,), {"_fields_": changed}))
        understood.cache_clear()
        found.append(PackedRows.of(linear, weight))
    assert found.count(None) >= len(fields) - 1
    assert all(one is None or same(one.take(torch.arange(200)), weight) for one in found)


def test_memory_that_nobody_may_read(monkeypatch, on_another_machine):
    def refuse(*args: Any) -> int:
        raise PermissionError

    weight = matrix(200, 100)
    linear = packed(weight.clone())
    monkeypatch.setattr(os, "open", refuse)
    assert PackedRows.of(linear, weight) is None


def tables(worker: Any) -> list[list[int]]:
    """For each composition, the numbers that its stem keeps unpacked of each matrix."""
    manager = worker.model_runner.lora_manager
    stems = [manager.bank.pages(manager.family.plan(name))[-1] for name in NAMES]
    return [[handle.weight.numel() for handle in stem.handles if handle.linear is not None] for stem in stems]


@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_a_tied_table_is_kept_once(architecture, tmp_path, monkeypatch, on_another_machine):
    """Where its rows can be read; elsewhere it is kept in both forms, and the answers are the same."""
    path = make_family(tmp_path, architecture, depth=2, tie_word_embeddings=True)
    path.write_text(path.read_text() + "recipe: {bottom: 1, top: 0, transition: 0}\n")
    jobs = [(name, prompt) for prompt in prompts()[:2] for name in NAMES]
    batch = [name for name, _ in jobs], [prompt for _, prompt in jobs], sampling(8, prompt_logprobs=1)

    def served() -> tuple[list[Answer], list[list[int]]]:
        with Runtime(path, allow_recipes=True, **settings({})) as runtime:
            return answers(runtime.generate(*batch)), runtime.llm.collective_rpc(tables)[0]

    found, kept = served()
    understood.cache_clear()
    monkeypatch.setattr(rows, "WEIGHTS", -1)
    elsewhere, both = served()
    # One packed matrix, the table, which is the head.
    assert kept == [[0]] * len(NAMES)
    assert both == [[512 * 128]] * len(NAMES)
    assert found == elsewhere
    merged = merge(Family.load(path), NAMES[-1], tmp_path / "merged")
    (outputs,) = run(merged, (None, prompts()[:2], sampling(8)))
    ours = [answer.tokens for (name, _), answer in zip(jobs, found, strict=True) if name == NAMES[-1]]
    assert ours == [answer.tokens for answer in answers(outputs)]
    assert len({tuple(answer.tokens) for answer in found}) == len(jobs), "or the test shows nothing"
