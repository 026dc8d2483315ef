"""Tokenizers are compared by the ids and texts they give; transformers' own classes are the judge."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from pico import make_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer

from layerloom.composer import Family, FamilyError
from layerloom.composer.family import vocabulary as vocabulary_module
from layerloom.composer.family.tokenizers import tokenizer_problems

LLAMA = {"model_type": "llama"}
TEXTS = ["baka diso 5, heri!", " baka  BAKA", "مرحبا 3", "x<eos> y <new>z", "é é ﬁ", "\tfoo\n\nbar", "bakadisobaka" * 4]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "base/config.json").write_text(json.dumps(LLAMA))
    return tmp_path / "base"


@pytest.fixture
def expert(base: Path) -> Path:
    return Path(shutil.copytree(base, base.parent / "expert"))


def found(base: Path, expert: Path) -> list[str]:
    problems = tokenizer_problems(base, expert, LLAMA)
    assert all("\n" not in line and len(line) < 2500 for line in problems)
    return problems


def change(file: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


def ids(directory: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return [tokenizer.encode(text) for text in TEXTS]


def strings(content: dict[str, Any]) -> None:
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]


def reverse(content: dict[str, Any]) -> None:
    turned = dict(reversed(content.items()))
    turned["model"]["vocab"] = dict(reversed(turned["model"]["vocab"].items()))
    content.clear()
    content |= turned


def old(content: dict[str, Any]) -> None:
    """As tokenizers before 0.14 wrote it: without the options that came later."""
    for key in ("byte_fallback", "ignore_merges", "type"):
        content["model"].pop(key)
    content["pre_tokenizer"].pop("use_regex")


def unversioned(content: dict[str, Any]) -> None:
    content.pop("version")


def limits(content: dict[str, Any]) -> None:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>", length=16)
    content |= json.loads(tokenizer.to_str())


def offsets(content: dict[str, Any]) -> None:
    step = {"type": "ByteLevel", "trim_offsets": False, "add_prefix_space": True, "use_regex": True}
    inner = content["pre_tokenizer"] | {"trim_offsets": False}
    content["post_processor"], content["pre_tokenizer"] = step, {"type": "Sequence", "pretokenizers": [inner]}
    content["normalizer"] = {"type": "Sequence", "normalizers": []}


def template(content: dict[str, Any]) -> None:
    made = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B:1", special_tokens=[("<bos>", 1)])
    content["post_processor"] = json.loads(made.__getstate__())


def token(name: str = "<new>", id: int = 512, **flags: Any) -> Callable[[dict[str, Any]], None]:
    def add(content: dict[str, Any]) -> None:
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        content["added_tokens"].append({"id": id, "content": name} | plain | flags)

    return add


def part(name: str, **keys: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(name, (content[name] or {}) | keys)


def swap(content: dict[str, Any]) -> None:
    vocab = content["model"]["vocab"]
    vocab["b"], vocab["d"] = vocab["d"], vocab["b"]


@pytest.mark.parametrize(
    "edit",
    [strings, reverse, old, limits, offsets, part("model", dropout=0.0, continuing_subword_prefix=""), unversioned],
)
def test_another_spelling_is_taken(base, expert, edit):
    before = ids(expert)
    change(expert / "tokenizer.json", edit)
    if edit is not limits:
        assert ids(expert) == before
    assert found(base, expert) == found(expert, base) == []


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (token(), "has the tokens '<new>' (512), which the base's has not"),
        (token("né", 512, special=False, normalized=True), "has the tokens 'né' (512)"),
        (lambda content: content["added_tokens"][2].update(lstrip=True), "'<eos>' lstrip is True, the base's is False"),
        (lambda content: content["added_tokens"][2].update(special=False), "'<eos>' special is False"),
        (lambda content: content["model"]["vocab"].update({"bakadiso": 512}), "has the tokens 'bakadiso' (512)"),
        (swap, "gives other ids to 'b'"),
        (lambda content: content["model"]["merges"].reverse(), "its merges or scores are others"),
        (lambda content: content["model"]["merges"].pop(0), "its merges or scores are others"),
        (template, 'its template is [1, "text"], the base\'s is ["text"]'),
        (part("normalizer", type="Lowercase"), 'its normalizer is [{"type": "Lowercase"}], the base\'s is []'),
        (part("normalizer", type="Replace", pattern={"String": "foo"}, content="bar"), "its normalizer is"),
        (part("pre_tokenizer", add_prefix_space=True), "its pre_tokenizer is"),
        (part("pre_tokenizer", use_regex=False), "its pre_tokenizer is"),
        (part("decoder", type="Fuse"), "its decoder is"),
        (part("model", ignore_merges=True, dropout=0.5), "its model's dropout is 0.5, the base's is null"),
    ],
)
def test_another_tokenizer_is_refused_with_what_differs(base, expert, edit, said):
    change(expert / "tokenizer.json", edit)
    (line,) = found(base, expert)
    # transformers makes the eos of such a base a special token, and so the expert's what it is.
    assert found(expert, base) or "special is False" in said
    assert line.startswith(f"{expert / 'tokenizer.json'}: is not the base's tokenizer: ")
    assert said in line and "give the expert the base's tokenizer files" in line


def test_an_added_token_that_is_a_plain_one_in_the_other(base, expert):
    change(expert / "tokenizer.json", lambda content: content["added_tokens"].pop())
    assert found(base, expert) == []  # tokenizer_config.json names it still
    (expert / "tokenizer_config.json").unlink()
    assert "has as plain tokens '<unk>' (3), which the base's has as added ones" in found(base, expert)[0]


def test_many_new_tokens_are_counted(base, expert):
    for index in range(1000):
        change(expert / "tokenizer.json", token(f"<new{index:03}>", 512 + index)) if index < 30 else None
    (line,) = found(base, expert)
    assert "'<new000>' (512), '<new001>' (513), " in line and "'<new023>' (535) and 6 more" in line


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer_config.json", {"chat_template": "{{ x }}", "model_max_length": 5, "padding_side": "left"}, None),
        ("tokenizer_config.json", {"eos_token": "<pad>", "pad_token": "<eos>", "bos_token": None}, None),
        ("tokenizer_config.json", {"add_bos_token": False, "add_eos_token": None, "add_prefix_space": False}, None),
        ("tokenizer_config.json", {"extra_special_tokens": ["<eos>"], "clean_up_tokenization_spaces": True}, None),
        ("tokenizer_config.json", {"added_tokens_decoder": {"2": {"content": "<eos>", "special": True}}}, None),
        ("special_tokens_map.json", {"eos_token": {"content": "<eos>", "lstrip": False}, "pad_token": "<pad>"}, None),
        ("added_tokens.json", {"<eos>": 2}, None),
        ("tokenizer_config.json", {"add_bos_token": True}, "add_bos_token is True, the base's is False"),
        ("tokenizer_config.json", {"add_eos_token": True}, "add_eos_token is True, the base's is False"),
        ("tokenizer_config.json", {"add_prefix_space": True}, "add_prefix_space is True, the base's is False"),
        ("tokenizer_config.json", {"pad_token": "[PAD]"}, "has the tokens '[PAD]' (of no id)"),
        ("tokenizer_config.json", {"extra_special_tokens": ["<a>", "<eos>"]}, "has the tokens '<a>' (of no id)"),
        ("tokenizer_config.json", {"split_special_tokens": True}, "split_special_tokens is 'True'"),
        ("added_tokens.json", {"<tool>": 512}, "has the tokens '<tool>' (512)"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"512": {"content": "<tool>", "special": True}}},
            "has the tokens '<tool>' (512)",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"2": {"content": "<eos>", "special": True, "rstrip": True}}},
            "'<eos>' rstrip is True, the base's is False",
        ),
    ],
)
def test_what_the_files_beside_it_say(base, expert, file, content, said):
    known = json.loads((expert / file).read_text()) if (expert / file).exists() else {}
    (expert / file).write_text(json.dumps(known | content))
    lines = found(base, expert)
    assert lines == [] if said is None else said in lines[0]
    if said is None:
        assert ids(expert) == ids(base)


def test_a_template_and_a_setting_that_mean_the_same(base, expert):
    for directory in (base, expert):
        change(directory / "tokenizer.json", template)
    change(base / "tokenizer_config.json", lambda content: content.update(add_bos_token=True))
    assert found(base, expert) == []
    change(expert / "tokenizer_config.json", lambda content: content.update(add_bos_token=False))
    assert "tokenizer_config.json: is not the base's tokenizer: add_bos_token is False" in found(base, expert)[0]


def test_directories_without_a_tokenizer(base, expert):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (expert / name).unlink()
        assert tokenizer_problems(base, expert, LLAMA) == tokenizer_problems(expert, base, LLAMA) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "has no model"),
        ("{}", "has no model"),
        ('{"model": {"vocab": 3}}', "has no vocab"),
        ('{"model": {"type": "BPE", "vocab": {"a": "b", "c": 1}, "merges": []}}', "cannot be read as a tokenizer"),
        (
            '{"model": {"type": "BPE", "vocab": {}, "merges": [1]}, "added_tokens": [7]}',
            "cannot be read as a tokenizer",
        ),
        ('{"model": {"type": "Novel", "vocab": {}}}', "cannot be read as a tokenizer"),
        ("[" * 10**6, "RecursionError|recursion"),
    ],
)
@pytest.mark.parametrize("whose", ["base", "expert"])
def test_a_broken_file_is_named(base, expert, content, said, whose, capfd):
    broken = base.parent / whose / "tokenizer.json"
    broken.write_text(content)
    (line,) = found(base, expert)
    assert line.startswith(
        f"{expert / 'tokenizer.json'}: is not the base's tokenizer, and cannot be compared with it: {broken}: "
    )
    assert any(each in line for each in said.split("|"))
    (expert / "tokenizer_config.json").write_text("{")
    (line,) = tokenizer_problems(base, expert, LLAMA)
    assert line.startswith(f"{expert / 'tokenizer_config.json'}: ")
    assert capfd.readouterr() == ("", "")


def test_a_file_without_end_and_a_fifo(base, expert):
    with (expert / "tokenizer.json").open("r+b") as file:
        file.truncate(1 << 40)
    assert "tokenizer.json: has more than 268,435,456 bytes" in tokenizer_problems(base, expert, LLAMA)[0]
    (expert / "tokenizer.json").unlink()
    os.mkfifo(expert / "tokenizer.json")
    assert "tokenizer.json: is a FIFO" in tokenizer_problems(base, expert, LLAMA)[0]


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
