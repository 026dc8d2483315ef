"""Tokenizers are compared by the ids and texts they give; transformers' own classes are the judge."""

import json
import os

import pytest
from tokens import (
    LLAMA,
    change,
    found,
    ids,
    limits,
    offsets,
    old,
    part,
    reverse,
    strings,
    swap,
    template,
    token,
    unversioned,
)

from layerloom.composer.family.tokenizers import tokenizer_problems


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
