"""Each composition's own chat template, ends of answers and sampling defaults, as stock vLLM has them of its merge."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import run, sampling, settings
from pico import make_family
from serving import Server, serving
from transformers import AutoTokenizer

from layerloom.composer import Family, merge

pytestmark = pytest.mark.usefixtures("engine_environment")

CHAT = [{"role": "user", "content": "diso heri"}]
NAMES = ["base", "math", "swahili", "math+swahili", "math+bengali", "tutor"]
TEMPLATES = {
    "math": "M{{ messages[-1]['content'] }}{{ eos_token }}",
    "swahili": "{{ bos_token }}S{{ messages | length }}",
}


def write(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base has no chat template, as pretrained models have none; bengali says nothing of its own."""
    path = make_family(tmp_path_factory.mktemp("voices"), depth=4)
    path.write_text(path.read_text() + "compositions: {tutor: {task: math, language: swahili, chat: task}}\n")
    root = path.parent
    for name in ("base", "bengali"):
        (root / name / "chat_template.jinja").unlink()
    (root / "bengali" / "generation_config.json").unlink()
    for name, template in TEMPLATES.items():
        (root / name / "chat_template.jinja").write_text(template)
    # Tokens that come soon, so that answers do end.
    write(root / "math" / "generation_config.json", eos_token_id=[2, *range(200, 300)], temperature=0.0)
    write(root / "math" / "tokenizer_config.json", eos_token="<unk>")
    write(root / "swahili" / "generation_config.json", eos_token_id=list(range(2, 60)), top_k=1, max_new_tokens=9)
    return path


@pytest.fixture(scope="module")
def server(family: Path) -> Iterator[Server]:
    with serving(family, family.parent / "log", "--allow-recipes") as server:
        yield server


@pytest.fixture(scope="module")
def merged(family: Path) -> dict[str, Path]:
    loaded = Family.load(family)
    return {name: merge(loaded, name, family.parent / "merged" / name) for name in NAMES}


def test_a_chat_has_the_template_of_its_composition(server: Server, merged: dict[str, Path]) -> None:
    def ids(route: str, body: dict[str, Any]) -> Any:
        response = server.post(route, body)
        return response.json() if response.status_code != 200 else response.json().get("tokens", response.json())

    for name in NAMES:
        tokenizer = AutoTokenizer.from_pretrained(merged[name])
        asked = {"model": name, "messages": CHAT}
        if tokenizer.chat_template is None:
            for route in ("/v1/chat/completions", "/tokenize"):
                assert "chat template" in ids(route, asked)["error"]["message"], name
            continue
        wanted = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
        assert ids("/tokenize", asked) == wanted, name
        answer = server.post("/v1/chat/completions", {**asked, "max_tokens": 1, "return_token_ids": True}).json()
        assert answer["prompt_token_ids"] == wanted, name
        for route, body in (
            ("/v1/responses", {"model": name, "input": CHAT, "max_output_tokens": 16}),
            ("/v1/messages", asked | {"max_tokens": 1}),
        ):
            assert server.post(route, body).json()["usage"]["input_tokens"] == len(wanted), (name, route)


def test_answers_end_as_their_composition_was_taught(server: Server, merged: dict[str, Path]) -> None:
    """Token by token what stock vLLM says on the merge, and why it stopped; math samples greedily by itself."""
    prompts, found = ["diso heri", "baka 5", "one two three"], {}
    for name in NAMES:
        body = {"model": name, "prompt": prompts, "return_token_ids": True, "max_tokens": 24}
        body |= {} if name in ("math", "tutor") else {"temperature": 0.0}
        choices = server.post("/v1/completions", body).json()["choices"]
        found[name] = [(c["token_ids"], c["finish_reason"], c["stop_reason"]) for c in choices]
    lengths = {name: {len(ids) for ids, _, _ in of} for name, of in found.items()}
    assert lengths["base"] == {24} and min(lengths["math"] | lengths["swahili"]) < 24, "or the test shows nothing"
    params = sampling(24, ignore_eos=False, logprobs=None)
    for name in ("base", "math", "math+swahili", "math+bengali", "tutor"):
        (outputs,) = run(merged[name], (None, prompts, params))
        answers = [output.outputs[0] for output in outputs]
        assert found[name] == [(list(a.token_ids), a.finish_reason, a.stop_reason) for a in answers], name


def test_what_a_chat_does_not_say_is_its_compositions(server: Server) -> None:
    for name, limit in (("swahili", 9), ("math+swahili", 9), ("math+swahili@stem=task", 9)):
        for _ in range(2):
            answer = server.post("/v1/chat/completions", {"model": name, "messages": CHAT, "ignore_eos": True}).json()
            assert answer["usage"]["completion_tokens"] == limit
    answer = server.post("/v1/chat/completions", {"model": "math", "messages": CHAT, "ignore_eos": True}).json()
    assert answer["usage"]["completion_tokens"] > 9


def test_a_runtime_speaks_alike(family: Path, merged: dict[str, Path], server: Server) -> None:
    from layerloom.server import Runtime

    names = ["math", "swahili", "math+swahili", "tutor"]
    with Runtime(family, **settings({})) as runtime:
        outputs = runtime.chat(names, [CHAT] * len(names), max_tokens=24)
        with pytest.raises(ValueError, match="chat template"):
            runtime.chat(["math", "base"], [CHAT] * 2)
        assert runtime.generate("math", ["diso heri"], max_tokens=24)[0].outputs[0].token_ids
    for name, output in zip(names, outputs, strict=True):
        body = {"model": name, "messages": CHAT, "temperature": 0, "max_tokens": 24, "return_token_ids": True}
        choice = server.post("/v1/chat/completions", body).json()["choices"][0]
        assert list(output.outputs[0].token_ids) == choice["token_ids"], name
        assert output.outputs[0].stop_reason == choice["stop_reason"], name
