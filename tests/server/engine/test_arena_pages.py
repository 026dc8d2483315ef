"""Pages in an arena, which is how a GPU keeps them, here with the kernels' torch twins."""

import pytest
import yaml
from engines import answers, distance, prompts, run, sampling
from pico import EXPERTS, make_family
from test_archives import write_adapter

from layerloom.composer import ComposeError, Family, extract, merge
from layerloom.composer.sources.codecs import Int4, Int8, Lowrank, Sign
from layerloom.server.engine.batch import Batch

CODECS = {"math": Int8(), "swahili": Int4(), "bengali": Sign(), "factors": Lowrank(rank=8)}


pytestmark = pytest.mark.usefixtures("engine_environment")


@pytest.fixture
def archives(tmp_path):
    """A family of four lossy archives and an adapter; one composition says how it is kept."""
    path = make_family(tmp_path, "qwen2", experts={**EXPERTS, "factors": "task"})
    content = yaml.safe_load(path.read_text())
    for name, codec in CODECS.items():
        extract(tmp_path / "base", tmp_path / name, tmp_path / f"{name}.safetensors", codec)
        content["experts"][name]["path"] = f"{name}.safetensors"
    write_adapter(tmp_path / "lora", Family.load(path).base)
    content["experts"]["lora"] = {"kind": "task", "path": "lora"}
    content["compositions"] = {"whole": {"task": "math", "language": "swahili", "residency": "assembled"}}
    path = tmp_path / "archives.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_deltas_that_stay_packed(archives, tmp_path, capfd):
    """x·B + x·Δ̂ is x·(B + Δ̂), but for where it is rounded; all kinds of pages in one batch."""
    names = ["math+swahili", "base", "math", "bengali", "math+bengali", "whole", "factors+swahili", "lora+bengali"]
    family, expected = Family.load(archives), {}
    for name in names:
        (outputs,) = run(merge(family, name, tmp_path / "merged" / name), (None, prompts()[:4], sampling()))
        expected[name] = answers(outputs)
    jobs = [(name, i) for i in range(4) for name in names]
    batch = [name for name, _ in jobs], [prompts()[i] for _, i in jobs], sampling()
    (outputs,) = run(archives, batch, pages="arena", residency="delta")
    found: dict[str, list] = {}
    for (name, _), answer in zip(jobs, answers(outputs), strict=True):
        found.setdefault(name, []).append(answer)
    for name in ("base", "whole"):
        assert [answer.tokens for answer in found[name]] == [answer.tokens for answer in expected[name]]
    apart = {name: distance(found[name], expected[name]) for name in names}
    between = distance(expected["math"], expected["base"])
    with capfd.disabled():
        print(
            f"\ndeltas: largest logprob difference to the merge {max(apart.values()):.2g}, base to math {between:.2g}"
        )
    assert max(apart.values()) < 0.15
    assert between > 0.5, "or the test shows nothing"


def test_an_adapter_takes_the_memory_of_its_factors(archives, tmp_path):
    """Of a whole layer, or of the stem that it shares with the base, it would not fit."""
    model = (tmp_path / "base" / "model.safetensors").stat().st_size
    options = {"pages": "arena", "bank_memory": model // 5, "max_loras": 1}
    path = tmp_path / "lora.yaml"
    path.write_text(yaml.safe_dump({"base": "base", "experts": {"lora": {"kind": "task", "path": "lora"}}}))
    with pytest.raises(ComposeError, match="any 1 of 2 compositions at once need"):
        run(path, **options)
    batch = ("lora", prompts()[:2], sampling(8))
    (found,), (expected,) = run(path, batch, residency="delta", **options), run(path, batch, pages="arena")
    assert distance(answers(found), answers(expected)) < 0.1


def test_as_a_captured_graph_is_replayed(archives, monkeypatch):
    """Every step as a CUDA graph captured with dummies runs it: whatever is decided on the host is the same in each."""
    batch = ["math", "base", "lora+swahili", "whole"], prompts()[:4], sampling()
    options = {"pages": "arena", "residency": "delta"}
    (expected,) = run(archives, batch, **options)
    route = Batch.route
    monkeypatch.setattr(Batch, "route", lambda own, compositions, rows, replayed: route(own, compositions, rows, True))
    (found,) = run(archives, batch, **options)
    assert distance(answers(found), answers(expected)) < 0.05


def test_a_bank_smaller_than_all_compositions(tmp_path):
    """Compositions come and go, pages are pushed together, and every answer stays the same."""
    path = make_family(tmp_path)
    names = ["math", "swahili", "bengali", "math+swahili", "math+bengali", "math+swahili@bottom=2,stem=base"]
    batches = [(name, prompts()[:2], sampling(8)) for name in names * 2]
    free = run(path, *batches, pages="arena")
    model = sum(file.stat().st_size for file in (tmp_path / "base").glob("*.safetensors"))
    for pages in ("arena", "packed"):
        tight = run(path, *batches, pages=pages, max_loras=1, bank_memory=int(1.5 * model))
        for found, expected in zip(tight, free, strict=True):
            assert distance(answers(found), answers(expected)) < (0.05 if pages == "packed" else 1e-6)


@pytest.mark.parametrize("pages", ["arena", "packed"])
def test_a_bank_that_is_too_small_is_refused_at_the_start(tmp_path, pages):
    with pytest.raises(Exception, match="any 2 of 6 compositions at once need") as error:
        run(make_family(tmp_path), max_loras=2, bank_memory=1000, pages=pages)
    assert isinstance(error.value, ComposeError)
    assert "start with a larger --bank-memory or a smaller --max-loras" in str(error.value)
