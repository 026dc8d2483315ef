"""What `layerloom sweep` refuses of questions and of results that it is to go on with."""

import json
import shutil
from pathlib import Path

import pytest
from engines import settings

from layerloom.composer import ComposeError
from layerloom.server.sweep.questions import Manner, Question, read_questions
from layerloom.server.sweep.sweep import Kept

DEMO = Path(__file__).parents[2] / "demo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no question"),
        ("{", "line 1: is no JSON"),
        ('{"question": "a"}', "line 1: answer: Field required"),
        ('\n{"question": "a", "answer": 1}\n{"answer": "b"}', "line 3: .*either question or messages"),
        ('{"question": "a", "answer": "b", "choices": ["c"]}', "line 1: choices do not hold the answer, 'b'"),
        ("[]", r'line 1: is no object; a line is {"question": …, "answer": …}'),
        ("[" * 99999, "line 1: is no JSON"),
        (r'{"question": "\ud800", "answer": "8"}', "line 1: is no JSON: .*hex escape"),
        ('{"question": "", "answer": "8"}', "line 1: question.*: .* at least 1 character"),
        ('{"question": "a", "answer": ""}', "line 1: answer: .* at least 1 character"),
        ('{"messages": [], "answer": "b"}', "line 1: messages: .* at least 1 item"),
        ('{"messages": ["hello"], "answer": "b"}', "line 1: messages.0: "),
        ('{"messages": [{"role": "user", "content": [1]}], "answer": "b"}', "line 1: messages.0.content: "),
    ],
)
def test_files_that_hold_no_questions(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(ComposeError, match=message):
        read_questions(tmp_path / "q.jsonl")


@pytest.mark.parametrize("line", ["x", "[]", '{"of": 1}', '{"recipe": "math+swahili"}', '{"recipe": 5}', "[" * 99999])
def test_results_that_are_damaged(tmp_path: Path, line: str) -> None:
    kept = tmp_path / "scores.jsonl"
    Kept(kept, "digest", str).add({("math", 0): {"exact": 1.0}})
    with kept.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ComposeError, match=r"scores.jsonl: line 3 is none that a sweep writes: give another --output"):
        Kept(kept, "digest", str)
    kept.write_text('{"sweep": 1, "of')
    with pytest.raises(ComposeError, match=r"scores.jsonl: is of other questions"):
        Kept(kept, "digest", str)
    assert kept.read_text() == '{"sweep": 1, "of', "nothing of it is lost"
    kept.write_bytes(b"\xff\n")
    with pytest.raises(ComposeError, match=r"scores.jsonl: .*decode"):
        Kept(kept, "digest", str)


def test_results_of_recipes_that_are_no_more(tmp_path: Path) -> None:
    def weights(name: str) -> str:
        if name == "gone":
            raise ComposeError("there is no model 'gone'")
        return name

    Kept(tmp_path / "scores.jsonl", "digest", str).add({(name, 0): {"exact": 1.0} for name in ("math", "gone")})
    assert Kept(tmp_path / "scores.jsonl", "digest", weights).scores == {"math": {0: {"exact": 1.0}}}


def test_questions_that_cannot_be_asked(engine_environment: None, tmp_path: Path) -> None:
    from layerloom.server import Runtime
    from layerloom.server.sweep.examiner import Examiner

    plain = tmp_path / "plain"
    shutil.copytree(DEMO, plain)
    config = plain / "base" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": None}))
    fine = {"question": "Asha", "answer": "8"}
    cases = {
        "262 tokens .* takes 255": {"question": "Asha " * 250, "answer": "8 " * 9},
        "the demo knows questions": {"messages": [{"role": "system", "content": "Be brief"}], "answer": "8"},
    }
    with Runtime(DEMO, **settings({})) as runtime:
        for message, line in cases.items():
            questions = [Question.model_validate(each) for each in (fine, line)]
            with pytest.raises(ComposeError, match=f"question 2, .*{message}"):
                Examiner(runtime, "math+swahili", questions, Manner())
    with Runtime(plain, **settings({})) as runtime:
        with pytest.raises(ComposeError, match="no chat template: ask with --text"):
            Examiner(runtime, "math+swahili", [Question(**fine)], Manner())
        assert Examiner(runtime, "math+swahili", [Question(**fine)], Manner(chat=False)).asked
