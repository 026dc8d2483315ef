"""What experts say of chats, of how answers end and of sampling: read as transformers reads it."""

import json
import shutil

import pytest
from pico import make_family
from tiny import EXPERTS
from transformers import AutoTokenizer, GenerationConfig

from layerloom.composer import Archive, Checkpoint, ComposeError, Family, FamilyError, extract, merge
from layerloom.composer.sources.voice import Voice, read_voice

OWN = "{% for message in messages %}<{{ message['content'] }}{{ eos_token }}{% endfor %}"
CHAT = [{"role": "user", "content": "habari"}]


def write(directory, **files):
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        name = {"config": "config.json", "generation": "generation_config.json"}.get(name, "tokenizer_config.json")
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def test_generation_is_of_its_own_file_or_else_of_the_config(tmp_path):
    assert read_voice(write(tmp_path / "a")) == Voice()
    config = {"eos_token_id": [2, 7], "pad_token_id": None, "hidden_size": 4}
    assert read_voice(write(tmp_path / "b", config=config)).generation == {"eos_token_id": [2, 7]}
    said = {"eos_token_id": 5, "temperature": 0.6, "do_sample": True, "something_new": [1]}
    assert read_voice(write(tmp_path / "c", config=config, generation=said)).generation == said
    nested = {"text_config": {"eos_token_id": 3}, "eos_token_id": None}
    assert read_voice(write(tmp_path / "d", config=nested)).generation in ({"eos_token_id": 3}, None)


@pytest.mark.parametrize(
    "said, message",
    [
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": [2, -1]}, "eos_token_id"),
        ({"eos_token_id": 2.5}, "eos_token_id"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ("[]", "not a JSON object"),
        ("{", "generation_config.json"),
    ],
)
def test_what_vllm_could_not_take_is_an_error_with_the_file(tmp_path, said, message):
    with pytest.raises(ComposeError, match=rf"a/generation_config.json: .*{message}|{message}.*: "):
        read_voice(write(tmp_path / "a", generation=said))


def test_templates_are_where_transformers_has_ever_put_them(tmp_path):
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    assert read_voice(write(tmp_path / "a", tokenizer={"chat_template": "x"})).templates == {"default": "x"}
    voice = read_voice(write(tmp_path / "b", tokenizer={"chat_template": several}))
    assert (voice.template(False), voice.template(True)) == ("a", "b")
    (tmp_path / "b" / "chat_template.jinja").write_text("file")
    (tmp_path / "b" / "additional_chat_templates").mkdir()
    (tmp_path / "b" / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert read_voice(tmp_path / "b").templates == {"default": "file", "tool_use": "tools"}
    with pytest.raises(ComposeError, match=r"c/tokenizer_config.json: chat_template is neither"):
        read_voice(write(tmp_path / "c", tokenizer={"chat_template": 5}))
    assert Voice(templates={"default": "x"}).template(True) == "x"
    assert Voice().template(False) is None


def test_special_tokens(tmp_path):
    said = {"eos_token": {"content": "<end>", "lstrip": False}, "bos_token": "<s>", "pad_token": None, "other": "x"}
    assert read_voice(write(tmp_path / "a", tokenizer=said)).tokens == {"bos_token": "<s>", "eos_token": "<end>"}


@pytest.fixture
def spoken(root):
    """A tiny family in which each has a voice."""
    for number, name in enumerate(["base", *EXPERTS]):
        write(root / name, generation={"eos_token_id": number})
        (root / name / "chat_template.jinja").write_text(name)
    return root


def test_whose_voice_a_composition_has(spoken, edit):
    table = {"method": "table", "layers": {"0-7": "math"}, "stem": "bengali"}
    compositions = {
        "tutor": "math+swahili",
        "silent": {"task": "math", "language": "swahili", "chat": "base"},
        "taught": {"task": "math", "language": "swahili", "chat": "task"},
        "quilt": {"recipe": table},
        "mixed": {"recipe": {**table, "stem": {"math": 0.5, "bengali": 0.5}}},
    }
    edit(compositions=compositions)
    own = {"base": "base", "math": "math", "swahili": "swahili", "quilt": "bengali", "mixed": "base"}
    own |= {"silent": "base", "taught": "math"}
    for chat, pair in (("language", "swahili"), ("task", "math"), ("base", "base")):
        edit(compositions=compositions, chat=chat)
        family = Family.load(spoken)
        for name, speaker in {**own, "math+swahili": pair, "tutor": pair, "math+sw@stem=task": pair}.items():
            assert family.speaker(name) == speaker, (chat, name)
            assert family.voice(name).templates == {"default": speaker}
    with pytest.raises(FamilyError, match=r"chat: input should be 'task', 'language' or 'base'"):
        Family.load(edit(chat="loud"))


def test_a_broken_voice_is_a_problem_of_its_expert(spoken):
    (spoken / "math" / "generation_config.json").write_text("{")
    with pytest.raises(FamilyError, match=r"^math: .*math/generation_config.json: ") as caught:
        Family.load(spoken)
    assert len(caught.value.problems) == 1


def test_an_end_of_answers_that_is_no_token(spoken):
    """vLLM masks such tokens by their place among the logits when a request asks for min_tokens."""
    for name in ("base", "math"):
        write(spoken / name, generation={"eos_token_id": [2, 32]})
    with pytest.raises(FamilyError) as caught:
        Family.load(spoken)
    assert caught.value.problems == [
        f"{name}: {spoken}/{name}: eos_token_id 32 is no token: the base has 32, counted from 0"
        for name in ("base", "math")
    ]


def test_what_an_expert_does_not_say_is_the_bases(root):
    write(root / "base", generation={"eos_token_id": 1}, tokenizer={"eos_token": "a", "chat_template": "base"})
    write(root / "swahili", tokenizer={"eos_token": "b"})
    voice = Family.load(root).voice("math+swahili")
    assert (voice.generation, voice.tokens, voice.template(False)) == ({"eos_token_id": 1}, {"eos_token": "b"}, "base")


def test_an_archive_keeps_the_voice(spoken, tmp_path):
    extract(spoken / "base", spoken / "math", tmp_path / "math.safetensors")
    base = Checkpoint(spoken / "base")
    assert Archive(tmp_path / "math.safetensors", base).voice == read_voice(spoken / "math")
    shutil.copy(spoken / "base" / "chat_template.jinja", spoken / "math")
    extract(spoken / "base", spoken / "math", tmp_path / "same.safetensors")
    assert Archive(tmp_path / "same.safetensors", base).voice == Voice(generation={"eos_token_id": 1})


def test_a_merge_speaks_as_the_composition(tmp_path):
    """Judged by what transformers reads of it."""
    family = make_family(tmp_path, depth=2, experts={"math": "task", "swahili": "language"})
    tmp_path.joinpath("family.yaml").write_text(family.read_text() + "recipe: {bottom: 1, top: 0, transition: 0}\n")
    for name, generation in (("base", {"eos_token_id": 2}), ("swahili", {"eos_token_id": [2, 9], "temperature": 0.3})):
        write(tmp_path / name, generation=generation)
    (tmp_path / "base" / "chat_template.jinja").unlink()
    (tmp_path / "swahili" / "chat_template.jinja").write_text(OWN)
    tokenizer = json.loads((tmp_path / "swahili" / "tokenizer_config.json").read_text())
    write(tmp_path / "swahili", tokenizer={**tokenizer, "eos_token": "<unk>"})
    loaded = Family.load(family)
    for name, eos, rendered in (
        ("math", 2, "<bos>user: habari\n"),
        ("math+swahili", [2, 9], "<habari<unk>"),
        ("base", 2, None),
    ):
        out = merge(loaded, name, tmp_path / "merged" / name)
        found = GenerationConfig.from_pretrained(out)
        assert found.eos_token_id == eos
        assert json.loads((out / "config.json").read_text())["eos_token_id"] == eos
        read = AutoTokenizer.from_pretrained(out)
        if rendered is None:
            assert read.chat_template is None
        else:
            assert read.apply_chat_template(CHAT, tokenize=False) == rendered


def test_several_templates_are_merged_too(root, tmp_path):
    several = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    write(root / "swahili", tokenizer={"chat_template": several})
    write(root / "base", tokenizer={"chat_template": "base", "kept": 1})
    out = merge(Family.load(root), "math+swahili", tmp_path / "out")
    assert read_voice(out).templates == {"default": "a", "tool_use": "b"}
    assert json.loads((out / "tokenizer_config.json").read_text()) == {"kept": 1}
