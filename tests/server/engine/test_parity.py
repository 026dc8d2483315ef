"""A composition's tokens are those of the merged checkpoint under stock vLLM, alone and in mixed batches."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from engines import Answer, answers, distance, in_child, in_one_child, prompts, run, sampling
from pico import ARCHITECTURES, make_family
from safetensors.torch import load_file, save_file

from layerloom.composer import ComposeWarning, Family, extract, merge

# A named composition whose layers take attention, mlp and norms from different experts, next to two layer swaps.
PATCHWORK = {
    "recipe": {
        "method": "table",
        "layers": {
            "0-3": {"attention": "swahili", "mlp": {"math": 0.5, "bengali": 0.25}, "norm": "base"},
            "4-7": {"math": 0.5, "swahili": 0.5},
        },
        "stem": "bengali",
    }
}
NAMES = ["base", "math", "swahili", "math+swahili", "math+bengali@bottom=3,transition=1,stem=average", "patchwork"]


pytestmark = pytest.mark.usefixtures("engine_environment")


# Llama with tied embeddings has an output head of its own that shares the table's weight; Gemma's table is the head.
CASES = {**{name: (name, {}) for name in ARCHITECTURES}, "llama, tied": ("llama", {"tie_word_embeddings": True})}


def family_of(root: Path, architecture: str, **config: Any) -> Path:
    path = make_family(root, architecture, **config)
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "compositions": {"patchwork": PATCHWORK}}))
    return path


@pytest.mark.parametrize("case", CASES)
def test_tokens_of_the_merged_checkpoint(case, tmp_path, capfd):
    architecture, config = CASES[case]
    path = family_of(tmp_path, architecture, **config)
    family = Family.load(path)
    expected: dict[str, list[Answer]] = {}
    for name in NAMES:
        merged = merge(family, name, tmp_path / "merged" / name)
        (outputs,) = run(merged, (None, prompts(), sampling()), enable_prefix_caching=True)
        expected[name] = answers(outputs)
    different = {tuple(tuple(answer.tokens) for answer in found) for found in expected.values()}
    assert len(different) == len(NAMES), "the compositions must not answer alike, or the test shows nothing"

    # Prompt by prompt, so that neighbours in the batch are of different compositions.
    jobs = [(name, i) for i in range(len(prompts())) for name in NAMES]
    batch = ([name for name, _ in jobs], [prompts()[i] for _, i in jobs], sampling())
    (from_archives,) = run(archived(path), batch, enable_prefix_caching=True)
    (in_arena,) = run(path, batch, enable_prefix_caching=True, pages="arena")
    *ones, all_of_them = run(
        path, *((name, prompts(), sampling()) for name in NAMES), batch, enable_prefix_caching=True
    )
    alone = {name: answers(outputs) for name, outputs in zip(NAMES, ones, strict=True)}
    mixed = answers(all_of_them)

    for name in NAMES:
        assert [a.tokens for a in alone[name]] == [a.tokens for a in expected[name]], name
    for (name, i), answer in zip(jobs, mixed, strict=True):
        assert answer.tokens == expected[name][i].tokens, (name, i)
    assert answers(from_archives) == mixed
    assert [answer.tokens for answer in answers(in_arena)] == [answer.tokens for answer in mixed]
    assert distance(answers(in_arena), mixed) < 0.01
    apart = max(distance(alone[name], expected[name]) for name in NAMES)
    together = distance(mixed, [expected[name][i] for name, i in jobs])
    with capfd.disabled():
        print(f"\n{case}: largest logprob difference to stock vLLM: alone {apart:.2g}, mixed {together:.2g}")
    assert apart < 0.01
    assert together < 0.05


def archived(path: Path, *names: str) -> Path:
    """The same family with exact delta archives for experts, all or the named ones."""
    content = yaml.safe_load(path.read_text())
    for name in names or content["experts"]:
        extract(path.parent / "base", path.parent / name, path.parent / f"{name}.safetensors")
        content["experts"][name]["path"] = f"{name}.safetensors"
    archives = path.with_name("archives.yaml")
    archives.write_text(yaml.safe_dump(content))
    return archives


def test_checkpoints_as_they_lie_about(tmp_path):
    """Norms in fp32, an fp32 expert, a tied head stored once more, and Mistral's own format beside the base."""
    path = family_of(tmp_path, "qwen3", tie_word_embeddings=True)
    for name in ("base", "math", "swahili", "bengali"):
        file = tmp_path / name / "model.safetensors"
        stored = {n: t.float() if "norm" in n or name == "math" else t.clone() for n, t in load_file(file).items()}
        stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
        file.unlink()
        save_file(stored, file, {"format": "pt"})
    save_file({"layers.0.attention.wq.weight": torch.zeros(4, 4)}, tmp_path / "base" / "consolidated.safetensors")
    (tmp_path / "base" / "params.json").write_text("{}")

    with pytest.warns(ComposeWarning, match="math: F32 tensors are read as BF16"):
        family = Family.load(path)
    names = ["base", "math", "math+swahili", "patchwork"]
    jobs = [(name, i) for i in range(len(prompts())) for name in names]
    batch = ([name for name, _ in jobs], [prompts()[i] for _, i in jobs], sampling())
    packed, in_arena = (answers(run(path, batch, **pages)[0]) for pages in ({}, {"pages": "arena"}))
    for name in names:
        (outputs,) = run(merge(family, name, tmp_path / "merged" / name), (None, prompts(), sampling()))
        ours, theirs = (
            [a for (of, _), a in zip(jobs, found, strict=True) if of == name] for found in (packed, in_arena)
        )
        assert [a.tokens for a in ours] == [a.tokens for a in theirs] == [a.tokens for a in answers(outputs)], name


def test_compositions_share_no_kv_cache(tmp_path):
    """One long prompt, sent to two compositions with prefix caching on, in both orders.

    The second engine has archives for experts, and says the same.
    """
    path = family_of(tmp_path, "llama")
    # Longer than three blocks of 32 tokens, so that there is a prefix to find.
    prompt = [{"prompt_token_ids": [3 + i % 400 for i in range(100)]}]
    pair = ["math+swahili", "math+bengali"]
    found = []
    for experts, order in ((path, pair), (archived(path), pair[::-1])):
        batches = [(name, prompt, sampling()) for name in (*order, *order)]
        outputs = [output for (output,) in run(experts, *batches, enable_prefix_caching=True, block_size=32)]
        assert [output.num_cached_tokens for output in outputs] == [0, 0, 96, 96], "each finds its own prefix only"
        first, again = answers(outputs)[:2], answers(outputs)[2:]
        # Where a CPU has AMX, stock vLLM rounds a prompt whose beginning it finds otherwise, too.
        assert distance(first, again) < 0.05
        found.append(dict(zip(order, first, strict=True)))
    assert found[0] == found[1]
    assert distance([found[0][pair[0]]], [found[0][pair[1]]]) > 0.5, "or the test shows nothing"


def test_prompt_logprobs_come_from_the_compositions_own_head(tmp_path):
    path = family_of(tmp_path, "llama")
    family = Family.load(path)
    names = ["math", "swahili", "base", "math+swahili"]
    params = sampling(4, prompt_logprobs=1)

    expected = []
    for name, prompt in zip(names, prompts(), strict=False):
        (outputs,) = run(merge(family, name, tmp_path / "merged" / name), (None, [prompt], params))
        expected += answers(outputs)
    (outputs,) = run(path, (names, prompts()[: len(names)], params))
    for ours, theirs in zip(answers(outputs), expected, strict=True):
        assert len(ours.prompt) == len(prompts()[0]["prompt_token_ids"]) - 1
        assert ours.prompt == pytest.approx(theirs.prompt, abs=1e-3)


def test_an_engine_draws_the_tokens_that_stock_draws(tmp_path):
    """Without a seed in the request they depend on the engine's, and on all that has drawn from it before."""
    path = make_family(tmp_path)
    merged = merge(Family.load(path), "math+swahili", tmp_path / "merged")
    job = {"names": ["math+swahili"] * 4, "sampling": {"temperature": 1.0}, "options": {}}
    ours, theirs = in_one_child(*({**job, "model": str(model)} for model in (path, merged)))
    assert [answer.tokens for answer in ours] == [answer.tokens for answer in theirs]


def test_tensor_parallel(tmp_path):
    """With biases, an expert that is a checkpoint, and others that are archives; packed and in an arena."""
    path = family_of(tmp_path, "qwen2")
    names = ["math+swahili", "base", "patchwork", "math", "math+swahili", "math+bengali", "swahili", "patchwork"]
    merged = merge(Family.load(path), "patchwork", tmp_path / "merged")

    def job(model: Path, **options: Any) -> dict[str, Any]:
        return {"model": str(model), "names": names, "options": {"tensor_parallel_size": 2, **options}}

    jobs = job(merged), job(archived(path, "math", "bengali")), job(path, pages="arena")
    theirs, packed, in_arena = in_one_child(*jobs)
    for i in (i for i, name in enumerate(names) if name == "patchwork"):
        assert packed[i].tokens == theirs[i].tokens
    # Where a CPU has AMX, torch's product and the packed one are rounded otherwise.
    assert distance(in_arena, packed) < 0.05


def test_compiled(tmp_path, capfd):
    """With torch.compile and an archive, no further from stock compiled than stock compiled is from stock eager.

    Pages in an arena are as near as rounding. Compiling takes a minute, so it is Qwen 3, which has all that Llama has.
    """
    # Two layers, as each is compiled, and of two experts.
    path = make_family(tmp_path, "qwen3", depth=2)
    path.write_text(path.read_text() + "recipe: {bottom: 1, top: 0, transition: 0}\n")
    merged = merge(Family.load(path), "math+swahili", tmp_path / "merged")
    names = ["math+swahili", "base"] * 4
    cache = {"VLLM_CACHE_ROOT": str(tmp_path / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    compiled = {"enforce_eager": False, "compilation_config": {"mode": 3}}

    def found(model: Path, **options: Any) -> list[Answer]:
        return in_child({"model": str(model), "names": names, "options": compiled | options}, **cache)[::2]

    theirs, ours, in_arena = found(merged), found(archived(path, "math")), found(path, pages="arena")
    (outputs,) = run(merged, (None, prompts(), sampling()))
    eager = answers(outputs)[::2]
    ours_apart, eager_apart = distance(ours, theirs), distance(eager, theirs)
    with capfd.disabled():
        print(f"\ncompiled: layerloom to stock {ours_apart:.2g}, stock eager to stock compiled {eager_apart:.2g}")
    assert ours_apart <= eager_apart
    assert distance(in_arena, theirs) < 0.05


def test_pages_packed_by_as_many_threads_as_compute(tmp_path):
    """oneDNN packs for a number of threads: those of the thread that makes pages are the engine's."""
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "num_key_value_heads": 2}
    path = make_family(tmp_path, "qwen2", depth=4, experts={"math": "task", "swahili": "language"}, **shape)
    merged, names = merge(Family.load(path), "math+swahili", tmp_path / "merged"), ["math+swahili"] * 8
    jobs = ({"model": str(model), "names": names, "options": {}} for model in (merged, path))
    expected, found = in_one_child(*jobs, OMP_NUM_THREADS="2")
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
    assert distance(found, expected) < 0.01


def test_a_model_whose_loading_cannot_be_learned(tmp_path, monkeypatch):
    """One that computes with what it loads: vLLM's own code then fills each page."""
    path = family_of(tmp_path, "qwen2")
    jobs = NAMES, prompts()[: len(NAMES)], sampling()

    def served() -> list[list[list[int]]]:
        return [[a.tokens for a in answers(run(path, jobs, pages=pages)[0])] for pages in ("packed", "arena")]

    learned = served()
    monkeypatch.setattr(
        "layerloom.server.engine.rehearsal.rehearse", lambda model, places, sources: dict.fromkeys(places)
    )
    assert served() == learned
