"""The format is what these bytes are: a change that breaks this test needs a new format version."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import write_checkpoint

from layerloom.composer import Archive, Checkpoint, extract
from layerloom.composer.sources.codecs import Int4, Int8, Sign

GOLDEN = Path(__file__).parent / "golden"
CODECS = {"int4": Int4(), "int8": Int8(group=32), "sign": Sign()}
WEIGHT, NORM = "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"


def write_pair(root: Path) -> None:
    """Whole numbers and powers of two: the same on every machine."""
    count = torch.arange(3 * 40).view(3, 40)
    base = {
        WEIGHT: (count % 7 - 3).bfloat16(),
        NORM: torch.ones(40, dtype=torch.bfloat16),
        "lm_head.weight": torch.zeros(4, 2, dtype=torch.bfloat16),
    }
    expert = {**base, WEIGHT: base[WEIGHT] + (count % 15 - 7).bfloat16() / 8, NORM: base[NORM] + count[0] / 64}
    for name, tensors in (("base", base), ("expert", expert)):
        same = {key: tensor.bfloat16() for key, tensor in tensors.items()}
        write_checkpoint(root / name, same, {"num_hidden_layers": 1, "model_type": "llama"})


@pytest.mark.parametrize("codec", CODECS)
def test_golden_bytes(tmp_path, codec, monkeypatch):
    write_pair(tmp_path)
    golden = GOLDEN / f"{codec}.safetensors"
    monkeypatch.setattr(sys.modules[extract.__module__], "tool_version", lambda: "test")
    extract(tmp_path / "base", tmp_path / "expert", tmp_path / "made.safetensors", CODECS[codec])
    assert (tmp_path / "made.safetensors").read_bytes() == golden.read_bytes()

    base, expert = Checkpoint(tmp_path / "base"), Checkpoint(tmp_path / "expert")
    archive = Archive(golden, base)
    assert archive.manifest.tensors.keys() == {WEIGHT, NORM}
    assert torch.equal(archive.read(NORM), expert.read(NORM))
    if codec == "int4":
        # Every difference is a multiple of 1/8, and 7/8 the largest of each row.
        assert torch.equal(archive.read(WEIGHT), expert.read(WEIGHT))


def test_the_words_of_the_specification():
    archive = GOLDEN / "int4.safetensors"
    from safetensors.torch import load_file

    words = load_file(archive)[f"{WEIGHT}:words"]
    # 40 columns are one narrow tile of 5 words: field i of word w is column 5·i + w.
    assert words.shape == (3, 5)
    for column in range(40):
        code = (int(words[0, column % 5]) >> (4 * (column // 5))) & 15
        assert code - 8 == column % 15 - 7
