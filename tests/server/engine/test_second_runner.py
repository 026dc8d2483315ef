"""vLLM's second model runner, and the engine on the Triton kernels.

Both need Triton, so both run in its interpreter on the CPU, with few layers and tokens.
"""

import pytest
import yaml
from engines import PROMPTS, answers, distance, in_child, prompts, run, sampling
from pico import make_family

from layerloom.composer import Family, extract, merge
from layerloom.composer.sources.codecs import Int4, Int8, Sign

NAMES = ["math+swahili", "base", "math", "bengali"]
LENGTH = 6
SHORT = {"max_tokens": 3, "prompt_logprobs": 1}
# vLLM starts with a step of as many tokens as a batch may have.
SMALL = {"max_num_seqs": 4, "max_num_batched_tokens": 32}


pytestmark = pytest.mark.usefixtures("engine_environment")


def family_of(root, architecture="llama", **codecs):
    """Two layers: of math+swahili the first is Swahili's. The experts with codecs are archives."""
    path = make_family(root, architecture, depth=2)
    content = yaml.safe_load(path.read_text())
    content["recipe"] = {"bottom": 1, "top": 0, "transition": 0}
    for name, codec in codecs.items():
        extract(root / "base", root / name, root / f"{name}.safetensors", codec)
        content["experts"][name]["path"] = f"{name}.safetensors"
    path.write_text(yaml.safe_dump(content))
    return path


def second_runner(path, kernels="torch", **options):
    environment = {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1", "LAYERLOOM_KERNELS": kernels}
    job = {"model": str(path), "names": NAMES, "sampling": SHORT, "length": LENGTH, "options": SMALL | options}
    return in_child(job, **environment)


@pytest.mark.parametrize("pages", ["packed", "arena"])
def test_tokens_of_the_merged_checkpoint(pages, tmp_path):
    path = family_of(tmp_path)
    found = second_runner(path, pages=pages)
    for name, ids, answer in zip(NAMES, PROMPTS, found, strict=False):
        merged = merge(Family.load(path), name, tmp_path / "merged" / name)
        (outputs,) = run(merged, (None, prompts([ids[:LENGTH]]), sampling(**SHORT)), **SMALL)
        (expected,) = answers(outputs)
        assert answer.tokens == expected.tokens, name
        assert len(answer.prompt) == LENGTH - 1
        assert answer.prompt == pytest.approx(expected.prompt, abs=1e-3)
    assert len({tuple(answer.tokens) for answer in found}) == len(NAMES), "or the test shows nothing"


def test_triton_kernels_in_the_engine(tmp_path):
    """Every kernel that a GPU runs, with biases, and layers of each codec that stay packed."""
    path = family_of(tmp_path, "qwen2", math=Int8(), swahili=Int4(), bengali=Sign())
    options = {"pages": "arena", "residency": "delta"}
    theirs, ours = second_runner(path, **options), second_runner(path, "triton", **options)
    # Sums in another order may change places of tokens that are nearly as likely as each other.
    assert distance(ours, theirs) < 0.05
    for a, b in zip(ours, theirs, strict=True):
        assert a.tokens[0] == b.tokens[0] and a.prompt == pytest.approx(b.prompt, abs=0.05)
    assert len({tuple(answer.tokens) for answer in ours}) == len(NAMES), "or the test shows nothing"
