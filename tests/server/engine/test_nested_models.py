"""A language model inside a larger one: its compositions say what stock vLLM says on the merged checkpoint."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from engines import Answer, distance, in_one_child
from pico import NESTED, add_processor, make_family
from safetensors.torch import load_file, save_file

from layerloom.composer import ComposeError, Family, merge
from layerloom.server.options import engine_options

STAND_INS = str(Path(__file__).parents[1] / "stand_ins")
NAMES = ["math+swahili", "base", "swahili", "math+bengali@bottom=3,transition=1,stem=average"] * 2


def found(*jobs: dict[str, Any]) -> list[list[Answer]]:
    return in_one_child(*jobs, PYTHONPATH=STAND_INS)


def ours(family: Path, names: list[str] = NAMES, **options: Any) -> dict[str, Any]:
    return {"model": str(family), "names": names, "options": options}


def stock(merged: Path) -> dict[str, Any]:
    """Stock vLLM on a whole checkpoint, for text alone."""
    return {"model": str(merged), "names": NAMES, "options": {"language_model_only": True}}


def check_mixed(ours: list[Answer], theirs: dict[str, list[Answer]]) -> None:
    """As near as rounding: a batch of two rows for each composition is not rounded as one of eight."""
    for name, answers in theirs.items():
        own = [i for i, other in enumerate(NAMES) if other == name]
        assert distance([ours[i] for i in own], [answers[i] for i in own]) < 0.05, name
        rest = [i for i, other in enumerate(NAMES) if other != name]
        assert all(ours[i].tokens != answers[i].tokens for i in rest), "or the test shows nothing"


def test_tokens_of_the_merged_checkpoint(tmp_path):
    """All in one process, as its imports take longer than its engines."""
    jobs = []
    for architecture in NESTED:
        path = make_family(tmp_path / architecture, architecture)
        merged = merge(Family.load(path), NAMES[0], tmp_path / architecture / "merged")
        jobs += [ours(path, NAMES[:1] * 8), stock(merged)]
    answers = found(*jobs)
    for architecture, composed, expected in zip(NESTED, answers[::2], answers[1::2], strict=True):
        assert [answer.tokens for answer in composed] == [answer.tokens for answer in expected], architecture
        assert distance(composed, expected) < 0.01, architecture


def test_experts_of_other_versions_and_classes_in_an_arena(tmp_path):
    path = make_family(tmp_path, "gemma3_vlm")
    family = Family.load(path)
    merged = [merge(family, name, tmp_path / "merged" / name) for name in NAMES[:4]]
    as_in_memory(tmp_path / "math")
    as_causal_lm(tmp_path / "swahili")
    mixed, *expected = found(ours(path, pages="arena"), *map(stock, merged))
    check_mixed(mixed, dict(zip(NAMES, expected, strict=False)))


def as_in_memory(path: Path) -> None:
    """The names that transformers has since 4.52, and has saved."""
    file = path / "model.safetensors"
    rename = {"language_model.model.": "model.language_model.", "vision_tower.": "model.vision_tower."}
    rename["multi_modal_projector."] = "model.multi_modal_projector."
    tensors = load_file(file)
    for old, new in rename.items():
        tensors = {re.sub(f"^{re.escape(old)}", new, name): tensor for name, tensor in tensors.items()}
    save_file(tensors, file, {"format": "pt"})


def as_causal_lm(path: Path) -> None:
    """The language model alone."""
    file, config = path / "model.safetensors", path / "config.json"
    tensors = {name: tensor for name, tensor in load_file(file).items() if name.startswith("language_model.")}
    save_file({name.removeprefix("language_model."): tensors[name] for name in tensors}, file, {"format": "pt"})
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content["text_config"], "architectures": ["Gemma3ForCausalLM"]}))


def test_text_alone_unless_images_are_asked_for(tmp_path, monkeypatch):
    family = Family.load(make_family(tmp_path, "gemma3_vlm", depth=4))

    def options(**given: Any) -> dict[str, Any]:
        return engine_options(family, True, given)

    monkeypatch.setattr("layerloom.server.options.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    with pytest.raises(ComposeError, match="vLLM needs torchvision for a model with a vision tower"):
        options()
    monkeypatch.setattr("layerloom.server.options.find_spec", lambda name: name)
    assert options()["language_model_only"] is True
    assert "language_model_only" not in options(limit_mm_per_prompt={"image": 1})
    assert options(language_model_only=False)["language_model_only"] is False


@pytest.mark.skipif(find_spec("torchvision") is None, reason="images are read with torchvision")
@pytest.mark.parametrize("pages", ["packed", "arena"])
def test_images(pages, tmp_path):
    path = make_family(tmp_path, "gemma3_vlm", vocab_size=520)
    for checkpoint in ("base", "math", "swahili", "bengali"):
        add_processor(tmp_path / checkpoint)
    merged = merge(Family.load(path), NAMES[0], tmp_path / "merged")

    def seeing(model: Path, **options: Any) -> dict[str, Any]:
        job = {"model": str(model), "names": NAMES, "image": 40, "length": 10}
        return {**job, "options": {"limit_mm_per_prompt": {"image": 1}, **options}}

    mixed, expected = in_one_child(seeing(path, pages=pages), seeing(merged))
    check_mixed(mixed, {NAMES[0]: expected})
