"""Each composition's own chat template, ends of answers and sampling defaults, as stock vLLM has them of its merge."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import run, settings
from pico import make_family
from serving import Server, serving
from transformers import AutoTokenizer

from layerloom.composer import Family, merge

CHAT = [{"role": "user", "content": "diso heri"}]
NAMES = ["base", "math", "swahili", "math+swahili", "math+bengali", "tutor"]
TEMPLATES = {"math": "M{{ messages[-1]['content'] }}{{ eos_token }}", "swahili": "{{ bos_token }}S{{ messages | length }}"}


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
    # The request's own goes first, where the server takes one.
    given = server.post("/tokenize", {"model": "math", "messages": CHAT, "chat_template": "x"})
    assert given.status_code in (200, 400) and given.json().get("tokens") != ids("/tokenize", {"model": "math", "messages": CHAT})


def test_answers_end_as_their_composition_was_taught(
    server: Server, family: Path, merged: dict[str, Path]
) -> None:
    """Token by token what stock vLLM's server would say on the merge: by its defaults, and why it stopped."""
    from vllm import LLM, SamplingParams

    prompts = ["diso heri", "baka 5", "one two three"]
    found = {}
    for name in NAMES:
        body = {"model": name, "prompt": prompts, "return_token_ids": True, "seed": 1}
        body |= {} if name in ("math", "tutor") else {"temperature": 0.0}
        body |= {} if name in ("swahili", "math+swahili") else {"max_tokens": 24}
        choices = server.post("/v1/completions", body).json()["choices"]
        found[name] = [(c["token_ids"], c["finish_reason"], c["stop_reason"]) for c in choices]
    ends = {name: {len(ids) for ids, _, _ in of} for name, of in found.items()}
    assert ends["base"] == {24} and any(len(of) > 1 for of in ends.values()), "or the test shows nothing"
    assert max(ends["swahili"]) <= 9 and max(ends["math+swahili"]) <= 9
    for name in NAMES:
        llm = LLM(str(merged[name]), **settings({}))
        limit = 9 if name in ("swahili", "math+swahili") else 24
        outputs = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=limit), use_tqdm=False)
        wanted = [(list(o.outputs[0].token_ids), o.outputs[0].finish_reason, o.outputs[0].stop_reason) for o in outputs]
        assert found[name] == wanted, name
        del llm


def test_a_runtime_speaks_alike(family: Path, merged: dict[str, Path], server: Server) -> None:
    names = [name for name in NAMES if name in ("math", "swahili", "math+swahili", "tutor")]
    from layerloom.server import Runtime

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
    assert run
