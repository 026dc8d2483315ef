"""The format is what these bytes are: a change that breaks this test needs a new format version."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import write_checkpoint

from layerloom.composer import Archive, Checkpoint, extract
from layerloom.composer.sources.codecs import Exact, Int4, Int8, Sign

GOLDEN = Path(__file__).parent / "golden"
CODECS = {"exact": Exact(), "int4": Int4(), "int8": Int8(group=32), "sign": Sign()}
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


def read_golden(golden: Path, root: Path) -> None:
    base, expert = Checkpoint(root / "base"), Checkpoint(root / "expert")
    archive = Archive(golden, base)
    assert archive.manifest.tensors.keys() == {WEIGHT, NORM}
    assert torch.equal(archive.read(NORM), expert.read(NORM))
    if golden.stem in ("int4", "exact"):
        # Every difference is a multiple of 1/8, and 7/8 the largest of each row.
        assert torch.equal(archive.read(WEIGHT), expert.read(WEIGHT))


@pytest.mark.parametrize("codec", CODECS)
def test_golden_bytes(tmp_path, codec, monkeypatch):
    write_pair(tmp_path)
    golden = GOLDEN / "2" / f"{codec}.safetensors"
    monkeypatch.setattr(sys.modules[extract.__module__], "tool_version", lambda: "test")
    extract(tmp_path / "base", tmp_path / "expert", tmp_path / "made.safetensors", CODECS[codec])
    assert (tmp_path / "made.safetensors").read_bytes() == golden.read_bytes()
    read_golden(golden, tmp_path)


@pytest.mark.parametrize("golden", sorted((GOLDEN / "1").iterdir()), ids=lambda file: file.stem)
def test_version_1_is_read(tmp_path, golden):
    write_pair(tmp_path)
    read_golden(golden, tmp_path)
    archive = Archive(golden, Checkpoint(tmp_path / "base"))
    assert archive.manifest.version == 1
    # The integers of both versions are the same bytes.
    second = Archive(GOLDEN / "2" / golden.name, archive.base)
    assert torch.equal(second.read(WEIGHT), archive.read(WEIGHT))


@pytest.mark.parametrize("everything", [True, False])
def test_version_2_where_it_is_needed(tmp_path, everything):
    write_pair(tmp_path)
    out = tmp_path / "a.safetensors"
    manifest = extract(tmp_path / "base", tmp_path / "expert", out, Int8(), everything=everything)
    assert manifest.version == (1 if everything else 2)


def test_the_words_of_the_specification():
    archive = GOLDEN / "2" / "int4.safetensors"
    from safetensors.torch import load_file

    words = load_file(archive)[f"{WEIGHT}:words"]
    # 40 columns are one narrow tile of 5 words: field i of word w is column 5·i + w.
    assert words.shape == (3, 5)
    for column in range(40):
        code = (int(words[0, column % 5]) >> (4 * (column // 5))) & 15
        assert code - 8 == column % 15 - 7
