"""Tokenizers of other kinds and in other files; transformers' own classes are the judge."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from pico import make_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from tokens import (
    LLAMA,
    change,
    found,
    ids,
    strings,
    template,
    token,
)
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer

from layerloom.composer import Family, FamilyError
from layerloom.composer.family import vocabulary as vocabulary_module
from layerloom.composer.family.tokenizers import tokenizer_problems


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_other_models(base, expert, kind):
    words = ["<unk>", "a", "b", "ab"]
    vocab = dict(zip(words, range(4), strict=True))
    made = {
        "Unigram": lambda: models.Unigram([(word, -float(index)) for word, index in vocab.items()], unk_id=0),
        "WordPiece": lambda: models.WordPiece(vocab, unk_token="<unk>"),
        "WordLevel": lambda: models.WordLevel(vocab, unk_token="<unk>"),
    }[kind]()
    tokenizer = Tokenizer(made)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    for directory in (base, expert):
        for file in directory.glob("*token*"):
            file.unlink()
        tokenizer.save(str(directory / "tokenizer.json"), pretty=directory is base)
    assert found(base, expert) == []

    def another(content):
        if kind == "Unigram":
            content["model"]["vocab"][2][1] = -9.0
        else:
            content["model"]["unk_token"] = "a"

    change(expert / "tokenizer.json", another)
    assert len(found(base, expert)) == 1


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two sentencepiece models of the same size, of two texts."""
    made = {}
    for name, words in (("one", "baka diso heri moja mbili tatu"), ("two", "nne tano sita saba nane tisa kumi")):
        prefix = tmp_path_factory.mktemp(name) / "tokenizer"
        text = prefix.parent / "text"
        text.write_text("\n".join(f"{word} {word[::-1]}" for word in words.split()) * 50)
        sentencepiece.SentencePieceTrainer.Train(
            input=str(text), model_prefix=str(prefix), vocab_size=300, model_type="bpe", byte_fallback=True,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        made[name] = prefix.with_suffix(".model")
    return made


def test_sentencepiece_models(tmp_path, pieces, capfd):
    paths = {name: tmp_path / name for name in ("base", "same", "other", "fast", "slow")}
    for name, path in paths.items():
        path.mkdir()
        (path / "config.json").write_text(json.dumps(LLAMA))
        (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
        shutil.copy(pieces["two" if name == "other" else "one"], path / "tokenizer.model")
    AutoTokenizer.from_pretrained(paths["fast"]).save_pretrained(paths["fast"])
    (paths["fast"] / "tokenizer.model").unlink()
    base = paths["base"]
    assert found(base, paths["same"]) == []
    (line,) = found(base, paths["other"])
    assert f"{paths['other'] / 'tokenizer.model'}: is not the base's tokenizer: has the tokens " in line
    assert found(base, paths["fast"]) == []
    change(paths["fast"] / "tokenizer.json", token("<tool>", 300))
    (line,) = found(base, paths["fast"])
    assert "fast/tokenizer.json: is not the base's tokenizer: has the tokens '<tool>' (" in line
    (paths["slow"] / "tokenizer.model").write_bytes(b"no such model")
    (line,) = tokenizer_problems(base, paths["slow"], LLAMA)
    assert "slow/tokenizer.model: is not the base's tokenizer, and cannot be compared with it: " in line
    assert capfd.readouterr().out == ""


def test_the_json_decides_where_a_sentencepiece_model_lies_beside_it(base, expert, pieces):
    shutil.copy(pieces["one"], base / "tokenizer.model")
    shutil.copy(pieces["two"], expert / "tokenizer.model")
    assert found(base, expert) == []


def test_a_pipeline_that_transformers_makes_anew(tmp_path, pieces):
    """Llama 2's tokenizer.json, as it was published and as transformers 5 saves it."""
    shutil.copy(pieces["one"], tmp_path / "tokenizer.model")
    new, published = tmp_path / "new", tmp_path / "published"
    LlamaTokenizer.from_pretrained(tmp_path).save_pretrained(new)
    shutil.copytree(new, published)

    def rewrite(content: dict[str, Any]) -> None:
        steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
        content |= {"normalizer": {"type": "Sequence", "normalizers": steps}, "pre_tokenizer": None}

    change(published / "tokenizer.json", rewrite)
    assert ids(new) == ids(published)
    assert found(published, new) == []
    for directory in (new, published):
        change(directory / "tokenizer_config.json", lambda content: content.update(tokenizer_class="TokenizersBackend"))
    assert "its normalizer is" in found(published, new)[0]


def publish(directory: Path, kind: str, bos: bool, **settings: Any) -> dict[str, Any]:
    """A directory as transformers 4 and tokenizers 0.19 wrote it; returns what its tokenizer.json holds."""
    content = json.loads(make_tokenizer().backend_tokenizer.to_str())
    strings(content)
    for key in ("byte_fallback", "ignore_merges"):
        content["model"].pop(key)
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    content["post_processor"] = step
    if bos:
        template(content)
        content["post_processor"] = {"type": "Sequence", "processors": [step, content["post_processor"]]}
    decoder = {str(token.pop("id")): token for token in json.loads(json.dumps(content["added_tokens"]))}
    settings |= {"added_tokens_decoder": decoder, "tokenizer_class": kind, "eos_token": "<eos>", "pad_token": "<pad>"}
    settings |= {"additional_special_tokens": ["<bos>", "<eos>"], "bos_token": "<bos>" if bos else None}
    directory.mkdir()
    (directory / "tokenizer.json").write_text(json.dumps(content))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<eos>", "pad_token": "<pad>"}))
    return content


@pytest.mark.parametrize(
    ("model_type", "kind", "bos", "settings"),
    [
        ("qwen2", "Qwen2Tokenizer", False, {"add_prefix_space": False, "add_bos_token": False, "errors": "replace"}),
        ("gpt2", "GPT2Tokenizer", False, {"add_prefix_space": False, "add_bos_token": False}),
        ("llama", "PreTrainedTokenizerFast", True, {"clean_up_tokenization_spaces": True}),
        ("llama", "LlamaTokenizerFast", True, {"add_bos_token": True, "add_eos_token": False, "legacy": True}),
    ],
)
def test_published_by_transformers_4_and_saved_by_transformers_5(tmp_path, model_type, kind, bos, settings):
    config = {"model_type": model_type, "transformers_version": "4.43.0"}
    base, saved, instruct, tools = (tmp_path / name for name in ("base", "saved", "instruct", "tools"))
    publish(base, kind, bos, **settings)
    (base / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(saved)
    tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template = "<pad>", "<eos>", "{{ messages }}"
    tokenizer.save_pretrained(instruct)
    tokenizer.add_tokens(["<tool>", "<call>"], special_tokens=True)
    tokenizer.save_pretrained(tools)
    assert tokenizer_problems(base, saved, config) == []
    assert tokenizer_problems(base, instruct, config) == []
    (line,) = tokenizer_problems(base, tools, config)
    assert re.search(r"has the tokens .*'<call>' \(51[34]\), '<tool>' \(51[23]\).*, which the base's has not", line)


def test_vocab_and_merges(tmp_path):
    content = json.loads(make_tokenizer().backend_tokenizer.to_str())["model"]
    for name in ("base", "same", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
        (tmp_path / name / "vocab.json").write_text(json.dumps(content["vocab"], indent=name == "same" or None))
        merges = [" ".join(pair) for pair in content["merges"]]
        (tmp_path / name / "merges.txt").write_text("\n".join(["#version: 0.2"] * (name != "base") + merges) + "\n")
    config = {"model_type": "gpt2"}
    assert tokenizer_problems(tmp_path / "base", tmp_path / "same", config) == []
    GPT2Tokenizer.from_pretrained(tmp_path / "same").save_pretrained(tmp_path / "json")
    assert tokenizer_problems(tmp_path / "base", tmp_path / "json", config) == []
    (tmp_path / "other/merges.txt").write_text("\n".join(merges[1:]))
    (line,) = tokenizer_problems(tmp_path / "base", tmp_path / "other", config)
    assert "other/vocab.json: is not the base's tokenizer: vocab.json and merges.txt list other tokens" in line


def test_tekken(tmp_path):
    content = {"config": {"pattern": "x", "default_vocab_size": 2}, "vocab": [{"rank": 0, "token_bytes": "YQ=="}]}
    for name in ("base", "same", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tekken.json").write_text(json.dumps(content, indent=name == "same" or None))
    change(tmp_path / "other/tekken.json", lambda content: content["vocab"].append({"rank": 1}))
    assert tokenizer_problems(tmp_path / "base", tmp_path / "same", {}) == []
    (line,) = tokenizer_problems(tmp_path / "base", tmp_path / "other", {})
    assert "other/tekken.json: is not the base's tokenizer" in line


def test_the_base_is_read_once_and_large_files_quickly(tmp_path, monkeypatch):
    """65,000 tokens and as many merges, a quarter of Gemma 3's."""
    words = [f"{a} {b}" for a in range(256) for b in range(256)]
    content = {"type": "BPE", "vocab": {word: id for id, word in enumerate(words)}}
    content["merges"] = [[word[:1], word[1:]] for word in words]
    read = []
    parse = vocabulary_module.parse
    monkeypatch.setattr(vocabulary_module, "parse", lambda file, content: read.append(file) or parse(file, content))
    for name in ("base", "a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": content}, indent=ord(name[0]) - 97))
    start = time.process_time()
    for name in "abc":
        assert tokenizer_problems(tmp_path / "base", tmp_path / name, LLAMA) == []
    assert [file.parent.name for file in read] == ["base", "a", "c"]  # b's has the base's bytes
    assert time.process_time() - start < 5


def test_a_family(root):
    shutil.copy(root / "base/tokenizer.json", root / "math")
    change(root / "math/tokenizer.json", lambda content: content.update(truncation=None))
    assert Family.load(root)
    change(root / "math/tokenizer.json", lambda content: content["model"]["vocab"].update({"<tool>": 2}))
    with pytest.raises(FamilyError, match=r"^math: .*/math/tokenizer.json: is not the base's .*'<tool>' \(2\)"):
        Family.load(root)
