"""What the engine refuses, at start and on use, and that it goes on afterwards."""

import gc
from pathlib import Path

import pytest
import torch
import vllm
from engines import answers, distance, in_child, prompts, run, sampling
from packaging.version import Version
from pico import ARCHITECTURES, make_family
from vllm.lora.request import LoRARequest

from layerloom.composer import ComposeError, Family, UnknownName, merge
from layerloom.server import importing
from layerloom.server.engine.plugin import check_version

pytestmark = pytest.mark.usefixtures("engine_environment")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture
def runtime(path):
    from engines import settings

    from layerloom.server import Runtime

    with Runtime(path, **settings({})) as runtime:
        yield runtime


def test_what_fails_leaves_the_engine_alive(path, runtime):
    """In one engine: errors on names, on adapters that are not this family's, and correct answers after each."""
    engine = runtime.llm.llm_engine

    def answer():
        return answers(runtime.generate("math+swahili", prompts()[:2], sampling()))

    first = answer()
    with pytest.raises(UnknownName, match=r"no model 'mathh'. Did you mean 'math'\?"):
        runtime.generate("mathh", prompts())
    with pytest.raises(ValueError, match="1 models for 8 prompts"):
        runtime.generate(["math"], prompts())
    with pytest.raises(TypeError, match="either params or its fields"):
        runtime.generate("math", prompts(), sampling(), max_tokens=3)
    with pytest.raises(Exception, match="no model 'x'"):
        engine.add_lora(LoRARequest("x", 7, "/no/such/adapter"))
    with pytest.raises(Exception, match=r"made for digest 0000.*Load the family anew"):
        engine.add_lora(LoRARequest("math", 8, "0" * 64))
    assert not {7, 8} & set(engine.list_loras())
    assert answer() == first

    adapter_id = next(iter(engine.list_loras()))
    with pytest.raises(Exception, match=r"already stands for math\+swahili"):
        engine.add_lora(LoRARequest("math", adapter_id, Family.load(path).plan("math").digest))
    assert engine.pin_lora(adapter_id)
    assert engine.remove_lora(adapter_id)
    assert not engine.remove_lora(adapter_id)
    assert answer() == first


def test_garbage_is_looked_for_as_before(runtime):
    """Rarely while vLLM was imported, which engines.py has begun, and no longer."""
    assert gc.get_threshold() == importing.BEFORE
    gc.set_threshold(9000, 5, 5)
    try:
        importing.end()
        assert gc.get_threshold() == (9000, 5, 5), "somebody's own"
    finally:
        gc.set_threshold(*importing.BEFORE)


def test_more_compositions_than_fit_take_turns(path):
    """Two at a time in a batch and two in memory: the others wait, are assembled again, and answer the same."""
    names = ["math", "swahili", "bengali", "math+swahili", "math+bengali", "base"]
    jobs = (names, prompts()[: len(names)], sampling())
    (roomy,) = run(path, jobs)
    first, second = run(path, jobs, jobs, max_loras=2, max_cpu_loras=2)
    expected = [answer.tokens for answer in answers(roomy)]
    assert [answer.tokens for answer in answers(first)] == expected
    assert [answer.tokens for answer in answers(second)] == expected


def test_chunked_prefill_mixes_prompts_and_decodes(path):
    """Prompts cut in pieces of 32 tokens, next to running decodes of other compositions."""
    names = ["math", "swahili", "math+swahili", "math+bengali"] * 2
    long = [{"prompt_token_ids": [3 + (7 * i + k) % 490 for i in range(40 + 20 * k)]} for k in range(len(names))]
    (whole,) = run(path, (names, long, sampling()))
    (cut,) = run(path, (names, long, sampling()), max_num_batched_tokens=32, max_num_seqs=8)
    # On some CPUs a product of other rows is rounded otherwise: there stock vLLM changes a token here, too.
    assert distance(answers(cut), answers(whole)) < 0.05
    assert distance(answers(whole)[::2], answers(whole)[1::2]) > 0.5, "or the test shows nothing"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_other_dtypes(dtype, tmp_path):
    path = make_family(tmp_path, dtype=dtype)
    merged = merge(Family.load(path), "math+swahili", tmp_path / "merged")
    (theirs,) = run(merged, (None, prompts(), sampling()))
    names = ["math+swahili", "base"] * 8
    (ours,) = run(path, (names, [p for p in prompts() for _ in range(2)], sampling()))
    assert [a.tokens for a in answers(ours)[::2]] == [a.tokens for a in answers(theirs)]


def test_fused_experts_are_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(
        ARCHITECTURES,
        "moe",
        (
            "qwen3_moe",
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1},
        ),
    )
    path = make_family(tmp_path, "moe", depth=2, experts={"math": "task"})
    with pytest.raises(Exception, match=r"model\.layers\.0\.mlp.* cannot be paged"):
        run(path, ("math", prompts(), sampling()))


def test_options_that_contradict_layerloom(path):
    with pytest.raises(ComposeError, match="sets quantization itself"):
        run(path, ("math", prompts(), sampling()), quantization="fp8")
    with pytest.raises(ComposeError, match="does not run with pipeline parallelism"):
        run(path, ("math", prompts(), sampling()), pipeline_parallel_size=2)
    with pytest.raises(ComposeError, match="does not run with speculative decoding"):
        run(path, ("math", prompts(), sampling()), speculative_config={"method": "ngram", "num_speculative_tokens": 2})


def test_versions():
    check_version(vllm.__version__)
    for version in ("0.25.1", "0.34.0"):
        with pytest.raises(RuntimeError, match=rf"works with vLLM >=0.26,<0.34; installed is {version}"):
            check_version(version)
    assert Version("0.26") <= Version(vllm.__version__)


def test_stock_engines_in_a_process_with_layerloom_stay_stock(path):
    """The plugin is loaded in every vLLM process of the machine; without a family it must change nothing."""
    without = in_child(
        {"model": str(path.parent / "base"), "names": ["base"] * 8, "options": {}}, VLLM_PLUGINS="none-of-them"
    )
    run(path, ("math+swahili", prompts(), sampling()))
    (outputs,) = run(path.parent / "base", (None, prompts(), sampling()))
    assert answers(outputs) == without
